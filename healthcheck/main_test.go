package healthcheck

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// target is a Probe whose answers a test decides. It notes when it was asked.
type target struct {
	mu     sync.Mutex // guards what follows
	base   time.Time
	class  Class
	found  string
	takes  time.Duration // before it answers, or until ctx ends
	hard   bool          // it does not look at ctx
	script []Class       // goes before class
	asked  []time.Duration
	now    int // probes at present
	most   int // probes at once
}

func newTarget(class Class, script ...Class) *target {
	return &target{base: time.Now(), class: class, script: script}
}

func (p *target) Probe(ctx context.Context, _ netip.AddrPort) Result {
	p.mu.Lock()
	p.asked = append(p.asked, time.Since(p.base))
	p.now++
	p.most = max(p.most, p.now)
	res := Result{Class: p.class, Found: p.found}
	if len(p.script) > 0 {
		res.Class, p.script = p.script[0], p.script[1:]
	}
	takes, hard := p.takes, p.hard
	p.mu.Unlock()
	if takes > 0 {
		timer := time.NewTimer(takes)
		defer timer.Stop()
		done := ctx.Done()
		if hard {
			done = nil
		}
		select {
		case <-timer.C:
		case <-done:
			res = Result{Class: Timeout}
		}
	}
	p.mu.Lock()
	p.now--
	p.mu.Unlock()
	return res
}

func (p *target) set(class Class) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.class = class
}

func (p *target) slow(takes time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takes = takes
}

// times are when it was asked, since the target was made; take forgets them.
func (p *target) times() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// atOnce says how many probes run at present, and how many did at most.
func (p *target) atOnce() (now, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now, p.most
}

func (p *target) take() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

func gaps(times []time.Duration) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(times); i++ {
		out = append(out, times[i]-times[i-1])
	}
	return out
}

// notes is a Sink and a Metrics that remembers.
type notes struct {
	base time.Time

	mu     sync.Mutex // guards what follows
	refuse error
	figures
}

type figures struct {
	calls    []time.Duration // of the sink
	batches  [][]Transition
	probed   map[Class]int
	late     time.Duration // the most that a success was
	skipped  int
	changes  int
	held     []bool
	reported int
}

// seen is a copy of everything so far.
func (n *notes) seen() figures {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.figures
	f.calls, f.batches, f.held = slices.Clone(f.calls), slices.Clone(f.batches), slices.Clone(f.held)
	f.probed = maps.Clone(f.probed)
	return f
}

func newNotes() *notes { return &notes{base: time.Now(), figures: figures{probed: map[Class]int{}}} }

func (n *notes) Report(_ context.Context, batch []Transition) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, time.Since(n.base))
	n.batches = append(n.batches, slices.Clone(batch))
	return n.refuse
}

func (n *notes) Probed(class Class, _, lateness time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.probed[class]++
	if class == OK {
		n.late = max(n.late, lateness)
	}
}

func (n *notes) Skipped(runs int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.skipped += runs
}

func (n *notes) Transitioned(State, State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changes++
}

func (n *notes) Reported(transitions int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.reported += transitions
	}
}

func (n *notes) HoldChanged(active bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = append(n.held, active)
}

func (n *notes) setRefuse(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = err
}

// got are all transitions so far, in the order in which they came.
func (n *notes) got() []Transition { return slices.Concat(n.seen().batches...) }

// forget begins anew.
func (n *notes) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.figures = figures{probed: map[Class]int{}}
}

// start runs an engine with checks until the end of the test.
func start(t *testing.T, cfg Config, checks ...Check) *Engine {
	t.Helper()
	e, err := New(cfg)
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

func state(t *testing.T, e *Engine, id string) Status {
	t.Helper()
	s, ok := e.Status(id)
	if !ok {
		t.Fatalf("no check %q", id)
	}
	return s
}

func wantState(t *testing.T, e *Engine, id string, want State) {
	t.Helper()
	if s := state(t, e, id); s.State != want {
		t.Fatalf("%s is %v, want %v: %+v", id, s.State, want, s)
	}
}
