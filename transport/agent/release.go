package agent

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

const (
	// keepReleases is how long a release waits for its agent, which goes from
	// server to server while it holds a state back.
	keepReleases = 10 * time.Minute
	maxReleases  = 1024
)

type pendingRelease struct {
	held, reason string
	until        time.Time
	sent         bool
}

// Release lets the agent of that name accept the state that it holds back, when
// it comes with held as its reason, within ten minutes: an agent that holds a
// state back goes from server to server, so each of them should be told. Held is
// AgentInfo's; with another reason it is another state that is held, which
// someone has to look at anew. reason says who wants it and why, for the agent's
// log.
func (s *Server) Release(name, held, reason string) error {
	st, err := s.keepRelease(name, held, reason)
	if st != nil {
		st.release()
	}
	return err
}

// keepRelease notes a release, and returns the agent's stream if there is one.
func (s *Server) keepRelease(name, held, reason string) (*stream, error) {
	if name == "" || held == "" {
		return nil, errors.New("agent server: a release needs the agent's name, and why it holds its state back")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, r := range s.releases {
		if time.Now().After(r.until) {
			delete(s.releases, n)
		}
	}
	if len(s.releases) >= maxReleases {
		return nil, errors.New("agent server: too many releases wait for their agents")
	}
	s.releases[name] = pendingRelease{held: clip(held), reason: reason, until: time.Now().Add(keepReleases)}
	return s.open[name], nil
}

// release sends the agent what waits for it.
func (st *stream) release() {
	s := st.server
	s.mu.Lock()
	r, ok := s.releases[st.hello.Name]
	ok = ok && r.held == st.held && time.Now().Before(r.until)
	if ok {
		r.sent = true
		s.releases[st.hello.Name] = r
	}
	s.mu.Unlock()
	if !ok {
		return
	}
	s.log.Warn("an agent's held state is released", zap.String("agent", st.hello.Name), zap.String("held", r.held), zap.String("reason", r.reason))
	st.mu.Lock()
	defer st.mu.Unlock()
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Release{Release: &agentpb.Release{Reason: r.reason}}})
}

// released takes a server's word that a held state may pass: of the cluster that
// the state is of, and of no other.
func (s *session) released(r *agentpb.Release) error {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil || c.held.cluster != s.cluster {
		c.log.Warn("a release for a state that is not held", zap.String("server", s.server), zap.String("reason", r.GetReason()))
		return nil
	}
	next := c.held
	if err := c.acceptLocked(next, &agentpb.Update{Full: true}); err != nil {
		return err
	}
	c.log.Warn("the held state is released by a server", zap.String("server", s.server), zap.String("reason", r.GetReason()),
		zap.Uint64("revision", next.revision), zap.Int("services", len(next.entries)))
	return errReleased
}

// errReleased ends a stream, for the server still takes the agent to have what
// it had at its hello.
var errReleased = errors.New("the held state was released; the agent begins anew")

// forgetRelease drops what was sent to an agent that now holds nothing back: it
// has taken it. Until then a release is sent each time that the agent comes, for
// its stream may end before the release arrives.
func (s *Server) forgetRelease(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.releases[name].sent {
		delete(s.releases, name)
	}
}
