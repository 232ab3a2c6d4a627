package lbchecks_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback is an address of this host that no other process uses, where there
// are such: a port of it that is closed is not taken as the source of somebody's
// connection.
func loopback() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
}

// backend accepts connections, and counts them, while it is open.
type backend struct {
	t    *testing.T
	addr netip.AddrPort
	l    net.Listener
	seen atomic.Int64
	wg   sync.WaitGroup
}

func newBackend(t *testing.T) *backend {
	b := &backend{t: t, addr: netip.AddrPortFrom(loopback(), 0)}
	b.open()
	t.Cleanup(b.close)
	return b
}

func (b *backend) open() {
	b.t.Helper()
	l, err := net.Listen("tcp", b.addr.String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.l, b.addr = l, netip.MustParseAddrPort(l.Addr().String())
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.seen.Add(1)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			c.Close()
		}
	})
}

// wait waits for n more connections.
func (b *backend) wait(n int64) {
	b.t.Helper()
	deadline := time.After(20 * time.Second)
	for until := b.seen.Load() + n; b.seen.Load() < until; {
		select {
		case <-deadline:
			b.t.Fatalf("not %d connections in 20 s", n)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (b *backend) close() {
	b.l.Close()
	b.wg.Wait()
}

// leads is a Leadership that a test changes.
type leads struct {
	mu      sync.Mutex // guards what follows
	leading bool
	term    uint64
	changed chan struct{}
}

func (l *leads) Leadership() (bool, uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading, l.term, l.changed
}

func (l *leads) set(leading bool, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leading, l.term = leading, term
	close(l.changed)
	l.changed = make(chan struct{})
}

type world struct {
	t     *testing.T
	local *lbstate.Local
	store *lbstate.Store
	leads *leads
	*lbchecks.Runner
}

// newWorld runs a Runner until the end of the test. It leads in term 1.
func newWorld(t *testing.T) *world { return newWorldOf(t, healthcheck.Config{}) }

func newWorldOf(t *testing.T, engine healthcheck.Config) *world {
	return newWorldWith(t, lbchecks.Config{Engine: engine})
}

func newWorldWith(t *testing.T, cfg lbchecks.Config) *world {
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, local: local, store: lbstate.NewStore(state, local, lbstate.AllowExecChecks()), leads: &leads{leading: true, term: 1, changed: make(chan struct{})}}
	cfg.Store, cfg.Leadership = w.store, w.leads
	if w.Runner, err = lbchecks.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		local.Close()
	})
	return w
}

// put makes a service of one backend, whose checks go to b.
func (w *world) put(name string, port int, check lbstate.HealthCheck, b *backend) {
	w.t.Helper()
	w.putAt(netip.MustParseAddr("10.1.0.1"), name, port, check, b)
}

func (w *world) putAt(addr netip.Addr, name string, port int, check lbstate.HealthCheck, b *backend) {
	w.t.Helper()
	if check.Type == "tcp" {
		check.Address, check.Port = b.addr.Addr(), int(b.addr.Port())
	} else {
		check.URL = "http://" + b.addr.String() + "/healthz"
	}
	check.Interval, check.Timeout = lbstate.Duration(100*time.Millisecond), lbstate.Duration(90*time.Millisecond)
	check.Rise, check.Fall = 2, 2
	s := lbstate.Service{Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Port: port, HealthCheck: &check}
	s.Backends = []lbstate.Backend{{Address: addr, Port: 8080}}
	if _, err := w.store.PutService(w.t.Context(), s, lbstate.WriteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) health(name string) lbstate.BackendHealth {
	w.t.Helper()
	s, err := w.store.Service(w.t.Context(), name, lbstate.ReadOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return *s.Backends[0].Health
}

// until waits for a service's first backend to have a state.
func (w *world) until(name string, want lbstate.HealthState) lbstate.BackendHealth {
	w.t.Helper()
	watcher := w.store.Watch(lbstate.WatchOptions{})
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	for {
		u, err := watcher.Next(ctx)
		if err != nil {
			w.t.Fatalf("%s is not %s: it is %+v", name, want, w.health(name))
		}
		for _, s := range u.Services {
			if s.Name == name && s.Backends[0].Health.State == want {
				return *s.Backends[0].Health
			}
		}
	}
}

var (
	tcp  = lbstate.HealthCheck{Type: "tcp"}
	http = lbstate.HealthCheck{Type: "http", ExpectBody: "^ok$"}
)

func TestBackendsAreSeenToFallAndRise(t *testing.T) {
	for name, check := range map[string]lbstate.HealthCheck{"tcp": tcp, "http": http} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t)
			w := newWorld(t)
			w.put("web", 80, check, b)
			w.until("web", lbstate.Up)
			b.close()
			if h := w.until("web", lbstate.Down); h.Message == "" {
				t.Error("nobody says why it is down")
			}
			b.open()
			w.until("web", lbstate.Up)
		})
	}
}

// Two services that ask the same of one backend share a check; one that joins
// is told what the check has found already, without waiting for a change.
func TestServicesShareACheck(t *testing.T) {
	b := newBackend(t)
	w := newWorld(t)
	w.put("a", 80, http, b)
	w.until("a", lbstate.Up)
	w.put("b", 81, http, b)
	w.until("b", lbstate.Up)
	began := time.Now()
	b.wait(10)
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("10 probes in %v at an interval of 100ms: each service has its own", took)
	}
	b.close()
	w.until("a", lbstate.Down)
	w.until("b", lbstate.Down)
	if _, err := w.store.DeleteService(t.Context(), "a", lbstate.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.open()
	w.until("b", lbstate.Up)
}

// INV-32: what was found in another term than the entry's is dropped, and said
// again when the terms agree.
func TestOnlyTheLeaderOfTheTermIsHeard(t *testing.T) {
	b := newBackend(t)
	w := newWorld(t)
	w.local.SetTerm(2)
	w.put("web", 80, http, b)
	b.wait(5) // by then its state was reported, in vain
	if h := w.health("web"); h.State != lbstate.Unknown {
		t.Errorf("a report of a former term was heeded: %+v", h)
	}
	w.leads.set(true, 2)
	w.until("web", lbstate.Up)

	// A new leader starts from what is stored: nothing moves.
	before, err := w.store.Revision(t.Context(), lbstate.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.local.SetTerm(3)
	w.leads.set(true, 3)
	b.wait(6)
	if now, err := w.store.Revision(t.Context(), lbstate.ReadOptions{}); err != nil || now != before {
		t.Errorf("revision %d became %d under a new leader, %v", before, now, err)
	}

	// One that does not lead does not probe.
	w.leads.set(false, 4)
	b.close()
	b.open()
	b.seen.Store(0)
	w.put("other", 81, http, b)
	time.Sleep(500 * time.Millisecond) // nothing is to happen
	if n := b.seen.Load(); n != 0 {
		t.Errorf("%d probes by a node that does not lead", n)
	}
}

func millis(n int) lbstate.Duration { return lbstate.Duration(time.Duration(n) * time.Millisecond) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}
