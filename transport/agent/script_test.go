package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// scripted is a server that does what a test says, right or wrong: one script
// for each stream, and then nothing.
type scripted struct {
	agentpb.UnimplementedAgentsServer
	t       *testing.T
	addr    string
	scripts chan func(*wire) error
	ended   chan error // of each script
}

// wire is one stream on the scripted server's side.
type wire struct {
	grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]
	hello *agentpb.Hello
}

func newScripted(t *testing.T) *scripted {
	t.Helper()
	s := &scripted{t: t, scripts: make(chan func(*wire) error, 100), ended: make(chan error, 100)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	g := grpc.NewServer()
	agentpb.RegisterAgentsServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s
}

func (s *scripted) Stream(g grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]) error {
	m, err := g.Recv()
	if err != nil {
		return err
	}
	select {
	case script := <-s.scripts:
		err := script(&wire{g, m.GetHello()})
		s.ended <- err
		return err
	case <-g.Context().Done():
		return nil
	}
}

// run hands the next stream to a script and waits for its end.
func (s *scripted) run(script func(*wire) error) {
	s.t.Helper()
	s.scripts <- script
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("script: %v", err)
		}
	case <-time.After(patience):
		s.t.Fatal("the script does not end")
	}
}

func (w *wire) say(m *agentpb.ServerMessage) error { return w.Send(m) }

func (w *wire) welcome(cluster uint64) error {
	return w.say(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
		Cluster: cluster, Server: "scripted", HeartbeatMillis: 20, SilenceMillis: 5000,
	}}})
}

// chunks cuts an update into pieces of n bytes.
func chunks(t testing.TB, u *agentpb.Update, n int) []*agentpb.Chunk {
	t.Helper()
	data, err := proto.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	var c chunker
	var out []*agentpb.Chunk
	for piece := range slices.Chunk(data, n) {
		c.write(piece)
		c.cut(false)
	}
	for _, m := range c.chunks {
		out = append(out, m.GetChunk())
	}
	out[len(out)-1].Last = true
	return out
}

func (w *wire) send(chunks ...*agentpb.Chunk) error {
	for _, c := range chunks {
		if err := w.say(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Chunk{Chunk: c}}); err != nil {
			return err
		}
	}
	return nil
}

// ack waits for the agent's word on a revision.
func (w *wire) ack(kind agentpb.Ack_Kind, revision uint64) (*agentpb.Ack, error) {
	for {
		m, err := w.Recv()
		if err != nil {
			return nil, fmt.Errorf("waiting for %v of revision %d: %w", kind, revision, err)
		}
		a := m.GetAck()
		if a == nil || a.GetKind() == agentpb.Ack_FAILED || a.GetRevision() != revision {
			continue
		}
		if a.GetKind() == kind || kind == agentpb.Ack_RECEIVED && covers(a.GetKind()) {
			return a, nil
		}
		return a, fmt.Errorf("the agent says %v, want %v", a, kind)
	}
}

// gone waits until the agent ends the stream.
func (w *wire) gone() error {
	for {
		if _, err := w.Recv(); err != nil {
			return nil //nolint:nilerr // that is what is waited for
		}
	}
}

// holds checks what an agent says that it has.
func (w *wire) holds(cluster, revision, digest uint64) error {
	if h := w.hello; h.GetCluster() != cluster || h.GetRevision() != revision || h.GetDigest() != digest {
		return fmt.Errorf("the agent comes with %v, want cluster %d, revision %d, digest %x", h, cluster, revision, digest)
	}
	return nil
}

// stateOf is a whole state, as an update.
func stateOf(cluster, revision uint64, versions map[string]uint64) *agentpb.Update {
	u := &agentpb.Update{Cluster: cluster, Revision: revision, Full: true}
	for name, version := range versions {
		u.Services = append(u.Services, desired(name, version))
		u.Digest += pairDigest(name, version)
	}
	slices.SortFunc(u.Services, func(a, b *lbstatepb.DesiredService) int { return strings.Compare(a.GetName(), b.GetName()) })
	return u
}

func names5() map[string]uint64 {
	return map[string]uint64{"s1": 1, "s2": 2, "s3": 3, "s4": 4, "s5": 5}
}

func (r *recorder) revisions() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []uint64
	for _, v := range r.views {
		out = append(out, v.Revision)
	}
	return out
}

