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
