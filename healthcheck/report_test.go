package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// What changes within Coalesce goes out in one batch, and not later.
func TestTransitionsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		p := newTarget(OK)
		checks := make([]Check, 100) // all begin within 10 ms
		for i := range checks {
			checks[i] = Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Hour}
		}
		start(t, Config{Jitter: -1, Sink: n, Epoch: 7}, checks...)
		time.Sleep(time.Second)
		if len(n.seen().batches) != 1 || len(n.seen().batches[0]) != 100 {
			t.Fatalf("%d batches", len(n.seen().batches))
		}
		if at := n.seen().calls[0]; at < 50*time.Millisecond || at > 80*time.Millisecond {
			t.Errorf("reported after %v, want Coalesce", at)
		}
		for i, tr := range n.seen().batches[0] {
			if tr.From != Unknown || tr.To != Up || tr.Epoch != 7 || tr.Seq != uint64(i+1) || tr.Result.Class != OK || time.Since(tr.At) > time.Second {
				t.Errorf("%+v", tr)
			}
		}
	})
}

func TestBatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		p := newTarget(OK)
		checks := make([]Check, 100)
		for i := range checks {
			checks[i] = Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Hour}
		}
		start(t, Config{Jitter: -1, Sink: n, MaxBatch: 30}, checks...)
		time.Sleep(time.Second)
		var sizes []int
		for _, b := range n.seen().batches {
			sizes = append(sizes, len(b))
		}
		if !slices.Equal(sizes, []int{30, 30, 30, 10}) {
			t.Errorf("batches of %v", sizes)
		}
		if n.seen().calls[0] != n.seen().calls[3] {
			t.Errorf("at %v: what is pending waits for nothing", n.seen().calls)
		}
	})
}

// A target that is back where it was when the batch is made is not in it.
func TestAReturnWithinCoalesceIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		p := newTarget(OK)
		e := start(t, Config{Jitter: -1, Sink: n, Coalesce: 5 * time.Second}, Check{ID: "a", Probe: p, Interval: time.Second, Rise: 1, Fall: 1, Initial: Up})
		time.Sleep(2 * time.Second)
		p.set(Refused)
		time.Sleep(1100 * time.Millisecond)
		wantState(t, e, "a", Down)
		p.set(OK)
		time.Sleep(30 * time.Second)
		wantState(t, e, "a", Up)
		if got := n.got(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
		if s := e.Stats(); s.Pending != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A sink that refuses gets the same again, later and later, and what the checks
// are by then.
func TestARefusingSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		n.setRefuse(errors.New("not the leader"))
		p, q := newTarget(OK), newTarget(OK)
		e := start(t, Config{Jitter: -1, Sink: n, Metrics: n},
			Check{ID: "a", Probe: p, Interval: time.Second, Rise: 1, Fall: 1, Initial: Down},
			Check{ID: "b", Probe: q, Interval: time.Second, Rise: 1, Fall: 1})
		time.Sleep(40 * time.Second)
		if g := gaps(n.seen().calls); len(g) < 7 {
			t.Errorf("%d calls in 40 s", len(n.seen().calls))
		} else {
			for i, g := range g {
				if want := 100 * time.Millisecond * time.Duration(min(1<<i, 50)); g != want {
					t.Errorf("the pause before call %d was %v, want %v", i+2, g, want)
				}
			}
		}
		if s := e.Stats(); s.Pending != 2 {
			t.Errorf("%+v: want 2 pending", s)
		}
		var seq uint64
		for _, tr := range n.got() {
			if tr.Seq <= seq {
				t.Errorf("sequence %d after %d", tr.Seq, seq)
			}
			seq = tr.Seq
		}

		// Back to what the sink was told at first; it may have taken the refused
		// report all the same, so it is told again.
		p.set(Refused)
		if err := e.Update(nil, []string{"b"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		n.forget()
		n.setRefuse(nil)
		time.Sleep(10 * time.Second)
		got := n.got()
		if len(got) != 1 || got[0].ID != "a" || got[0].From != Down || got[0].To != Down {
			t.Errorf("%+v", got)
		}
		if s := e.Stats(); s.Pending != 0 || n.seen().reported != 1 {
			t.Errorf("%+v, %d reported", s, n.seen().reported)
		}

		// The next failure begins with a short pause again.
		n.forget()
		n.setRefuse(errors.New("once more"))
		p.set(OK)
		time.Sleep(1500 * time.Millisecond)
		if g := gaps(n.seen().calls); len(g) == 0 || g[0] != 100*time.Millisecond {
			t.Errorf("pauses %v", g)
		}
	})
}

func TestACallOfTheSinkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		sink := SinkFunc(func(ctx context.Context, batch []Transition) error {
			n.Report(ctx, batch) //nolint:errcheck // it only takes notes
			<-ctx.Done()
			return ctx.Err()
		})
		start(t, Config{Sink: sink, ReportTimeout: time.Second}, Check{ID: "a", Probe: newTarget(OK)})
		time.Sleep(30 * time.Second)
		if calls := len(n.seen().calls); calls < 6 {
			t.Errorf("%d calls in 30 s", calls)
		}
	})
}

// Texts that differ from run to run are no transitions; the last one is shown.
func TestVaryingTextsAreNoTransitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		p := newTarget(BadStatus)
		e := start(t, Config{Jitter: -1, Sink: n}, Check{ID: "a", Probe: p, Interval: time.Second})
		for i := range 30 {
			p.mu.Lock()
			p.found = fmt.Sprint("request ", i)
			p.mu.Unlock()
			time.Sleep(time.Second)
		}
		if got := n.got(); len(got) != 1 || got[0].To != Down {
			t.Errorf("%+v", got)
		}
		s := state(t, e, "a")
		if s.Last.Found != "request 29" && s.Last.Found != "request 28" {
			t.Errorf("last %+v", s.Last)
		}
		if s.Cause.Found != n.got()[0].Result.Found {
			t.Errorf("cause %+v, reported %+v", s.Cause, n.got()[0].Result)
		}
	})
}

func TestConfirmations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		up, down, unknown, flaky := newTarget(OK), newTarget(Refused), newTarget(OK), newTarget(OK, Refused, OK, Refused)
		cfg := Config{Jitter: -1, Sink: n, Confirmations: true}
		start(t, cfg,
			Check{ID: "up", Probe: up, Interval: time.Second, Initial: Up},
			Check{ID: "down", Probe: down, Interval: time.Second, Initial: Down},
			Check{ID: "unknown", Probe: unknown, Interval: time.Second},
			Check{ID: "flaky", Probe: flaky, Interval: time.Second, Initial: Up, Rise: 3})
		time.Sleep(30 * time.Second)
		want := map[string]State{"up": Up, "down": Down, "unknown": Up, "flaky": Up}
		for _, tr := range n.got() {
			to, ok := want[tr.ID]
			if !ok {
				t.Errorf("told twice: %+v", tr)
			}
			delete(want, tr.ID)
			if tr.To != to || (tr.From == tr.To) != (tr.ID != "unknown") {
				t.Errorf("%+v", tr)
			}
			if tr.ID == "down" && tr.Result.Class != Refused {
				t.Errorf("%+v: want the result that confirmed it", tr)
			}
		}
		if len(want) > 0 {
			t.Errorf("not told: %v", want)
		}
	})
}

func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		p, q := newTarget(OK), newTarget(Local)
		e := start(t, Config{Jitter: -1, Sink: n}, Check{ID: "a", Probe: p, Interval: time.Second}, Check{ID: "b", Probe: q, Initial: Down})
		time.Sleep(5 * time.Second)
		n.forget()
		e.Announce("a", "a", "b", "no such")
		time.Sleep(time.Second)
		if got := n.got(); len(got) != 1 || got[0].ID != "a" || got[0].From != Up || got[0].To != Up {
			t.Errorf("%+v: want a once, and not b, which has found nothing itself", got)
		}
		// What is announced while the sink refuses arrives in the end.
		n.setRefuse(errors.New("no"))
		e.Announce("a")
		time.Sleep(5 * time.Second)
		n.forget()
		n.setRefuse(nil)
		time.Sleep(10 * time.Second)
		if got := n.got(); len(got) != 1 {
			t.Errorf("%+v", got)
		}
	})
}
