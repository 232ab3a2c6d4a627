package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Errors of an Engine.
var (
	ErrUnknownCheck = errors.New("no such check")
	ErrClosed       = errors.New("health-check engine is closed")
)

// Config is what an Engine needs; its zero value is usable.
type Config struct {
	// Sink takes the transitions. Nil: they are only seen in Status, log and
	// metrics.
	Sink Sink
	// Epoch is put into each transition, for a sink that fences off what a
	// former leader says.
	Epoch uint64
	// Confirmations asks for one report, with From equal to To, when a check's
	// own results first confirm its Initial state (rise or fall times in a row).
	Confirmations bool
	// Holds asks for a report, with Held set, when a target's fall is held, and
	// for another when it is not any more.
	Holds bool
	// Coalesce is how long a first transition waits for others. Default 50 ms.
	Coalesce time.Duration
	// MaxBatch is how many transitions are reported in one call. Default 1000.
	MaxBatch int
	// ReportTimeout bounds one call of the sink. Default 10 s. After an error
	// the next follows after BackOff (default 100 ms), then twice that, up to 50
	// times.
	ReportTimeout time.Duration
	BackOff       time.Duration

	// InFlight bounds the probes that run at once, StalledInFlight those of
	// targets whose last result was a timeout, or a failure that was as slow.
	// Default 2048 each, less where the process may not open eight times as many
	// files.
	InFlight, StalledInFlight int
	// Jitter moves each probe by up to this part of its interval, either way.
	// Default 0.02; negative: none.
	Jitter float64
	// Slack is how late this host may be before a failure that its lateness
	// could explain is inconclusive: during a probe, and at its end. Default
	// 10 ms; at least a tenth of a check's timeout is always allowed.
	Slack time.Duration
	// Hold says when mass failure is suspected.
	Hold Hold
	// Overdue is how late the oldest check that is due may be before a watchdog
	// raises an alarm. Default 5 s.
	Overdue time.Duration
	// Events is how many events are kept for Engine.Events. Default 256.
	Events int

	Logger  *zap.Logger // nil: silent
	Metrics Metrics     // nil: none
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value *time.Duration
		std   time.Duration
	}{
		{&c.Coalesce, 50 * time.Millisecond},
		{&c.ReportTimeout, 10 * time.Second},
		{&c.BackOff, 100 * time.Millisecond},
		{&c.Slack, 10 * time.Millisecond},
		{&c.Overdue, 5 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.std
		}
	}
	if c.MaxBatch == 0 {
		c.MaxBatch = 1000
	}
	if c.Events == 0 {
		c.Events = 256
	}
	lane := max(16, min(2048, fileLimit()/8))
	if c.InFlight == 0 {
		c.InFlight = lane
	}
	if c.StalledInFlight == 0 {
		c.StalledInFlight = lane
	}
	if c.Jitter == 0 {
		c.Jitter = 0.02
	}
	c.Hold = c.Hold.withDefaults()
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	return c
}

func (c Config) validate() error {
	if c.Coalesce < 0 || c.ReportTimeout < 0 || c.BackOff < 0 || c.Slack < 0 || c.Overdue < 0 {
		return fmt.Errorf("health-check config: coalesce %v, report timeout %v, back-off %v, slack %v, overdue %v: none may be negative",
			c.Coalesce, c.ReportTimeout, c.BackOff, c.Slack, c.Overdue)
	}
	if c.MaxBatch < 0 || c.InFlight < 0 || c.StalledInFlight < 0 {
		return fmt.Errorf("health-check config: max batch %d, in flight %d, stalled in flight %d: none may be negative",
			c.MaxBatch, c.InFlight, c.StalledInFlight)
	}
	if c.Events < 0 || c.Events > maxEvents {
		return fmt.Errorf("health-check config: events is %d, want 0 to %d", c.Events, maxEvents)
	}
	if c.Jitter > 0.25 {
		return fmt.Errorf("health-check config: jitter is %v, want at most 0.25", c.Jitter)
	}
	return c.Hold.validate()
}

