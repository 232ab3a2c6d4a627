package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// stored are labels that a server has for an agent, in place of those of its
// certificate.
type stored struct {
	mu     sync.Mutex // guards labels and refuse
	labels map[string]string
	refuse error
}

func (s *stored) set(labels map[string]string, refuse error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.labels, s.refuse = labels, refuse
}

func (s *stored) labelsFor(_ context.Context, h agent.Hello) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil || s.labels == nil {
		return h.Labels, s.refuse
	}
	return maps.Clone(s.labels), nil
}

// rare heartbeats notice nothing within a test.
func rare(c *agent.ServerConfig) { c.HeartbeatInterval, c.SilenceTimeout = time.Minute, 2*time.Minute }

// Other labels change what an agent is shown while its stream is up, however
// much that takes away: what goes is an explicit removal, which the guard lets
// pass (INV-12). INV-13, INV-40.
func TestOtherLabelsOnALiveStream(t *testing.T) {
	var labels stored
	s := newSecured(t, rare, func(c *agent.ServerConfig) { c.LabelsFor = labels.labelsFor })
	for i := range 8 {
		s.put(fmt.Sprintf("more-a%d", i), 100+i, map[string]string{"zone": "a"})
	}
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}})
	var a applier
	c := s.follow(&a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	inA := "everywhere in-a more-a0 more-a1 more-a2 more-a3 more-a4 more-a5 more-a6 more-a7"
	wait(t, "the view of its certificate", func() bool { return a.services() == inA })
	for _, step := range []struct {
		labels map[string]string
		want   string
	}{
		{map[string]string{"zone": "b"}, "everywhere in-b"},
		{map[string]string{}, "everywhere"},
		{nil, inA}, // what the certificate says
		{map[string]string{"zone": "b", "rack": "7"}, "everywhere in-b"},
	} {
		labels.set(step.labels, nil)
		s.server.Recheck()
		wait(t, fmt.Sprint("the view of ", step.labels), func() bool { return a.services() == step.want })
		if st := c.Status(); st.Held != nil || !st.Connected {
			t.Fatalf("%+v", st)
		}
	}
	// The stream goes on in the new view.
	s.put("late-b", 200, map[string]string{"zone": "b"})
	wait(t, "a change of the new view", func() bool { return a.services() == "everywhere in-b late-b" })
	info := s.server.Agents()
	if len(info) != 1 || info[0].Connects != 1 || !maps.Equal(info[0].Labels, map[string]string{"zone": "b", "rack": "7"}) {
		t.Errorf("%+v", info)
	}
	labels.set(nil, errors.New("this agent is not wanted here"))
	s.server.Recheck()
	wait(t, "refused", func() bool {
		return !c.Status().Connected && strings.Contains(c.Status().LastError, "not wanted here")
	})
}

// Labels that change at any moment of a stream's life lead to their view, and
// to no state but those of a view.
func TestLabelsThatChangeAllTheTime(t *testing.T) {
	var labels stored
	s := newSecured(t, rare, func(c *agent.ServerConfig) { c.LabelsFor = labels.labelsFor })
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}})
	a := &watching{seen: map[string]bool{}}
	c := s.follow(a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	for i := range 200 {
		labels.set(map[string]string{"zone": string("ab"[i%2])}, nil)
		s.server.Recheck()
		if i%3 == 0 {
			s.put("everywhere", 50+i%5, nil)
		}
	}
	labels.set(map[string]string{"zone": "a"}, nil)
	s.server.Recheck()
	last, err := s.store.Revision(t.Context(), readAll)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "the last view", func() bool { return a.services() == "everywhere in-a" && c.Status().Revision == last })
	a.seenMu.Lock()
	defer a.seenMu.Unlock()
	for seen := range a.seen {
		if seen != "everywhere in-a" && seen != "everywhere in-b" {
			t.Errorf("a state that no view ever had: %s", seen)
		}
	}
}

// INV-40: what is revoked ends at once where Recheck tells of it.
func TestRecheckEndsWhatWasRevoked(t *testing.T) {
	s := newSecured(t, rare)
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	var a applier
	c := s.follow(&a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	wait(t, "served", func() bool { return a.services() == "everywhere" })
	s.server.Recheck()
	s.revoke("a1", "the host was sold")
	s.server.Recheck()
	wait(t, "off", func() bool { return !c.Status().Connected && c.Status().LastError != "" })
	if !s.logged("agent gone", "revoked", "the host was sold") {
		t.Errorf("the server does not say why: %v", s.logs.All())
	}
}

var readAll lbstate.ReadOptions

// watching is an applier that remembers each view.
type watching struct {
	applier

	seenMu sync.Mutex // guards seen
	seen   map[string]bool
}

func (w *watching) Apply(ctx context.Context, v lbstate.View) (lbstate.Applied, error) {
	done, err := w.applier.Apply(ctx, v)
	w.seenMu.Lock()
	defer w.seenMu.Unlock()
	w.seen[w.services()] = true
	return done, err
}
