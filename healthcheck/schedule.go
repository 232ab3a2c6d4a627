package healthcheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"time"
)

// startRate is how many new checks a second begin, so that a large set does not
// begin in one instant, and a small one begins at once.
const startRate = 10_000

// begin schedules those records that rest. Their first probes are spread over the
// time that so many take at startRate, at most their interval.
func (e *Engine) begin(fresh []*record) {
	if e.runs == nil || len(fresh) == 0 {
		return
	}
	now := e.now()
	spread := time.Duration(len(fresh)) * time.Second / startRate
	for _, r := range fresh {
		if r.place != resting || r.paused {
			continue // named twice in one update
		}
		within := min(spread, r.interval())
		// The phase scaled down: neighbors in time stay neighbors.
		e.place(r, now+time.Duration(float64(within)*float64(hash(r.id)>>11)/(1<<53)))
	}
}

// place puts r into the wheel.
func (e *Engine) place(r *record, at time.Duration) {
	r.place = wheeled
	e.wheel.add(r, int64((at+tick-1)/tick))
	if time.Duration(r.at)*tick < e.wakeAt {
		e.kick()
	}
}

// unplace takes r out of wheel or queue; a running one comes to rest by itself.
func (e *Engine) unplace(r *record) {
	switch r.place {
	case wheeled:
		e.wheel.remove(r)
	case queued:
		e.laneOf(r).remove(r)
	default:
		return
	}
	r.place = resting
}

func (e *Engine) kick() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Engine) laneOf(r *record) *lane {
	if r.stalled {
		return &e.stalled
	}
	return &e.healthy
}

// schedule is the scheduler's goroutine.
func (e *Engine) schedule(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.wake:
		}
		woke := e.now()
		runtime.Gosched() // a timer's goroutine goes first; what a probe waits for does not
		e.mu.Lock()
		now := e.now()
		e.lag.woke(woke)
		e.lag.queued(now - woke)
		e.wheel.advance(int64(now/tick), e.dispatch)
		e.reviewHold(now)
		e.wakeAt = e.nextWake(now)
		e.lag.promise(e.wakeAt)
		wait := e.wakeAt - now
		e.release()
		timer.Reset(wait)
	}
}

func (e *Engine) nextWake(now time.Duration) time.Duration {
	at := now + time.Minute
	if t, ok := e.wheel.next(); ok {
		at = min(at, time.Duration(t)*tick)
	}
	if e.healthy.running+e.stalled.running > 0 {
		at = min(at, now+heartbeat)
	}
	if e.hold.active {
		at = min(at, e.hold.since+e.hold.Limit)
	}
	return max(at, now)
}

// dispatch starts a probe of r, which is due, or queues it.
func (e *Engine) dispatch(r *record) {
	l := e.laneOf(r)
	if l.running >= l.limit {
		r.place = queued
		l.push(r)
		return
	}
	l.running++
	r.place = running
	e.probes.Go(func() { e.work(l, r) })
}

// job is one run of a probe, as it was when it began.
type job struct {
	ctx        context.Context
	id         string
	probe      Probe
	target     netip.AddrPort
	timeout    time.Duration
	generation uint32
	began      time.Duration
	late       time.Duration
	lag        time.Duration
}

// work probes r, and then whatever waits in lane l.
func (e *Engine) work(l *lane, r *record) {
	for r != nil {
		j, ok := e.start(r)
		var res Result
		if ok {
			res = ask(j.ctx, j.probe, j.target, j.timeout)
		}
		var counted bool
		r, counted = e.finish(l, r, j, &res, ok)
		if counted {
			e.metrics.Probed(res.Class, res.Latency, max(j.late, 0))
		}
	}
}

// start is false when the engine has stopped.
func (e *Engine) start(r *record) (job, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs == nil || e.runs.Err() != nil {
		return job{}, false
	}
	now := e.now()
	return job{
		ctx: e.runs, id: r.id, probe: r.probe, target: r.target, timeout: r.policy.Value().timeout,
		generation: r.generation, began: now, late: now - time.Duration(r.at)*tick, lag: e.lag.upTo(now),
	}, true
}

