package healthcheck

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func kinds(events []Event) (out []string) {
	for _, ev := range events {
		out = append(out, strings.TrimSpace(ev.Kind.String()+" "+ev.Check))
	}
	return out
}

// next asks for what came since, and fails when that is not what is wanted.
func (e *Engine) next(t *testing.T, seen uint64, want ...string) uint64 {
	t.Helper()
	events, _ := e.Events(seen)
	if got := kinds(events); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	for _, ev := range events {
		if seen++; ev.Seq != seen || time.Since(ev.At) < 0 || time.Since(ev.At) > time.Hour {
			t.Errorf("%+v, want seq %d", ev, seen)
		}
	}
	return seen
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		e := start(t, Config{Jitter: -1}, Check{ID: "a", Probe: p, Interval: time.Second}, Check{ID: "b", Probe: newTarget(OK), Interval: time.Second, Initial: Up})
		time.Sleep(time.Minute)
		_, more := e.Events(0)
		seen := e.next(t, 0, "transition a")
		p.set(Refused)
		select {
		case <-more:
			t.Error("more is told before there is")
		default:
		}
		<-more
		seen = e.next(t, seen, "first failure a")
		time.Sleep(time.Minute)
		seen = e.next(t, seen, "transition a")
		e.Pause("a", "b", "c")
		e.Pause("a")
		time.Sleep(time.Minute)
		e.Resume("b", "a")
		events, _ := e.Events(seen)
		if len(events) != 2 || events[0].Count != 2 || events[1].Count != 2 {
			t.Errorf("%+v", events)
		}
		seen = e.next(t, seen, "paused a", "resumed b")
		p.set(Local)
		time.Sleep(30 * time.Second)
		e.next(t, seen, "inconclusive a")
	})
}

// A warning is an event when it is new, and each check that has one is listed.
func TestWarningsAreNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		warning := "the certificate ends in 3 days"
		warned := ProbeFunc(func(context.Context, netip.AddrPort) Result { return Result{Warning: warning} })
		e := start(t, Config{Jitter: -1}, Check{ID: "a", Probe: &funcProbe{warned}, Interval: time.Second}, Check{ID: "b", Probe: newTarget(Local)}, Check{ID: "c", Probe: newTarget(OK)})
		time.Sleep(30 * time.Second)
		events, _ := e.Events(0)
		n := 0
		for _, ev := range events {
			if ev.Kind == EventWarning && ev.Check == "a" && ev.Result.Warning == warning {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d warnings in %q", n, kinds(events))
		}
		noted := e.Noted()
		if len(noted) != 2 || noted[0].ID != "a" || noted[0].Last.Warning != warning || noted[1].ID != "b" || noted[1].Last.Class != Local {
			t.Errorf("%+v", noted)
		}
	})
}

type funcProbe struct{ ProbeFunc }

// Whoever does not ask loses the oldest, and holds nobody up.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks []Check
		for i := range 100 {
			checks = append(checks, Check{ID: fmt.Sprint(i), Probe: newTarget(OK)})
		}
		e := start(t, Config{Jitter: -1, Events: 10}, checks...)
		time.Sleep(time.Minute)
		events, _ := e.Events(0)
		if len(events) != 10 || events[0].Seq != 91 || events[9].Seq != 100 {
			t.Errorf("%+v", events)
		}
		if events, _ := e.Events(98); len(events) != 2 {
			t.Errorf("%+v", events)
		}
	})
	for _, cfg := range []Config{{Events: -1}, {Events: maxEvents + 1}, {Overdue: -1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// A mass failure is told as a hold with its reason and its end; a full lane as
// an alarm that is over when the lane gets on.
func TestAlarmsAreEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		c.set(Refused, c.targets)
		time.Sleep(30 * time.Second)
		c.ReleaseHold()
		time.Sleep(time.Second)
		events, _ := c.Events(0)
		var told []Event
		for _, ev := range events {
			if ev.Kind == EventHoldBegan || ev.Kind == EventHoldEnded {
				told = append(told, ev)
			}
		}
		if len(told) != 2 || told[0].Kind != EventHoldBegan || told[0].Text == "" || told[1].Text != "released by request" || told[1].Count == 0 {
			t.Errorf("%+v", told)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		p.slow(30 * time.Second)
		p.hard = true
		quick := Check{ID: "b", Probe: newTarget(OK), Interval: time.Second}
		e := start(t, Config{Jitter: -1, InFlight: 1, StalledInFlight: 1, Overdue: 2 * time.Second}, Check{ID: "a", Probe: p, Interval: time.Hour, Timeout: time.Minute}, quick)
		time.Sleep(25 * time.Second)
		events, _ := e.Events(0)
		i := slices.IndexFunc(events, func(ev Event) bool { return ev.Kind == EventOverdue })
		if i < 0 || events[i].Text == "" {
			t.Fatalf("%+v", events)
		}
		time.Sleep(10 * time.Second)
		events, _ = e.Events(events[i].Seq)
		if !slices.ContainsFunc(events, func(ev Event) bool { return ev.Kind == EventCaughtUp }) {
			t.Errorf("%+v", events)
		}
	})
}
