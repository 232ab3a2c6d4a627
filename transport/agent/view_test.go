package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// countingStore counts who reads.
type countingStore struct {
	*lbstate.Store
	watches atomic.Int64
}

func (c *countingStore) Watch(o lbstate.WatchOptions) *lbstate.Watcher {
	c.watches.Add(1)
	return c.Store.Watch(o)
}

// viewOf is the view that is open for these labels.
func viewOf(s *Server, labels map[string]string) *view {
	s.views.mu.Lock()
	defer s.views.mu.Unlock()
	return s.views.open[labelsKey(labels)]
}

// followers are agents with their own names and the same labels.
func followers(t *testing.T, n int, addr string, labels map[string]string) []*recorder {
	t.Helper()
	out := make([]*recorder, n)
	for i := range out {
		out[i] = new(recorder)
		c, err := NewClient(ClientConfig{
			Servers: []string{addr}, Name: fmt.Sprintf("agent-%d", i), Dir: t.TempDir(), Applier: out[i], Labels: labels,
			MinBackoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		t.Cleanup(func() { ended(t, cancel, done) })
	}
	return out
}

func all(rs []*recorder, ok func(lbstate.View) bool) bool {
	return !slices.ContainsFunc(rs, func(r *recorder) bool { return !ok(r.last()) })
}

// What all agents with the same labels are sent is read and encoded once.
func TestViewIsShared(t *testing.T) {
	counting := &countingStore{Store: newStore(t)}
	put(t, counting.Store, "one", 1, nil)
	s, addr, _ := serve(t, counting.Store, 7, func(c *ServerConfig) { c.Store = counting })
	rs := followers(t, 20, addr, map[string]string{"zone": "a"})
	until(t, "the first state", func() bool { return all(rs, func(v lbstate.View) bool { return len(v.Services) == 1 }) })
	began := counting.watches.Load()
	var rev uint64
	for i := range 10 {
		rev = put(t, counting.Store, "two", 10+i, nil)
		until(t, "a change", func() bool { return all(rs, func(v lbstate.View) bool { return v.Revision == rev }) })
	}
	if n := counting.watches.Load() - began; n > 0 {
		t.Errorf("the store was asked %d times for 10 changes to 20 agents that follow already", n)
	}
	if began > 10 {
		t.Errorf("the store was asked %d times for 20 agents that came together", began)
	}
	s.views.mu.Lock()
	if n := len(s.views.open); n != 1 {
		t.Errorf("%d views of one set of labels", n)
	}
	for _, v := range s.views.open {
		m, _ := v.state()
		a, err := m.delta(7, rev-1, true)
		b, again := m.delta(7, rev-1, true)
		if err != nil || again != nil || a != b || len(a.chunks) != 1 {
			t.Errorf("a change is encoded again for each agent: %v, %v", err, again)
		}
	}
	s.views.mu.Unlock()
}

// A change costs the same whatever else there is.
func TestChangeCostsTheSameAmongManyServices(t *testing.T) {
	size := map[int]int{}
	for _, n := range []int{1, 300} {
		store := newStore(t)
		for i := range n {
			put(t, store, fmt.Sprintf("service-%03d", i), 100+i, nil)
		}
		s, addr, _ := serve(t, store, 7, nil)
		rs := followers(t, 1, addr, nil)
		until(t, "the first state", func() bool { return len(rs[0].last().Services) == n })
		before := rs[0].last().Revision
		rev := put(t, store, "service-000", 7, nil)
		until(t, "the change", func() bool { return rs[0].last().Revision == rev })
		v := viewOf(s, map[string]string{})
		m, _ := v.state()
		e, err := m.delta(7, before, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range e.chunks {
			size[n] += proto.Size(c)
		}
	}
	// Revisions grow, and their encoding by a byte or two.
	if size[300] > size[1]+8 || size[1] > 512 {
		t.Errorf("bytes of one change, by number of services: %v", size)
	}
}

// INV-13: from any revision that a view covers, its delta leads to the present.
func TestDeltasOfAView(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		v := &view{}
		type known struct {
			revision uint64
			state    *state
		}
		present := map[string]uint64{}
		var past []known
		var at uint64
		var profile *lbstate.DirectorProfile
		remember := func() {
			u := &agentpb.Update{Cluster: 7, Revision: at, Full: true}
			say(u, profile)
			for name, version := range present {
				u.Services = append(u.Services, desired(name, version))
			}
			past = append(past, known{at, (&state{}).apply(u)})
		}
		v.take(lbstate.Update{Full: true})
		remember()
		for range 1 + rnd.IntN(2*keptSteps) {
			u := lbstate.Update{Since: at}
			at += 1 + uint64(rnd.IntN(3))
			u.Revision = at
			for range 1 + rnd.IntN(4) {
				name := fmt.Sprintf("s%d", rnd.IntN(12))
				if _, ok := present[name]; ok && rnd.IntN(3) == 0 {
					delete(present, name)
					u.Services = slices.DeleteFunc(u.Services, func(s lbstate.ServiceStatus) bool { return s.Name == name })
					u.Removed = append(u.Removed, name)
					continue
				}
				if slices.Contains(u.Removed, name) || slices.ContainsFunc(u.Services, func(s lbstate.ServiceStatus) bool { return s.Name == name }) {
					continue
				}
				present[name] = at
				u.Services = append(u.Services, serviceAt(name, at))
			}
			if rnd.IntN(4) == 0 {
				u.ProfileChanged, profile = true, nil
				if rnd.IntN(3) > 0 {
					profile = &lbstate.DirectorProfile{Name: fmt.Sprintf("p%d", rnd.IntN(3)), Revision: at}
				}
			}
			u.Profile = profile
			v.take(u)
			remember()
		}
		m, _ := v.state()
		last := past[len(past)-1].state
		if m.sum(true) != last.sum(true) || m.sum(false) != last.sum(false) {
			t.Fatalf("the view's digest is not that of its services and its profile")
		}
		covered := 0
		for _, k := range past {
			if !m.covers(k.revision) {
				continue
			}
			covered++
			e, err := m.delta(7, k.revision, true)
			if err != nil {
				t.Fatal(err)
			}
			a := assembler{limit: 1 << 20}
			var u *agentpb.Update
			for _, c := range e.chunks {
				if u, err = a.add(c.GetChunk()); err != nil {
					t.Fatal(err)
				}
			}
			got := k.state.apply(u)
			if u.GetSince() != k.revision || got.revision != at || got.sum(true) != last.sum(true) || got.sum(true) != u.GetDigest() || len(got.entries) != len(last.entries) {
				t.Fatalf("from revision %d: %d services at %d, want %d at %d", k.revision, len(got.entries), got.revision, len(last.entries), at)
			}
		}
		if covered < min(len(past), keptSteps) {
			t.Errorf("%d of %d revisions are covered", covered, len(past))
		}
	}
}

func serviceAt(name string, version uint64) lbstate.ServiceStatus {
	return lbstate.ServiceStatus{
		Service: lbstate.Service{Name: name, VIP: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: lbstate.TCP}, Version: version,
	}
}

// What came after the base that is kept is bounded.
func TestViewForgets(t *testing.T) {
	v := &view{}
	v.take(lbstate.Update{Full: true, Revision: 1})
	for i := uint64(2); i < 10; i++ {
		u := lbstate.Update{Revision: i, Since: i - 1}
		for range keptServices / 3 {
			u.Services = append(u.Services, serviceAt(fmt.Sprint("s", len(u.Services)), i))
		}
		v.take(u)
	}
	m, _ := v.state()
	if len(m.steps) != 3 || m.base != 6 || m.covers(5) || !m.covers(6) || !m.covers(9) || m.covers(10) {
		t.Errorf("%d steps after revision %d", len(m.steps), m.base)
	}
}

func FuzzUpdate(f *testing.F) {
	for _, u := range []*agentpb.Update{
		stateOf(7, 5, names5()),
		{Cluster: 7, Revision: 6, Since: 5, Removed: []string{"s1"}, Services: []*lbstatepb.DesiredService{desired("s2", 6)}},
		{Cluster: 7, Revision: 6, Since: 5, Profile: &lbstatepb.DesiredProfile{Name: "edge", Revision: 6, Snat: "all"}},
	} {
		data, err := proto.Marshal(u)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		u := new(agentpb.Update)
		if proto.Unmarshal(data, u) != nil {
			return
		}
		have := (&state{}).apply(stateOf(7, 5, names5()))
		next := have.apply(u)
		var digest uint64
		for name, e := range next.entries {
			digest += pairDigest(name, e.version)
		}
		if digest != next.digest {
			t.Fatal("the digest is not that of the services")
		}
		next.view()
		Guard{}.withDefaults().judge(have, next, map[string]struct{}{})
		again := stateFromBase(next.base(1))
		if again.sum(true) != next.sum(true) || again.sum(false) != next.sum(false) || len(again.entries) != len(next.entries) {
			t.Fatalf("the journal keeps %d services of %d", len(again.entries), len(next.entries))
		}
	})
}

func FuzzAgentMessage(f *testing.F) {
	for _, m := range []*agentpb.AgentMessage{
		helloOf(&agentpb.Hello{Name: "a", Labels: map[string]string{"k": "v"}, Cluster: 7}),
		{Message: &agentpb.AgentMessage_Ack{Ack: appliedAck(lbstate.Applied{Revision: 3, Failures: []lbstate.Failure{{Object: "o"}}})}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(agentpb.AgentMessage)
		if proto.Unmarshal(data, m) != nil {
			return
		}
		k := newKnown(10, time.Minute)
		if h := m.GetHello(); h != nil && checkHello(h) == nil {
			k.connected(Hello{Name: h.GetName(), Labels: h.GetLabels()}, "s", false)
		}
		k.connected(Hello{Name: "a"}, "s", false)
		k.acked("a", m.GetAck())
		for _, a := range k.list() {
			if len(a.Applied.Failures) > maxFailures || len(a.Rejected) > maxReason || len(a.Held) > maxReason {
				t.Errorf("an agent's word takes the server's memory: %d failures", len(a.Applied.Failures))
			}
		}
	})
}

// Labels that are not the same never share a view.
func TestLabelsKeyIsUnique(t *testing.T) {
	a, b := map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "1\x00b\x002"}
	if labelsKey(a) == labelsKey(b) {
		t.Errorf("%q and %q have the same key", a, b)
	}
}
