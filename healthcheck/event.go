package healthcheck

import (
	"fmt"
	"time"
)

// EventKind says what happened.
type EventKind uint8

// The kinds of events.
const (
	EventTransition   EventKind = iota // an effective state changed: Check, From, To, Result
	EventFirstFailure                  // of a target that did not fail before: Check, Result
	EventInconclusive                  // one result of Count in the last minute: Check, Result
	EventWarning                       // a success came with a new warning: Check, Result
	EventHoldBegan                     // mass failure is suspected: Text says why, Count are held
	EventHoldEnded                     // Text says why, Count were held
	EventOverdue                       // the watchdog's alarm: Text says how long the oldest waits
	EventCaughtUp                      // it is over
	EventPaused                        // Count checks, Check is the first
	EventResumed                       // likewise
	eventSkipped                       // for the metrics alone
)

var eventNames = [...]string{
	"transition", "first failure", "inconclusive", "warning", "hold began", "hold ended",
	"overdue", "caught up", "paused", "resumed", "skipped",
}

func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event(%d)", k)
}

// MarshalText gives the kind's name.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Event is something that happened, for whoever looks on: the Sink has the
// states. Which fields are set its kind says.
type Event struct {
	Seq      uint64 // counts up from 1 in one engine
	At       time.Time
	Kind     EventKind
	Check    string // its ID
	From, To State
	Result   Result
	Count    int
	Text     string // for people
}

// recent are the last events, oldest first from start on. The engine's mutex
// guards them.
type recent struct {
	ring  []Event
	start int // index of the oldest, once the ring is full
	seq   uint64
	more  chan struct{} // closed at the next event; nil: nobody waits
}

// keep stamps events, and remembers them in place of the oldest. The caller
// holds mu.
func (e *Engine) keep(events []Event) {
	if len(events) == 0 {
		return
	}
	var at time.Time
	r, kept := &e.recent, false
	for i := range events {
		if events[i].Kind == eventSkipped {
			continue
		}
		if !kept {
			at, kept = e.wall(e.now()), true
		}
		r.seq++
		events[i].Seq, events[i].At = r.seq, at
		if len(r.ring) < e.cfg.Events {
			r.ring = append(r.ring, events[i])
			continue
		}
		r.ring[r.start] = events[i]
		r.start = (r.start + 1) % len(r.ring)
	}
	if kept && r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// counts is for an event that is of several checks at once.
func (ev *Event) counts(id string) {
	if ev.Count++; ev.Count == 1 {
		ev.Check = id
	}
}

// happened adds an event of any checks at all. The caller holds mu.
func (e *Engine) happened(ev Event) {
	if ev.Count > 0 {
		e.events = append(e.events, ev)
	}
}

// Events returns those events after seq that the engine still has, oldest
// first: the last Config.Events of them. A gap in Seq says that the caller was
// too slow. more is closed when there is another one. It blocks nobody, and
// however slow its callers are, they cost nothing.
func (e *Engine) Events(after uint64) (events []Event, more <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := &e.recent
	for i := range r.ring {
		if ev := r.ring[(r.start+i)%len(r.ring)]; ev.Seq > after {
			events = append(events, ev)
		}
	}
	if r.more == nil {
		r.more = make(chan struct{})
	}
	return events, r.more
}
