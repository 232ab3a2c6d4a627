package healthcheck

import (
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

type eventKind uint8

const (
	eventTransition eventKind = iota
	eventFirstFailure
	eventInconclusive
	eventSkipped
	eventHoldBegan
	eventHoldEnded
)

// event is something to tell a log and the metrics once the mutex is free.
type event struct {
	kind     eventKind
	id       string
	from, to State
	result   Result
	text     string
	count    int
}

// release unlocks the engine, then tells what happened while it was locked.
func (e *Engine) release() {
	events := e.events
	e.events = nil
	e.mu.Unlock()
	for _, ev := range events {
		e.tell(ev)
	}
}

func (e *Engine) tell(ev event) {
	switch ev.kind {
	case eventTransition:
		e.metrics.Transitioned(ev.from, ev.to)
		log := e.log.Info
		if ev.to == Down {
			log = e.log.Warn
		}
		log("check is "+ev.to.String(), zap.String("check", ev.id), zap.Stringer("was", ev.from), zap.Stringer("result", ev.result))
	case eventFirstFailure:
		e.log.Info("check failed for the first time", zap.String("check", ev.id), zap.Stringer("result", ev.result))
	case eventInconclusive:
		e.log.Warn("inconclusive results: this host is late, or out of ports or files; no target is blamed",
			zap.String("check", ev.id), zap.Stringer("result", ev.result), zap.Int("since the last such line", ev.count))
	case eventSkipped:
		e.metrics.Skipped(ev.count)
	case eventHoldBegan:
		e.metrics.HoldChanged(true)
		e.log.Error("mass failure suspected: falls are held back", zap.String("why", ev.text), zap.Int("held", ev.count))
	case eventHoldEnded:
		e.metrics.HoldChanged(false)
		e.log.Warn("hold ended", zap.String("why", ev.text), zap.Int("held", ev.count))
	}
}
