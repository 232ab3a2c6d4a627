package healthcheck

import (
	"fmt"
	"time"
)

// Hold says when falls are so many at once that this host is suspected before
// they are believed. While a hold lasts, targets that fall stay up in effect.
//
// It ends when most targets came back, or when every canary answers, which are
// asked at once when it begins: those that are still down are asked again at
// once, and each is believed when it fails again. It also ends at its limit in time, or by request: then they are
// believed at once.
type Hold struct {
	// Share of the targets that were up which must fall within Window. Default
	// 0.5. 1 or more: nothing is ever held.
	Share float64
	// Min is how many must fall at least. Default 10.
	Min int
	// Window is the time in which they must fall. Default 10 s.
	Window time.Duration
	// Limit is how long a hold lasts at most. Default 1 min.
	Limit time.Duration
}

func (h Hold) withDefaults() Hold {
	if h.Share == 0 {
		h.Share = 0.5
	}
	if h.Min == 0 {
		h.Min = 10
	}
	if h.Window == 0 {
		h.Window = 10 * time.Second
	}
	if h.Limit == 0 {
		h.Limit = time.Minute
	}
	return h
}

func (h Hold) validate() error {
	if h.Share < 0 || h.Min < 0 || h.Window < 0 || h.Limit < 0 {
		return fmt.Errorf("hold: share %v, min %d, window %v, limit %v: none may be negative", h.Share, h.Min, h.Window, h.Limit)
	}
	return nil
}

// HoldStatus is what a hold does at present.
type HoldStatus struct {
	Active bool
	Since  time.Time // zero unless Active
	Until  time.Time // when it ends at the latest; zero unless Active
	Held   int       // checks that are down by their own results and up in effect; some may be for a moment after the end
	Why    string    // why it began; of the last one when not Active
}

// episode follows the falls of the last window, and the hold that they may
// make. The engine's mutex guards it.
type episode struct {
	Hold
	falls []fall // of the window, oldest first; some came up again since
	down  int    // falls that did not

	active  bool
	spent   bool // a hold ended while the falls went on: not again until they ease
	since   time.Duration
	from    time.Duration // the first fall that belongs to the hold
	members int           // that fell since from and are still down
	ease    int           // the hold ends when no more members than these are left
	ended   time.Duration // when the last one did
	held    int           // checks that are down by their own results and up in effect
	why     string
}

type fall struct {
	at time.Duration
	r  *record
}

// fell takes note that r fell, of up checks that are up in effect (r is one of
// them), and says whether it is to be held, and whether a hold began by it.
func (h *episode) fell(r *record, now time.Duration, up int) (hold, began bool) {
	r.fell = now
	h.prune(now)
	h.falls = append(h.falls, fall{now, r})
	h.down++
	if h.active {
		h.members++
		h.held++
		return true, false
	}
	population := up + h.down - 1
	enough := h.down >= h.Min && float64(h.down) > h.Share*float64(population)
	if h.spent && h.down*2 <= int(h.Share*float64(population)) {
		h.spent = false
	}
	if !enough || h.spent || h.Share >= 1 {
		return false, false
	}
	h.active, h.since, h.from = true, now, h.falls[0].at
	h.members = h.down
	h.held++
	h.ease = int(h.Share*float64(population)) / 2
	h.why = fmt.Sprintf("%d of %d targets that were up fell within %v", h.down, population, h.Window)
	return true, true
}

// rose takes note that r is no longer down, or gone. held says whether its fall
// was held.
func (h *episode) rose(r *record, held bool) {
	if held {
		h.held--
	}
	if r.fell == 0 {
		return
	}
	if len(h.falls) > 0 && r.fell >= h.falls[0].at {
		h.down--
	}
	if h.active && r.fell >= h.from {
		h.members--
	}
	r.fell = 0
}

func (h *episode) prune(now time.Duration) {
	n := 0
	for ; n < len(h.falls) && h.falls[n].at <= now-h.Window; n++ {
		if f := h.falls[n]; f.r.fell == f.at {
			h.down--
		}
	}
	if h.falls = h.falls[n:]; len(h.falls) == 0 {
		h.falls = nil
	}
}

// fallen is called when r's own results say that it is down, and decides
// whether that is believed.
func (e *Engine) fallen(r *record, now time.Duration) {
	if r.effective != Up {
		e.believe(r, now)
		return
	}
	hold, began := e.hold.fell(r, now, e.count[Up])
	if began {
		e.askCanaries()
		e.events = append(e.events, Event{Kind: EventHoldBegan, Text: e.hold.why, Count: e.hold.held})
	}
	if hold {
		e.enqueueHeld(r)
	} else {
		e.believe(r, now)
	}
}

// askCanaries has every canary asked at once: what one said before the falls
// does not vouch for this host now.
func (e *Engine) askCanaries() {
	var again []*record
	for r := range e.canaries {
		if r.place == wheeled {
			e.unplace(r)
			again = append(again, r)
		}
	}
	e.begin(again)
}

// canariesAnswered says whether every canary succeeded since t.
func (e *Engine) canariesAnswered(t time.Duration) bool {
	for r := range e.canaries {
		if r.streak <= 0 || r.last <= t {
			return false
		}
	}
	return len(e.canaries) > 0
}

// reviewHold ends a hold that has no reason any more.
func (e *Engine) reviewHold(now time.Duration) {
	h := &e.hold
	switch {
	case !h.active:
	case h.members <= h.ease:
		e.endHold(now, "most targets came back", false)
	case e.canariesAnswered(h.since):
		e.endHold(now, "the canaries answer", false)
	case now-h.since >= h.Limit:
		e.endHold(now, "its limit in time is reached", true)
	}
}

// endHold ends the hold. What is held is believed, or else asked again: when
// this host is well once more its targets may be too, each a moment later.
func (e *Engine) endHold(now time.Duration, why string, believe bool) {
	h := &e.hold
	e.events = append(e.events, Event{Kind: EventHoldEnded, Text: why, Count: h.held})
	h.active, h.spent = false, true
	h.members, h.ended = 0, now
	if h.held == 0 {
		return
	}
	var again []*record
	for _, r := range e.checks {
		switch {
		case !r.held() || r.paused:
		case believe:
			e.concede(r, now)
		case r.place == wheeled:
			e.unplace(r)
			again = append(again, r)
		}
	}
	e.begin(again)
}

// concede believes a fall that was held.
func (e *Engine) concede(r *record, now time.Duration) {
	e.hold.held--
	e.believe(r, now)
}

// ReleaseHold ends a hold: what is held is believed at once. It says whether
// there was one.
func (e *Engine) ReleaseHold() bool {
	e.mu.Lock()
	defer e.release()
	active := e.hold.active
	if active {
		e.endHold(e.now(), "released by request", true)
	}
	return active
}

// SetHold replaces the rules of the hold. One that is active goes on under the
// new limit, or ends when the new rules hold nothing.
func (e *Engine) SetHold(h Hold) error {
	if err := h.validate(); err != nil {
		return err
	}
	h = h.withDefaults()
	e.mu.Lock()
	defer e.release()
	e.hold.Hold = h
	if e.hold.active && h.Share >= 1 {
		e.endHold(e.now(), "holds were switched off", true)
	}
	e.kick()
	return nil
}

// Hold tells what the hold does at present.
func (e *Engine) Hold() HoldStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := HoldStatus{Active: e.hold.active, Held: e.hold.held, Why: e.hold.why}
	if s.Active {
		s.Since = e.wall(e.hold.since)
		s.Until = e.wall(e.hold.since + e.hold.Limit)
	}
	return s
}
