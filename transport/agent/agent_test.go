package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/ipvskit/ipvskit/lbstate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is an Applier that remembers.
type recorder struct {
	mu    sync.Mutex // guards views
	views []lbstate.View
}

func (r *recorder) Apply(_ context.Context, v lbstate.View) (lbstate.Applied, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.views = append(r.views, v)
	return lbstate.Applied{Revision: v.Revision, Converged: true, Services: len(v.Services)}, nil
}

func (r *recorder) last() lbstate.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.views) == 0 {
		return lbstate.View{}
	}
	return r.views[len(r.views)-1]
}

func newStore(t *testing.T) *lbstate.Store {
	t.Helper()
	st := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), st)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	return lbstate.NewStore(st, local)
}

func serve(t *testing.T, store *lbstate.Store, cluster uint64, change func(*ServerConfig)) (*Server, string, func()) {
	t.Helper()
	cfg := ServerConfig{Store: store, Cluster: func() uint64 { return cluster }, ServerName: "s1", HeartbeatInterval: 50 * time.Millisecond, SilenceTimeout: 2 * time.Second}
	if change != nil {
		change(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions()...)
	s.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	stop := sync.OnceFunc(func() { s.Close(); g.Stop(); <-done })
	t.Cleanup(stop)
	return s, l.Addr().String(), stop
}

func follow(t *testing.T, dir string, a Applier, labels map[string]string, servers ...string) (*Client, func()) {
	t.Helper()
	c, err := NewClient(ClientConfig{Servers: servers, Name: "a1", Dir: dir, Applier: a, Labels: labels, MinBackoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// patience is how long a test waits for what takes milliseconds, on a machine
// that may be very busy.
const patience = 2 * time.Minute

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func put(t *testing.T, store *lbstate.Store, name string, port int, agents map[string]string) uint64 {
	t.Helper()
	res, err := store.PutService(t.Context(), lbstate.Service{
		Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Port: port, Agents: agents,
		Backends: []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1")}},
	}, lbstate.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func names(v lbstate.View) (names []string) {
	for _, s := range v.Services {
		names = append(names, s.Name)
	}
	return names
}

func TestFullThenDeltasThenRemoval(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	s, addr, _ := serve(t, store, 7, nil)
	var r recorder
	follow(t, t.TempDir(), &r, nil, addr)
	until(t, "the full state", func() bool { return fmt.Sprint(names(r.last())) == "[one]" })
	rev := put(t, store, "two", 2, nil)
	until(t, "the second service", func() bool { return r.last().Revision == rev })
	if _, err := store.DeleteService(t.Context(), "one", lbstate.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the removal", func() bool { return fmt.Sprint(names(r.last())) == "[two]" })
	until(t, "the server knows what is applied", func() bool {
		a := s.Agents()
		return len(a) == 1 && a[0].Connected && a[0].AppliedRevision == 3 && a[0].Applied.Converged
	})
}

// INV-11, INV-14
func TestRestartWithoutServerAppliesTheJournal(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	_, addr, stopServer := serve(t, store, 7, nil)
	dir := t.TempDir()
	var r recorder
	_, stop := follow(t, dir, &r, nil, addr)
	until(t, "the full state", func() bool { return len(r.last().Services) == 1 })
	put(t, store, "two", 2, nil)
	until(t, "the delta", func() bool { return len(r.last().Services) == 2 })
	stop()
	stopServer()
	var again recorder
	c, _ := follow(t, dir, &again, nil, addr)
	until(t, "the journalled state", func() bool { return len(again.last().Services) == 2 && again.last().Revision == 2 })
	if st := c.Status(); st.Cluster != 7 || st.Connected {
		t.Errorf("status %+v", st)
	}
}

// INV-10, INV-12
func TestGuardHoldsForeignAndEmptyStates(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	_, addr, stopServer := serve(t, store, 7, nil)
	dir := t.TempDir()
	var r recorder
	_, stop := follow(t, dir, &r, nil, addr)
	until(t, "the full state", func() bool { return len(r.last().Services) == 1 })
	stop()
	stopServer()

	_, foreign, _ := serve(t, newStore(t), 8, nil)
	var again recorder
	c, _ := follow(t, dir, &again, nil, foreign)
	until(t, "the foreign state is held", func() bool { return c.Status().Held != nil })
	if v := again.last(); v.Cluster != 7 || len(v.Services) != 1 {
		t.Errorf("applied %+v, though the state is held", v)
	}
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	until(t, "the released state is applied", func() bool { return again.last().Cluster == 8 })
	if err := c.Release(); !errors.Is(err, ErrNothingHeld) {
		t.Errorf("a second release: %v", err)
	}
}

func TestSelectorChangeRemoves(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, map[string]string{"zone": "a"})
	put(t, store, "two", 2, nil)
	_, addr, _ := serve(t, store, 7, nil)
	var r recorder
	follow(t, t.TempDir(), &r, map[string]string{"zone": "a"}, addr)
	until(t, "both", func() bool { return len(r.last().Services) == 2 })
	put(t, store, "one", 1, map[string]string{"zone": "b"})
	until(t, "only the second", func() bool { return fmt.Sprint(names(r.last())) == "[two]" })
}

func TestNotReadyServerIsLeft(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	_, bad, _ := serve(t, store, 7, func(c *ServerConfig) {
		c.Ready = func(context.Context) error { return fmt.Errorf("this server lags") }
	})
	_, good, _ := serve(t, store, 7, nil)
	var r recorder
	c, _ := follow(t, t.TempDir(), &r, nil, bad, good)
	until(t, "served by the other", func() bool { return c.Status().Server == good && len(r.last().Services) == 1 })
}

func TestSameNameNewestWins(t *testing.T) {
	store := newStore(t)
	s, addr, _ := serve(t, store, 7, nil)
	var r recorder
	_, stop := follow(t, t.TempDir(), &r, nil, addr)
	until(t, "the first", func() bool { return len(s.Agents()) == 1 && s.Agents()[0].Connected })
	follow(t, t.TempDir(), &r, nil, addr)
	until(t, "a takeover", func() bool { return s.Agents()[0].Takeovers > 0 })
	stop()
}

// INV-13: whatever is cut, restarted and coalesced, the agent ends with the state.
func TestAnySequenceEqualsTheFullState(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	store := newStore(t)
	dir := t.TempDir()
	var r recorder
	var highest atomic.Uint64
	_, addr, stopServer := serve(t, store, 7, nil)
	_, stop := follow(t, dir, &r, nil, addr)
	exists := map[int]bool{}
	for range 60 {
		i := rnd.IntN(8)
		switch op := rnd.IntN(10); {
		case op < 6:
			put(t, store, fmt.Sprintf("s%d", i), 100+i, map[string]string{}) // unchanged when it is there
			exists[i] = true
		case op < 8 && exists[i]:
			if _, err := store.DeleteService(t.Context(), fmt.Sprintf("s%d", i), lbstate.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			delete(exists, i)
		case op == 8:
			stop()
			_, stop = follow(t, dir, &r, nil, addr)
		case op == 9:
			stopServer()
			_, addr, stopServer = serve(t, store, 7, nil)
			stop()
			_, stop = follow(t, dir, &r, nil, addr)
		}
	}
	rev := put(t, store, "last", 99, nil)
	highest.Store(rev)
	until(t, "the last revision", func() bool { return r.last().Revision == rev })
	u, err := store.Watch(lbstate.WatchOptions{}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := lbstate.View{Cluster: 7, Revision: rev}
	for _, s := range u.Services {
		want.Services = append(want.Services, lbstate.Desired(s))
	}
	if lbstate.Digest(want) != lbstate.Digest(r.last()) {
		t.Errorf("agent has %v, the state is %v", names(r.last()), names(want))
	}
	var before uint64
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.views {
		if v.Revision < before {
			t.Errorf("went back from revision %d to %d", before, v.Revision)
		}
		before = v.Revision
	}
}

// ended stops a client and checks how Run ends.
func ended(t *testing.T, cancel context.CancelFunc, done <-chan error) {
	t.Helper()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