const maxEvents = 1 << 16

// Engine probes any number of checks. All its methods may be called from any
// goroutine.
type Engine struct {
	cfg     Config
	log     *zap.Logger
	metrics Metrics
	base    time.Time // what all times inside are since; has a monotonic reading

	wake   chan struct{} // the scheduler's next wake-up is sooner than it knows
	report chan struct{} // there is something to report
	asking chan struct{} // places for ProbeNow
	probes sync.WaitGroup

	mu       sync.Mutex // guards what follows, and every record
	checks   map[string]*record
	canaries map[*record]struct{}
	count    [3]int // checks by effective state
	wheel    wheel
	healthy  lane
	stalled  lane
	lag      lagMeter
	hold     episode
	pending  []*record
	events   []Event // to be told when mu is released
	recent   recent
	seq      uint64
	wakeAt   time.Duration // when the scheduler wakes up next
	ran      bool
	runs     context.Context // of running probes; nil while not running
	stop     context.CancelFunc
	stopped  chan struct{} // closed when Run has returned
	closed   bool

	inconclusive     int // since the last line about them
	inconclusiveTold time.Duration
	skipped          uint64
}

// New makes an Engine. Checks may be given to it before and while it runs.
func New(cfg Config) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	e := &Engine{
		cfg:      cfg,
		log:      cfg.Logger.Named("healthcheck"),
		metrics:  cfg.Metrics,
		base:     time.Now(),
		wake:     make(chan struct{}, 1),
		report:   make(chan struct{}, 1),
		asking:   make(chan struct{}, 64),
		checks:   make(map[string]*record),
		canaries: make(map[*record]struct{}),
		healthy:  lane{limit: cfg.InFlight},
		stalled:  lane{limit: cfg.StalledInFlight},
		stopped:  make(chan struct{}),
	}
	e.hold.Hold = cfg.Hold
	return e, nil
}

// now is the time since the engine's base. It is never 0, which stands for
// 'never' in records.
func (e *Engine) now() time.Duration { return max(time.Since(e.base), 1) }

// wall turns a time inside into one of the wall clock, as it is set now.
func (e *Engine) wall(t time.Duration) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Now().Round(0).Add(t - time.Since(e.base))
}

// Run probes and reports until ctx ends or Close is called, and returns nil
// then. It returns when every probe has. It can be called once.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	switch {
	case e.closed:
		e.mu.Unlock()
		return nil
	case e.ran:
		e.mu.Unlock()
		return errors.New("health-check engine: run was called twice")
	}
	e.ran, e.runs, e.stop = true, ctx, cancel
	e.wheel.now = int64(e.now() / tick)
	fresh := make([]*record, 0, len(e.checks))
	for _, r := range e.checks {
		if !r.paused {
			fresh = append(fresh, r)
		}
	}
	e.begin(fresh)
	e.mu.Unlock()
	defer close(e.stopped)

	var workers sync.WaitGroup
	workers.Go(func() { e.schedule(ctx) })
	workers.Go(func() { e.watchdog(ctx) })
	if e.cfg.Sink != nil {
		workers.Go(func() { e.reportLoop(ctx) })
	}
	workers.Wait()
	e.mu.Lock()
	e.runs = nil // no probe begins from now on
	e.mu.Unlock()
	e.probes.Wait()
	return nil
}

// Close ends Run and waits for it. Later calls of Update fail with ErrClosed.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	ran, stop := e.ran, e.stop
	e.mu.Unlock()
	if ran {
		stop()
		<-e.stopped
	}
	return nil
}