// INV-10, INV-13: an update that is cut at any chunk changes nothing, and the
// agent comes back with what it had.
func TestEveryCutOfAnUpdateIsResumed(t *testing.T) {
	s := newScripted(t)
	var r recorder
	follow(t, t.TempDir(), &r, nil, s.addr)
	first := stateOf(7, 5, names5())
	s.run(func(w *wire) error {
		return errors.Join(w.holds(0, 0, 0), w.welcome(7), w.send(chunks(t, first, 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
	})
	have := first
	for round, kind := range []string{"delta", "full"} {
		next := &agentpb.Update{
			Cluster: 7, Revision: have.GetRevision() + 1, Since: have.GetRevision(), Removed: []string{"s1"},
			Services: []*lbstatepb.DesiredService{desired("s2", 20+uint64(round)), desired("s9", 9)},
		}
		versions := map[string]uint64{"s2": 20 + uint64(round), "s3": 3, "s4": 4, "s5": 5, "s9": 9}
		whole := stateOf(7, next.GetRevision(), versions)
		next.Digest = whole.GetDigest()
		if kind == "full" {
			next = whole
		}
		cut := chunks(t, next, 7)
		for n := range cut {
			s.run(func(w *wire) error {
				return errors.Join(w.holds(7, have.GetRevision(), have.GetDigest()), w.welcome(7), w.send(cut[:n]...))
			})
		}
		t.Logf("%s: cut at %d places", kind, len(cut))
		s.run(func(w *wire) error {
			return errors.Join(w.holds(7, have.GetRevision(), have.GetDigest()), w.welcome(7), w.send(cut...), errAck(w.ack(agentpb.Ack_RECEIVED, next.GetRevision())))
		})
		until(t, "the whole update is applied", func() bool { return r.last().Revision == next.GetRevision() && len(r.last().Services) == 5 })
		have = whole
	}
	for _, revision := range r.revisions() {
		if revision < 5 || revision > 7 {
			t.Errorf("revision %d was applied, which never was", revision)
		}
	}
}

func errAck(_ *agentpb.Ack, err error) error { return err }

// INV-10: what is lost, repeated, swapped or changed on the way ends the stream,
// and is never applied.
func TestUpdatesThatArriveWrongly(t *testing.T) {
	s := newScripted(t)
	var r recorder
	c, _ := follow(t, t.TempDir(), &r, nil, s.addr)
	first := stateOf(7, 5, names5())
	s.run(func(w *wire) error {
		return errors.Join(w.welcome(7), w.send(chunks(t, first, 100)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
	})
	until(t, "the first state", func() bool { return r.last().Revision == 5 })
	next := stateOf(7, 6, map[string]uint64{"s1": 6, "s2": 2, "s3": 3, "s4": 4, "s5": 5})
	other := stateOf(7, 6, map[string]uint64{"s1": 6, "s2": 2, "s3": 3, "s4": 6, "s5": 5})
	for _, test := range []struct {
		name string
		does func(w *wire, cs []*agentpb.Chunk) error
		says string
	}{
		{"swapped", func(w *wire, cs []*agentpb.Chunk) error { return w.send(cs[0], cs[2], cs[1]) }, "checksum"},
		{"repeated", func(w *wire, cs []*agentpb.Chunk) error { return w.send(cs[0], cs[1], cs[1]) }, "checksum"},
		{"lost", func(w *wire, cs []*agentpb.Chunk) error { return w.send(cs[0], cs[2]) }, "checksum"},
		{"not from the beginning", func(w *wire, cs []*agentpb.Chunk) error { return w.send(cs[1]) }, "checksum"},
		{"of two updates", func(w *wire, cs []*agentpb.Chunk) error { return w.send(cs[0], chunks(t, other, 50)[2]) }, "checksum"},
		{"changed", func(w *wire, cs []*agentpb.Chunk) error {
			cs[1].Data[3] ^= 1
			return w.send(cs[:2]...)
		}, "checksum"},
		{"ended too early", func(w *wire, cs []*agentpb.Chunk) error {
			cs[1].Last = true
			return w.send(cs[:2]...)
		}, "update"},
		{"another cluster's in this one's stream", func(w *wire, _ []*agentpb.Chunk) error {
			return w.send(chunks(t, stateOf(8, 6, names5()), 50)...)
		}, "cluster 0000000000000008 from a server of cluster 0000000000000007"},
		{"whole, with a wrong digest", func(w *wire, _ []*agentpb.Chunk) error {
			u := proto.CloneOf(next)
			u.Digest++
			return w.send(chunks(t, u, 50)...)
		}, "digest"},
		{"older", func(w *wire, _ []*agentpb.Chunk) error {
			return errors.Join(w.send(chunks(t, stateOf(7, 4, names5()), 50)...), errAck(w.ack(agentpb.Ack_HELD, 4)))
		}, "revision 4, but this agent has accepted revision 5"},
		{"a second welcome", func(w *wire, _ []*agentpb.Chunk) error { return w.welcome(8) }, "a second time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.run(func(w *wire) error {
				return errors.Join(w.holds(7, 5, first.GetDigest()), w.welcome(7), test.does(w, chunks(t, next, 50)), w.gone())
			})
			until(t, "it says why", func() bool { return strings.Contains(c.Status().LastError, test.says) })
			if r.last().Revision != 5 || len(r.last().Services) != 5 {
				t.Errorf("applied: revision %d, %v", r.last().Revision, names(r.last()))
			}
		})
	}
	s.t = t
	s.run(func(w *wire) error {
		return errors.Join(w.holds(7, 5, first.GetDigest()), w.welcome(7), w.send(chunks(t, next, 50)...), errAck(w.ack(agentpb.Ack_RECEIVED, 6)))
	})
	until(t, "the right one after all", func() bool { return r.last().Revision == 6 })
}

// A change that does not continue what the agent has, or whose digest tells that
// the agent has something else, is answered by asking for the whole.
func TestChangesThatDoNotFit(t *testing.T) {
	s := newScripted(t)
	var r recorder
	follow(t, t.TempDir(), &r, nil, s.addr)
	s.run(func(w *wire) error {
		wantFull := func(u *agentpb.Update, says string) error {
			if err := w.send(chunks(t, u, 1000)...); err != nil {
				return err
			}
			a, err := w.ack(agentpb.Ack_REJECTED, u.GetRevision())
			if err == nil && (!a.GetWantFull() || !strings.Contains(a.GetReason(), says)) {
				err = fmt.Errorf("the agent says %v", a)
			}
			return err
		}
		whole := stateOf(7, 5, names5())
		delta := func(since, revision, digest uint64) *agentpb.Update {
			return &agentpb.Update{Cluster: 7, Since: since, Revision: revision, Digest: digest, Services: []*lbstatepb.DesiredService{desired("s1", revision)}}
		}
		return errors.Join(
			w.welcome(7),
			wantFull(delta(3, 4, 1), "does not continue revision 0"),
			w.send(chunks(t, whole, 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)),
			wantFull(delta(6, 8, 1), "does not continue revision 5"),
			wantFull(delta(3, 8, 1), "does not continue revision 5"),
			wantFull(delta(5, 4, 1), "does not continue revision 5"),
			wantFull(delta(5, 9, 1), "digest"),
			w.send(chunks(t, stateOf(7, 9, map[string]uint64{"s1": 9, "s2": 2, "s3": 3, "s4": 4, "s5": 5}), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 9)),
		)
	})
	until(t, "the last whole state", func() bool { return r.last().Revision == 9 })
	if got := r.revisions(); slices.ContainsFunc(got, func(n uint64) bool { return n != 5 && n != 9 }) {
		t.Errorf("applied revisions %v", got)
	}
}

// An update that is larger than the agent takes costs it no more memory than
// that.
func TestOversizedUpdate(t *testing.T) {
	s := newScripted(t)
	c, err := NewClient(ClientConfig{
		Servers: []string{s.addr}, Name: "a1", Dir: t.TempDir(), Applier: new(recorder), MaxUpdate: 1 << 20,
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer ended(t, cancel, done)
	s.run(func(w *wire) error {
		if err := w.welcome(7); err != nil {
			return err
		}
		var cr chunker
		for range 64 {
			cr.write(make([]byte, chunkBytes-1))
			cr.cut(false)
		}
		for _, m := range cr.chunks {
			_ = w.Send(m) // the agent ends the stream at some point
		}
		return w.gone()
	})
	until(t, "it says why", func() bool {
		return strings.Contains(c.Status().LastError, "larger than this agent takes (1048576 bytes)")
	})
	s.run(func(w *wire) error {
		_ = w.welcome(7)
		_ = w.send(&agentpb.Chunk{Data: make([]byte, 4<<20)})
		return w.gone()
	})
	until(t, "one message that is too large", func() bool { return strings.Contains(c.Status().LastError, "larger than max") })
}

// A server that falls silent, or never answers, is left within the time that it
// has announced itself.
func TestSilentServerIsLeft(t *testing.T) {
	silent, good := newScripted(t), newScripted(t)
	var r recorder
	follow(t, t.TempDir(), &r, nil, silent.addr, good.addr)
	quiet := func(w *wire) error {
		err := w.say(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{Cluster: 7, SilenceMillis: 200, HeartbeatMillis: 50}}})
		return errors.Join(err, w.gone())
	}
	for range 100 {
		silent.scripts <- quiet
	}
	good.run(func(w *wire) error {
		return errors.Join(w.welcome(7), w.send(chunks(t, stateOf(7, 5, names5()), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
	})
	until(t, "the other serves", func() bool { return r.last().Revision == 5 })
}

// A state that could not be made durable is neither applied nor acknowledged.
// INV-11
func TestJournalThatCannotBeWritten(t *testing.T) {
	s := newScripted(t)
	var r recorder
	dir := filepath.Join(t.TempDir(), "journal")
	c, _ := follow(t, dir, &r, nil, s.addr)
	s.run(func(w *wire) error {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return errors.Join(w.welcome(7), w.send(chunks(t, stateOf(7, 5, names5()), 1000)...), w.gone())
	})
	until(t, "it says why", func() bool {
		return strings.Contains(c.Status().LastError, "could not be made durable") && c.Status().Journal.Error != ""
	})
	if len(r.revisions()) != 0 || c.Status().Revision != 0 {
		t.Errorf("applied %v, accepted %d", r.revisions(), c.Status().Revision)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.run(func(w *wire) error {
		return errors.Join(w.holds(0, 0, 0), w.welcome(7), w.send(chunks(t, stateOf(7, 5, names5()), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
	})
	until(t, "it is applied once it can be kept", func() bool { return r.last().Revision == 5 })
}

// INV-12: the guard's releases.
func TestReleases(t *testing.T) {
	hold := func(t *testing.T) (*scripted, *Client, *recorder) {
		s := newScripted(t)
		r := new(recorder)
		c, _ := follow(t, t.TempDir(), r, nil, s.addr)
		s.run(func(w *wire) error {
			return errors.Join(w.welcome(7), w.send(chunks(t, stateOf(7, 5, names5()), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
		})
		s.run(func(w *wire) error { // all but one vanish, and no one says that they were removed
			return errors.Join(w.welcome(7), w.send(chunks(t, stateOf(7, 9, map[string]uint64{"s1": 9}), 1000)...), errAck(w.ack(agentpb.Ack_HELD, 9)), w.gone())
		})
		return s, c, r
	}
	t.Run("by a server", func(t *testing.T) {
		s, c, r := hold(t)
		s.run(func(w *wire) error {
			if !strings.Contains(w.hello.GetHeld(), "4 of 5 services would vanish") {
				return fmt.Errorf("the agent comes with %v", w.hello)
			}
			release := &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Release{Release: &agentpb.Release{Reason: "alice: it is meant"}}}
			return errors.Join(w.holds(7, 5, stateOf(7, 5, names5()).GetDigest()), w.welcome(7), w.say(release), w.gone())
		})
		until(t, "it is applied", func() bool { return r.last().Revision == 9 && c.Status().Held == nil })
		s.run(func(w *wire) error { return w.holds(7, 9, pairDigest("s1", 9)) })
	})
	t.Run("by another cluster's server it is not", func(t *testing.T) {
		s, c, r := hold(t)
		s.run(func(w *wire) error {
			release := &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Release{Release: &agentpb.Release{Reason: "mallory"}}}
			bye := &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Bye{Bye: &agentpb.Bye{Reason: "that is all"}}}
			return errors.Join(w.welcome(8), w.say(release), w.say(bye), w.gone())
		})
		if r.last().Revision != 5 || c.Status().Held == nil {
			t.Errorf("applied revision %d, held %v", r.last().Revision, c.Status().Held)
		}
	})
	t.Run("explicit removals pass", func(t *testing.T) {
		s, _, r := hold(t)
		u := stateOf(7, 9, map[string]uint64{"s1": 9})
		u.Since, u.Removed = 5, []string{"s2", "s3", "s4", "s5"}
		s.run(func(w *wire) error {
			return errors.Join(w.welcome(7), w.send(chunks(t, u, 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 9)))
		})
		until(t, "it is applied", func() bool { return r.last().Revision == 9 })
	})
	t.Run("of a restored cluster", func(t *testing.T) {
		s, _, r := hold(t)
		s.run(func(w *wire) error {
			welcome := &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
				Cluster: 8, SilenceMillis: 5000, HeartbeatMillis: 20, Predecessors: []uint64{6, 7},
			}}}
			return errors.Join(w.say(welcome), w.send(chunks(t, stateOf(8, 3, names5()), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 3)))
		})
		until(t, "its state is applied", func() bool { return r.last().Cluster == 8 && r.last().Revision == 3 })
	})
}

// INV-12: Server.Release reaches an agent that comes later.
func TestServerReleases(t *testing.T) {
	store := newStore(t)
	s, addr, _ := serve(t, store, 7, nil)
	if err := s.Release("a1", "", "bob"); err == nil {
		t.Error("a release of whatever is held")
	}
	// The agent holds another cluster's state.
	dir := t.TempDir()
	other := newScripted(t)
	var r recorder
	_, stop := follow(t, dir, &r, nil, other.addr)
	other.run(func(w *wire) error {
		return errors.Join(w.welcome(9), w.send(chunks(t, stateOf(9, 5, names5()), 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 5)))
	})
	until(t, "the other cluster's state", func() bool { return r.last().Revision == 5 })
	stop()
	put(t, store, "one", 1, nil)
	c, _ := follow(t, dir, &r, nil, addr)
	until(t, "the state is held", func() bool { return c.Status().Held != nil })
	held := func() string { a := s.Agents(); return a[0].Held }
	until(t, "the server knows", func() bool { return held() != "" })
	connects := s.Agents()[0].Connects
	if err := s.Release("a1", "another state is held", "bob"); err != nil {
		t.Fatal(err)
	}
	until(t, "it comes again", func() bool { return s.Agents()[0].Connects > connects+1 })
	if c.Status().Held == nil {
		t.Error("a release for another reason let the state pass")
	}
	if err := s.Release("a1", held(), "bob: the cluster was replaced"); err != nil {
		t.Fatal(err)
	}
	until(t, "it is applied", func() bool { return r.last().Cluster == 7 && fmt.Sprint(names(r.last())) == "[one]" })
	until(t, "the agent follows", func() bool { return c.Status().Connected && c.Status().Held == nil })
	rev := put(t, store, "two", 2, nil)
	until(t, "what comes after", func() bool { return r.last().Revision == rev })
}

func TestOrderSpreads(t *testing.T) {
	servers := []string{"a", "b", "c"}
	home := map[string]int{}
	for i := range 3000 {
		o := order(fmt.Sprintf("agent-%d", i), servers)
		if !slices.Equal(o, order(fmt.Sprintf("agent-%d", i), servers)) || len(o) != 3 {
			t.Fatalf("%v", o)
		}
		home[o[0]]++
	}
	for s, n := range home {
		if n < 850 || n > 1150 {
			t.Errorf("%s is home to %d of 3000", s, n)
		}
	}
}

// An agent leaves its own server while that is not ready, and returns to it.
func TestAgentReturnsHome(t *testing.T) {
	store := newStore(t)
	var down [2]atomic.Bool
	var addrs []string
	for i := range down {
		_, addr, _ := serve(t, store, 7, func(c *ServerConfig) {
			c.ReadyTimeout = 50 * time.Millisecond
			c.Ready = func(context.Context) error {
				if down[i].Load() {
					return errors.New("it lags")
				}
				return nil
			}
		})
		addrs = append(addrs, addr)
	}
	home := slices.Index(addrs, order("a1", addrs)[0])
	var r recorder
	c, err := NewClient(ClientConfig{
		Servers: addrs, Name: "a1", Dir: t.TempDir(), Applier: &r,
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, RebalanceInterval: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer ended(t, cancel, done)
	servedBy := func(i int) func() bool {
		return func() bool { st := c.Status(); return st.Connected && st.Server == addrs[i] }
	}
	until(t, "served at home", servedBy(home))
	down[home].Store(true)
	until(t, "served by the other", servedBy(1-home))
	down[home].Store(false)
	until(t, "home again", servedBy(home))
}