// ask runs a probe once. The timeout counts from now, not from when the probe
// was due.
func ask(ctx context.Context, p Probe, target netip.AddrPort, timeout time.Duration) (res Result) {
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, began.Add(timeout))
	defer func() {
		cancel()
		if p := recover(); p != nil {
			res = Result{Class: Local, Phase: "probe", Found: fmt.Sprintf("panic: %v", p), Advice: "this is a fault of the probe, not of the target"}
		}
		if res.Latency == 0 {
			res.Latency = time.Since(began)
		}
	}()
	return p.Probe(ctx, target)
}

// finish takes the result into account, schedules r again, and returns the
// record that the worker is to probe next, nil when its lane has none. A result
// counts unless the check was changed meanwhile, or the engine stops.
func (e *Engine) finish(l *lane, r *record, j job, res *Result, ok bool) (next *record, counted bool) {
	e.mu.Lock()
	defer e.release()
	now := e.now()
	r.place = resting
	if ok && e.runs != nil && j.ctx.Err() == nil {
		if counted = r.generation == j.generation; counted {
			*res = believable(*res, now-j.began, e.lag.upTo(now)-j.lag, j.timeout, e.cfg.Slack)
			e.settle(r, *res, j.began, now)
		}
		if !r.removed && !r.paused {
			e.again(r, j.began, now)
		}
		if next = l.pop(); next != nil {
			next.place = running
			return next, counted
		}
	}
	l.running--
	return nil, counted
}

// settle makes res, of a probe that began and ends now, r's last result and
// draws the conclusions.
func (e *Engine) settle(r *record, res Result, began, now time.Duration) {
	r.last = now
	if res.OK() {
		r.latency = res.Latency
		r.quantile.add(res.Latency)
	}
	if res.OK() && res.Warning != "" && (r.result == nil || r.result.Warning != res.Warning) {
		e.events = append(e.events, Event{Kind: EventWarning, Check: r.id, Result: res})
	}
	switch {
	case res == Result{Class: OK, Latency: res.Latency}:
		r.result = nil
	case r.result == nil || !r.result.sameStory(res):
		kept := res // res itself would be on the heap each time
		r.result = &kept
	}
	// A slow failure holds a place as long as a timeout does, whoever is to blame.
	r.stalled = res.Class == Timeout || !res.OK() && 2*res.Latency >= r.policy.Value().timeout
	if !res.Conclusive() {
		e.tellInconclusive(r, res, now)
		return
	}
	first := r.raw != Down && r.streak >= 0 && !res.OK()
	confirmed := r.confirmed
	if r.judge(res.OK()) {
		r.cause = r.result
		switch r.raw {
		case Up:
			if r.effective == Up {
				e.enqueueHeld(r)
			}
			e.hold.rose(r, r.effective == Up)
			e.believe(r, now)
		case Down:
			e.fallen(r, now)
		}
		e.reviewHold(now)
	} else if r.held() && !res.OK() && !e.hold.active && began >= e.hold.ended {
		e.concede(r, now)
	} else if first {
		e.events = append(e.events, Event{Kind: EventFirstFailure, Check: r.id, Result: res})
	}
	if r.confirmed && !confirmed {
		r.cause = r.result
		if e.cfg.Confirmations && r.raw == r.effective {
			r.announce = true
			e.enqueue(r)
		}
	}
}

// tellInconclusive makes one line a minute of what may come in thousands.
func (e *Engine) tellInconclusive(r *record, res Result, now time.Duration) {
	e.inconclusive++
	if e.inconclusiveTold != 0 && now-e.inconclusiveTold < time.Minute {
		return
	}
	e.events = append(e.events, Event{Kind: EventInconclusive, Check: r.id, Result: res, Count: e.inconclusive})
	e.inconclusive, e.inconclusiveTold = 0, now
}

// again schedules r after a probe that began and ended: at the next of its own
// times that is at least half an interval later. Those that passed meanwhile
// are left out.
func (e *Engine) again(r *record, began, ended time.Duration) {
	interval := r.interval()
	next := r.grid(began+interval/2, interval)
	if next <= ended {
		late := r.grid(ended, interval)
		skipped := int((late - next) / interval)
		e.skipped += uint64(skipped)
		e.events = append(e.events, Event{Kind: eventSkipped, Count: skipped})
		next = late
	}
	if j := time.Duration(e.cfg.Jitter * float64(interval)); j > 0 {
		next += rand.N(2*j) - j
	}
	e.place(r, next)
}
