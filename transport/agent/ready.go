package agent

import (
	"context"
	"time"
)

// ready asks Config.Ready, at most once a second. It waits for the answer, or
// for that of another who asks.
func (s *Server) ready(ctx context.Context) error {
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	if time.Since(s.readyAt) > time.Second {
		err := s.cfg.Ready(ctx)
		if ctx.Err() != nil {
			return err // says nothing about the server
		}
		s.readyAt, s.readyIs = time.Now(), err
	}
	return s.readyIs
}

// condition is what the monitor found last.
type condition struct {
	since time.Time // when the server was last ready
	err   error     // why it is not; nil: it is
}

// monitor asks every second whether this server is ready, for all streams, which
// must not wait for the answer. It ends with the server.
func (s *Server) monitor() {
	tick := time.NewTicker(min(time.Second, s.cfg.ReadyTimeout))
	defer tick.Stop()
	last := time.Now()
	for {
		ctx, cancel := context.WithTimeout(s.life, s.cfg.ReadyTimeout)
		err := s.ready(ctx)
		cancel()
		if err == nil {
			last = time.Now()
		}
		s.condition.Store(&condition{last, err})
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
	}
}

// unready says why streams must end: the server has not been ready for longer
// than ReadyTimeout. It does not wait.
func (s *Server) unready() error {
	c := s.condition.Load()
	if c == nil || c.err == nil || time.Since(c.since) <= s.cfg.ReadyTimeout {
		return nil
	}
	return c.err
}
