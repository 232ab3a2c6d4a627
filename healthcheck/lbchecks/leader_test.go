package lbchecks_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
)

// port is one that answers while it is open.
type port struct {
	t    *testing.T
	addr netip.AddrPort
	l    net.Listener
	wg   sync.WaitGroup
}

func newPort(t *testing.T) *port {
	p := &port{t: t, addr: netip.AddrPortFrom(loopback(), 0)}
	p.open()
	t.Cleanup(p.close)
	return p
}

func (p *port) open() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.addr.String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.l, p.addr = l, netip.MustParseAddrPort(l.Addr().String())
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
}

func (p *port) close() {
	p.l.Close()
	p.wg.Wait()
}

// seen is what the state says of each backend, and every change of that.
type seen struct {
	mu      sync.Mutex // guards what follows
	state   map[string]lbstate.HealthState
	changes map[string][]lbstate.HealthState
}

func (s *seen) watch(ctx context.Context, store *lbstate.Store) {
	for w := store.Watch(lbstate.WatchOptions{}); ; {
		u, err := w.Next(ctx)
		if err != nil {
			return
		}
		s.mu.Lock()
		for _, svc := range u.Services {
			for _, b := range svc.Backends {
				key := svc.Name + " " + b.Key()
				if h := b.Health; h != nil && h.State != s.state[key] {
					s.state[key] = h.State
					s.changes[key] = append(s.changes[key], h.State)
				}
			}
		}
		s.mu.Unlock()
	}
}

func (s *seen) count() (up, down int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, state := range s.state {
		switch state {
		case lbstate.Up:
			up++
		case lbstate.Down:
			down++
		}
	}
	return up, down
}

func (s *seen) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes = map[string][]lbstate.HealthState{}
}

func (s *seen) changed() map[string][]lbstate.HealthState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.changes)
}

// 1,000 checks, and leadership moves 20 times between two nodes while a few
// backends fall and return: what the state says follows the backends, and
// nothing else. INV-31, INV-32.
func TestLeadershipMovesUnderLoad(t *testing.T) {
	const (
		services, backends = 20, 50
		moves              = 20
		all                = services * backends
	)
	well, shaky, dead := newPort(t), newPort(t), newPort(t)
	dead.close()
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	store := lbstate.NewStore(state, local)
	shakyOnes, deadOnes := map[string]bool{}, 0
	for i := range services {
		s := lbstate.Service{Name: fmt.Sprint("s", i), VIP: netip.MustParseAddr("192.0.2.10"), Port: 80 + i}
		for j := range backends {
			to := well
			switch {
			case j%5 == 0:
				to = dead
				deadOnes++
			case j%25 == 1:
				to = shaky
			}
			b := lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, 1, byte(i), byte(j)}), Port: 8080}
			b.HealthCheck = &lbstate.HealthCheck{
				Type: "tcp", Address: to.addr.Addr(), Port: int(to.addr.Port()), Rise: 2, Fall: 2,
				Interval: lbstate.Duration(400 * time.Millisecond), Timeout: lbstate.Duration(300 * time.Millisecond),
			}
			if to == shaky {
				shakyOnes[s.Name+" "+b.Key()] = true
			}
			s.Backends = append(s.Backends, b)
		}
		if _, err := store.PutService(t.Context(), s, lbstate.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	watched := &seen{state: map[string]lbstate.HealthState{}}
	watched.forget()
	background.Go(func() { watched.watch(ctx, store) })
	var nodes [2]*leads
	for i := range nodes {
		nodes[i] = &leads{changed: make(chan struct{})}
		r, err := lbchecks.New(lbchecks.Config{Store: store, Leadership: nodes[i], Engine: healthcheck.Config{Jitter: -1}})
		if err != nil {
			t.Fatal(err)
		}
		background.Go(func() {
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	term := uint64(1)
	lead := func(who int) {
		nodes[1-who].set(false, term)
		term++
		local.SetTerm(term)
		nodes[who].set(true, term)
	}
	until := func(what string, up int) {
		t.Helper()
		deadline := time.Now().Add(60 * time.Second)
		for u, d := watched.count(); u != up || d != all-up; u, d = watched.count() {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d up, %d down; want %d up of %d", what, u, d, up, all)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}

	lead(0)
	until("at first", all-deadOnes)
	watched.forget()
	for move := range moves {
		lead(move % 2)
		switch move {
		case moves / 3:
			shaky.close()
		case 2 * moves / 3:
			until("after the fall", all-deadOnes-len(shakyOnes))
			shaky.open()
		}
		// Shorter than rise or fall take, and longer: some leaders see both, some
		// see nothing to the end.
		time.Sleep(time.Duration(100+move%4*100) * time.Millisecond)
	}
	until("at the end", all-deadOnes)

	changes := watched.changed()
	for key := range shakyOnes {
		if got := changes[key]; len(got) != 2 || got[0] != lbstate.Down || got[1] != lbstate.Up {
			t.Errorf("%s fell once and returned: the state says %v", key, got)
		}
		delete(changes, key)
	}
	for key, got := range changes {
		t.Errorf("%s did nothing: the state says %v", key, got)
	}
}