// Update adds and changes checks, and removes others by ID. It costs what
// changes, not what there is. A check that is given as it is already goes on
// undisturbed; one that changed keeps its state until its own results change
// it. An ID to remove that is not known is ignored. When a check is not valid
// the error names each fault, and nothing is changed.
func (e *Engine) Update(changed []Check, removed []string) error {
	filled := make([]Check, len(changed))
	var faults []error
	for i, c := range changed {
		filled[i] = c.withDefaults()
		if err := filled[i].validate(); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}

	e.mu.Lock()
	defer e.release()
	if e.closed {
		return ErrClosed
	}
	for _, id := range removed {
		if r := e.checks[id]; r != nil {
			e.remove(r)
		}
	}
	var fresh []*record
	for _, c := range filled {
		r := e.checks[c.ID]
		if r == nil {
			r = newRecord(c)
			e.checks[c.ID] = r
			e.count[r.effective]++
		} else if r.same(c) {
			continue
		} else {
			e.unplace(r)
			if r.held() { // the failures under the old terms count no more
				e.hold.rose(r, true)
				e.enqueueHeld(r)
			}
			r.change(c)
		}
		if c.Canary {
			e.canaries[r] = struct{}{}
		} else {
			delete(e.canaries, r)
		}
		if r.place == resting && !r.paused {
			fresh = append(fresh, r)
		}
	}
	e.begin(fresh)
	e.reviewHold(e.now())
	return nil
}

func (e *Engine) remove(r *record) {
	e.unplace(r)
	e.hold.rose(r, r.held())
	r.removed = true
	r.generation++
	e.count[r.effective]--
	delete(e.checks, r.id)
	delete(e.canaries, r)
}

// Pause stops probing the named checks; their states and streaks are frozen,
// even where a hold ends meanwhile. A probe that runs is not counted. Resume
// goes on.
func (e *Engine) Pause(ids ...string) {
	e.mu.Lock()
	defer e.release()
	told := Event{Kind: EventPaused}
	for _, id := range ids {
		if r := e.checks[id]; r != nil && !r.paused {
			r.paused = true
			r.generation++
			e.unplace(r)
			told.counts(id)
		}
	}
	e.happened(told)
}

// Resume undoes Pause.
func (e *Engine) Resume(ids ...string) {
	e.mu.Lock()
	defer e.release()
	var fresh []*record
	told := Event{Kind: EventResumed}
	for _, id := range ids {
		if r := e.checks[id]; r != nil && r.paused {
			r.paused = false
			told.counts(id)
			if r.place == resting {
				fresh = append(fresh, r)
			}
		}
	}
	e.happened(told)
	e.begin(fresh)
}

// Announce asks for a report of the named checks' present states, though the
// sink was told before: for one that knows or suspects that it was not heeded.
// A check whose own results do not confirm its state yet is announced when they
// do, if Config.Confirmations is set; IDs that are not known are ignored.
func (e *Engine) Announce(ids ...string) {
	e.mu.Lock()
	defer e.release()
	for _, id := range ids {
		if r := e.checks[id]; r != nil && r.confirmed {
			r.announce = true
			e.enqueue(r)
		}
	}
}

// believe makes r's effective state what its own results say.
func (e *Engine) believe(r *record, now time.Duration) {
	from := r.effective
	if from == r.raw {
		return
	}
	e.count[from]--
	e.count[r.raw]++
	r.effective, r.since = r.raw, now
	e.events = append(e.events, Event{Kind: EventTransition, Check: r.id, From: from, To: r.effective, Result: r.why()})
	e.enqueue(r)
}

// enqueueHeld marks r for the next report because its fall is held, or is not
// any more.
func (e *Engine) enqueueHeld(r *record) {
	if e.cfg.Holds {
		e.enqueue(r)
	}
}

// why is the result that r's state rests on.
func (r *record) why() Result {
	if r.cause != nil {
		return *r.cause
	}
	return Result{Class: OK, Latency: r.latency}
}

// enqueue marks r for the next report.
func (e *Engine) enqueue(r *record) {
	if e.cfg.Sink == nil || r.pending {
		return
	}
	r.pending = true
	e.pending = append(e.pending, r)
	select {
	case e.report <- struct{}{}:
	default:
	}
}
