package healthcheck_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
)

// tally is the Metrics of an experiment.
type tally struct {
	mu     sync.Mutex // guards what follows
	class  map[healthcheck.Class]int
	late   []time.Duration // of successes
	downs  int
	counts bool // results before the experiment proper do not
}

func (m *tally) Probed(class healthcheck.Class, _, lateness time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.counts {
		return
	}
	m.class[class]++
	if class == healthcheck.OK {
		m.late = append(m.late, lateness)
	}
}

func (m *tally) Transitioned(_, to healthcheck.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if to == healthcheck.Down {
		m.downs++
	}
}

func (m *tally) Skipped(int)         {}
func (m *tally) Reported(int, error) {}
func (m *tally) HoldChanged(bool)    {}

func (m *tally) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.class, m.late, m.counts = map[healthcheck.Class]int{}, nil, true
}

func p99(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[len(d)*99/100]
}

// clock measures how late this machine itself is, until stop is called: the
// lateness of a timer every 10 ms that nothing but the machine can hold up. One
// that is late stands also for those that were due while it was.
func clock() (stop func() (p99late time.Duration)) {
	const every = 10 * time.Millisecond
	quit, done := make(chan struct{}), make(chan []time.Duration)
	go func() {
		var late []time.Duration
		defer func() { done <- late }()
		for {
			due := time.Now().Add(every)
			select {
			case <-quit:
				return
			case <-time.After(time.Until(due)):
				for d := time.Since(due); d > 0; d -= every {
					late = append(late, d)
				}
			}
		}
	}()
	return func() time.Duration {
		close(quit)
		return p99(<-done)
	}
}

// listening is an address at which connections are taken, and closed when the
// other side does. A half-open one is seen only if the engine is so late that
// the kernel completes it; nobody taking those, the queue would fill.
func listening(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				c.Read(make([]byte, 1)) //nolint:errcheck // until the other side ends it
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func running(t testing.TB, cfg healthcheck.Config, checks []healthcheck.Check) *healthcheck.Engine {
	t.Helper()
	e, err := healthcheck.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Update(checks, nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(context.Background()) }()
	t.Cleanup(func() {
		e.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e
}

// A fifth of the targets does not answer at all, and places are few: the others
// are neither failed nor late.
func TestAFifthAreBlackHoles(t *testing.T) {
	const (
		targets  = 500
		interval = 250 * time.Millisecond
		timeout  = 200 * time.Millisecond
		length   = 3 * time.Second
	)
	tcp, err := probe.NewTCP(probe.TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	well := listening(t)
	// A hole is a probe that waits for what never comes, as one of a dropped
	// packet does, on any operating system.
	hole := healthcheck.ProbeFunc(func(ctx context.Context, _ netip.AddrPort) healthcheck.Result {
		<-ctx.Done()
		return healthcheck.Result{Class: healthcheck.Timeout, Phase: "connect", Found: "no answer"}
	})
	var checks []healthcheck.Check
	for i := range targets {
		c := healthcheck.Check{ID: fmt.Sprint("target ", i), Target: well, Probe: tcp, Interval: interval, Timeout: timeout}
		if i%5 == 0 {
			c.Probe, c.Initial = hole, healthcheck.Down
		}
		checks = append(checks, c)
	}
	m := &tally{}
	e := running(t, healthcheck.Config{Metrics: m, InFlight: 40, StalledInFlight: 40, Hold: healthcheck.Hold{Share: 1}}, checks)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if all := e.Statuses(); !slices.ContainsFunc(all, func(s healthcheck.Status) bool { return s.LastAt.IsZero() }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v: not each was asked once", e.Stats())
		}
	}
	m.begin()
	stop := clock()
	time.Sleep(length) // the experiment's length
	machine := stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("%v, p99 lateness of those that are well %v, of the machine %v; %+v", m.class, p99(m.late), machine, e.Stats())
	if m.downs != 0 || e.Stats().Up != targets*4/5 || e.Stats().Down != targets/5 {
		t.Errorf("%d fell, %+v: want none, and the %d holes down as they were", m.downs, e.Stats(), targets/5)
	}
	if want := int(length/interval) * targets * 4 / 5; m.class[healthcheck.OK] < want/4 {
		t.Errorf("%d successes in %v, want about %d", m.class[healthcheck.OK], length, want)
	}
	// The bound is for a machine that is well. One that is late itself makes each
	// of several steps late: the wheel, the worker, the connection before.
	if late := p99(m.late); late > 50*time.Millisecond+2*machine {
		t.Errorf("p99 lateness is %v, want at most 50ms beside the machine's own", late)
	}
}
