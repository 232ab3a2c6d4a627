package agent

import "time"

// pulse does for all streams what time tells: heartbeats, and the end of those
// that have lost their right to go on. It ends with the server.
func (s *Server) pulse() {
	// Each stream has its turn a heartbeat after its last: they stay as spread as
	// they came.
	tick := time.NewTicker(max(s.cfg.HeartbeatInterval/16, time.Millisecond))
	defer tick.Stop()
	var due []*stream
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		now := time.Now()
		due = due[:0]
		s.mu.Lock()
		for _, st := range s.open {
			if now.Sub(st.beat) >= s.cfg.HeartbeatInterval {
				st.beat = now
				due = append(due, st)
			}
		}
		s.mu.Unlock()
		beat := s.heartbeat()
		for _, st := range due {
			if err := st.alive(beat); err != nil {
				st.cancel(err)
			}
		}
		clear(due)
	}
}

// unstick ends the streams that make others wait: those that something is sent to
// without a sender, though their agents do not read. It takes no stream's mu, and
// ends with the server.
func (s *Server) unstick() {
	tick := time.NewTicker(stuckAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		late := time.Now().Add(-stuckAfter).UnixNano()
		s.mu.Lock()
		for _, st := range s.open {
			if began := st.sending.Load(); began != 0 && began < late {
				st.cancel(errUnread)
			}
		}
		s.mu.Unlock()
	}
}
