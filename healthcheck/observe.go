package healthcheck

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Metrics is told what the engine does. Its methods are called concurrently and
// must not block. What can be read at leisure is in Engine.Stats.
type Metrics interface {
	// Probed is one result; lateness is how long after its due time it began.
	Probed(class Class, latency, lateness time.Duration)
	// Skipped counts runs that were left out because the one before took too long.
	Skipped(runs int)
	// Transitioned is one change of an effective state.
	Transitioned(from, to State)
	// Reported is one call of the sink.
	Reported(transitions int, err error)
	// HoldChanged says that a hold began (an alarm) or ended.
	HoldChanged(active bool)
}

type noMetrics struct{}

func (noMetrics) Probed(Class, time.Duration, time.Duration) {}
func (noMetrics) Skipped(int)                                {}
func (noMetrics) Transitioned(State, State)                  {}
func (noMetrics) Reported(int, error)                        {}
func (noMetrics) HoldChanged(bool)                           {}

// release unlocks the engine, then tells what happened while it was locked.
func (e *Engine) release() {
	events := e.events
	e.events = nil
	e.keep(events)
	e.mu.Unlock()
	for _, ev := range events {
		e.tell(ev)
	}
}

// tell tells the log and the metrics. The log has alarms, transitions and first
// failures, no more.
func (e *Engine) tell(ev Event) {
	switch ev.Kind {
	case EventTransition:
		e.metrics.Transitioned(ev.From, ev.To)
		log := e.log.Info
		if ev.To == Down {
			log = e.log.Warn
		}
		log("check is "+ev.To.String(), zap.String("check", ev.Check), zap.Stringer("was", ev.From), zap.Stringer("result", ev.Result))
	case EventFirstFailure:
		e.log.Info("check failed for the first time", zap.String("check", ev.Check), zap.Stringer("result", ev.Result))
	case EventInconclusive:
		e.log.Warn("inconclusive results: this host is late, or out of ports or files; no target is blamed",
			zap.String("check", ev.Check), zap.Stringer("result", ev.Result), zap.Int("since the last such line", ev.Count))
	case eventSkipped:
		e.metrics.Skipped(ev.Count)
	case EventHoldBegan:
		e.metrics.HoldChanged(true)
		e.log.Error("mass failure suspected: falls are held back", zap.String("why", ev.Text), zap.Int("held", ev.Count))
	case EventHoldEnded:
		e.metrics.HoldChanged(false)
		e.log.Warn("hold ended", zap.String("why", ev.Text), zap.Int("held", ev.Count))
	case EventOverdue:
		e.log.Error("checks are overdue: this host does not keep up with them, or the engine is stuck", zap.String("oldest", ev.Text))
	case EventCaughtUp:
		e.log.Info("checks are no longer overdue")
	}
}

// watchdog is the goroutine that notices when the scheduler, or a lane, does
// not get on. It relies on neither.
func (e *Engine) watchdog(ctx context.Context) {
	tick := time.NewTicker(max(e.cfg.Overdue/4, watchdogLeast))
	defer tick.Stop()
	overdue := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		late := e.Stats().OldestOverdue
		if late >= e.cfg.Overdue == overdue {
			continue
		}
		overdue = !overdue
		ev := Event{Kind: EventCaughtUp}
		if overdue {
			ev = Event{Kind: EventOverdue, Text: late.Round(time.Millisecond).String()}
		}
		e.mu.Lock()
		e.events = append(e.events, ev)
		e.release()
	}
}

// watchdogLeast is how often the watchdog looks at most.
const watchdogLeast = 10 * time.Millisecond
