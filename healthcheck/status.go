package healthcheck

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Status is what the engine knows of one check.
type Status struct {
	ID        string
	Target    netip.AddrPort
	State     State // effective
	Raw       State // by the check's own results; differs from State while Held
	Held      bool
	Confirmed bool // the engine's own results have confirmed Raw, rise or fall times in a row
	Paused    bool
	Successes int       // in a row; one of the two is 0
	Failures  int       // in a row
	Since     time.Time // when State changed; zero: not under this engine
	Last      Result    // the last result; meaningless while LastAt is zero
	LastAt    time.Time // zero: not probed yet
	Cause     Result    // the result that decided Raw; meaningless unless Confirmed
	Next      time.Time // when it is due next; zero while paused or probed at present

	// Latencies of successes, old ones fading; upper bounds, 41% too high at
	// most. 0: none yet.
	P50, P90, P99 time.Duration
}

// Status tells of one check; false when there is none of this ID.
func (e *Engine) Status(id string) (Status, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.checks[id]
	if r == nil {
		return Status{}, false
	}
	return e.status(r), true
}

// Statuses tells of all checks, in no order.
func (e *Engine) Statuses() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]Status, 0, len(e.checks))
	for _, r := range e.checks {
		all = append(all, e.status(r))
	}
	return all
}

// Noted tells of those checks, by ID, whose last result was a success with a
// warning, or inconclusive: what their states do not show.
func (e *Engine) Noted() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var noted []Status
	for _, r := range e.checks {
		if r.result != nil && (r.result.Warning != "" || !r.result.Conclusive()) {
			noted = append(noted, e.status(r))
		}
	}
	slices.SortFunc(noted, func(a, b Status) int { return strings.Compare(a.ID, b.ID) })
	return noted
}

func (e *Engine) status(r *record) Status {
	s := Status{
		ID: r.id, Target: r.target,
		State: r.effective, Raw: r.raw, Held: r.held(),
		Confirmed: r.confirmed, Paused: r.paused,
		Successes: int(max(r.streak, 0)), Failures: int(max(-r.streak, 0)),
		Since: e.wall(r.since), LastAt: e.wall(r.last),
		P50: r.quantile.quantile(0.5), P90: r.quantile.quantile(0.9), P99: r.quantile.quantile(0.99),
	}
	if r.last != 0 {
		s.Last = Result{Class: OK, Latency: r.latency}
		if r.result != nil {
			s.Last = *r.result
		}
	}
	if r.confirmed {
		s.Cause = r.why()
	}
	if r.place == wheeled || r.place == queued {
		s.Next = e.wall(time.Duration(r.at) * tick)
	}
	return s
}

// Stats are figures of the whole engine.
type Stats struct {
	Unknown, Up, Down int // checks by effective state
	Held              int
	Pending           int           // transitions that the sink has not acknowledged
	Running           int           // probes at present
	RunningStalled    int           // of those, in the lane of targets that timed out
	Waiting           int           // checks that are due and find no free place
	WaitingStalled    int           // of those, in the lane of targets that timed out
	OldestOverdue     time.Duration // how long the first of those, or the scheduler itself, is late
	Skipped           uint64        // runs left out, since the beginning
	Lag               time.Duration // how long this host was late, added up since the beginning
}

// Stats are the engine's figures at present. OldestOverdue that keeps growing
// says that the engine is stuck.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	s := Stats{
		Unknown: e.count[Unknown], Up: e.count[Up], Down: e.count[Down],
		Held: e.hold.held, Pending: len(e.pending),
		Running: e.healthy.running + e.stalled.running, RunningStalled: e.stalled.running,
		Waiting: e.healthy.waiting + e.stalled.waiting, WaitingStalled: e.stalled.waiting,
		Skipped: e.skipped, Lag: e.lag.upTo(now),
	}
	for _, l := range []*lane{&e.healthy, &e.stalled} {
		if l.head != nil {
			s.OldestOverdue = max(s.OldestOverdue, now-time.Duration(l.head.at)*tick)
		}
	}
	if e.runs != nil && e.wakeAt != 0 {
		s.OldestOverdue = max(s.OldestOverdue, now-e.wakeAt)
	}
	return s
}

// ProbeNow probes a check at once and returns the result, which counts for
// nothing else: a dry run. It waits while 64 others run.
func (e *Engine) ProbeNow(ctx context.Context, id string) (Result, error) {
	e.mu.Lock()
	r := e.checks[id]
	if r == nil {
		e.mu.Unlock()
		return Result{}, fmt.Errorf("probe %q: %w", id, ErrUnknownCheck)
	}
	j := job{probe: r.probe, target: r.target, timeout: r.policy.Value().timeout}
	e.mu.Unlock()

	select {
	case e.asking <- struct{}{}:
	case <-ctx.Done():
		return Result{}, fmt.Errorf("probe %q: %w", id, ctx.Err())
	}
	defer func() { <-e.asking }()
	res := ask(ctx, j.probe, j.target, j.timeout)
	if err := ctx.Err(); err != nil {
		return res, fmt.Errorf("probe %q: %w", id, err)
	}
	return res, nil
}

// Once probes a check that no engine knows: a dry run, for one that is about to
// be written, say.
func Once(ctx context.Context, c Check) (Result, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return Result{}, err
	}
	res := ask(ctx, c.Probe, c.Target, c.Timeout)
	if err := ctx.Err(); err != nil {
		return res, fmt.Errorf("probe %q: %w", c.ID, err)
	}
	return res, nil
}
