package lbchecks

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/lbstate"
)

// turn is a Leadership that a test moves.
type turn struct {
	mu      sync.Mutex // guards what follows
	leading bool
	term    uint64
	changed chan struct{}
}

func (l *turn) Leadership() (bool, uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading, l.term, l.changed
}

func (l *turn) set(leading bool, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.leading, l.term, l.changed = leading, term, make(chan struct{})
}

// asked counts probes, and those that run. Half of them last until they are
// given up.
type asked struct {
	began, running atomic.Int64
}

func (a *asked) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	a.began.Add(1)
	a.running.Add(1)
	defer a.running.Add(-1)
	if target.Addr().As4()[3]%2 == 0 {
		return healthcheck.Result{}
	}
	<-ctx.Done()
	return healthcheck.Result{Class: healthcheck.Timeout}
}

// Checks stop when leadership is lost: not a tick later one is begun, runs, or
// is told of, though thousands a second were. The clock is the test's own, so
// that 'at once' is exact.
func TestChecksStopWithLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := lbstate.New(lbstate.Config{})
		local, err := lbstate.NewLocal(t.TempDir(), state)
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		store := lbstate.NewStore(state, local)
		check := &lbstate.HealthCheck{Type: "tcp", Interval: lbstate.Duration(100 * time.Millisecond), Timeout: lbstate.Duration(80 * time.Millisecond)}
		s := lbstate.Service{Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80, HealthCheck: check}
		for i := range 200 {
			s.Backends = append(s.Backends, lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Port: 80})
		}
		if _, err := store.PutService(t.Context(), s, lbstate.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		probes := &asked{}
		leads := &turn{leading: true, term: 1, changed: make(chan struct{})}
		r, err := New(Config{Store: store, Leadership: leads})
		if err != nil {
			t.Fatal(err)
		}
		r.probes = func(lbstate.HealthCheck) (healthcheck.Probe, error) { return probes, nil }
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()

		for term := uint64(1); term < 10; term++ {
			time.Sleep(997 * time.Millisecond) // in the middle of things
			before := probes.began.Load()
			if before < 1000 || probes.running.Load() == 0 {
				t.Fatalf("term %d: %d probes began, %d run: too few to show anything", term, before, probes.running.Load())
			}
			leads.set(false, term)
			synctest.Wait() // no time goes by
			if n := probes.running.Load(); n != 0 {
				t.Errorf("term %d: %d probes run after leadership was lost", term, n)
			}
			if _, err := r.Status(); err == nil {
				t.Errorf("term %d: what this node knows is still told", term)
			}
			stopped := probes.began.Load()
			time.Sleep(time.Minute)
			if n := probes.began.Load() - stopped; n != 0 {
				t.Errorf("term %d: %d probes began after leadership was lost", term, n)
			}
			probes.began.Store(0)
			local.SetTerm(term + 1)
			leads.set(true, term+1)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
