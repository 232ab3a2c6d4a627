package healthcheck

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// exact has no jitter, so that times can be told to the tick.
var exact = Config{Jitter: -1}

func TestIntervalsByState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		e := start(t, exact, Check{
			ID: "a", Probe: p, Rise: 3, Fall: 3,
			Interval: time.Second, DoubtInterval: 200 * time.Millisecond, DownInterval: 5 * time.Second,
		})
		all := func(what string, got []time.Duration, n int, want time.Duration) {
			t.Helper()
			if len(got) < n {
				t.Errorf("%s: %d gaps, want %d", what, len(got), n)
			}
			for _, g := range got {
				if g != want {
					t.Errorf("%s: gaps %v, want %v", what, got, want)
					return
				}
			}
		}
		time.Sleep(10 * time.Second)
		wantState(t, e, "a", Up)
		// The first goes out at once; the second at the next of its own times.
		all("up", gaps(p.take()[1:]), 8, time.Second)

		p.set(Refused)
		time.Sleep(60 * time.Second)
		wantState(t, e, "a", Down)
		failures := gaps(p.take())
		all("in doubt", failures[:2][1:], 1, 200*time.Millisecond)
		all("down", failures[4:], 8, 5*time.Second)

		p.set(OK)
		time.Sleep(20 * time.Second)
		wantState(t, e, "a", Up)
		successes := gaps(p.take())
		all("rising", successes[1:2], 1, 200*time.Millisecond)
		all("up again", successes[4:], 8, time.Second)
	})
}

func TestIntervalWhileUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(Local)
		start(t, exact, Check{ID: "a", Probe: p, Interval: time.Second, DownInterval: 300 * time.Millisecond})
		time.Sleep(10 * time.Second)
		for i, g := range gaps(p.take())[1:] {
			if g != 300*time.Millisecond {
				t.Fatalf("gap %d is %v", i, g)
			}
		}
	})
}

func TestIntervalsAreOneByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK, OK, OK, Refused, OK, Refused, Refused, Refused, Refused, OK, OK)
		start(t, exact, Check{ID: "a", Probe: p, Interval: 300 * time.Millisecond})
		time.Sleep(10 * time.Second)
		for i, g := range gaps(p.take())[1:] {
			if g != 300*time.Millisecond {
				t.Fatalf("gap %d is %v", i, g)
			}
		}
	})
}

// Steps of the rules of rise and fall, seen from outside with their times.
func TestRiseAndFall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		n := newNotes()
		cfg := exact
		cfg.Sink = n
		e := start(t, cfg, Check{ID: "a", Probe: p, Interval: time.Second, Rise: 2, Fall: 3})
		after := func(runs int, class Class, want State) {
			t.Helper()
			p.set(class)
			for range runs {
				time.Sleep(time.Second)
			}
			wantState(t, e, "a", want)
		}
		after(1, OK, Up) // from unknown: one is enough
		after(2, Refused, Up)
		after(1, OK, Up) // the count begins anew
		after(2, Timeout, Up)
		after(1, Refused, Down) // classes may differ
		if s := state(t, e, "a"); s.Failures != 3 || s.Successes != 0 || s.Raw != Down || !s.Confirmed || s.Cause.Class != Refused {
			t.Errorf("%+v", s)
		}
		after(1, OK, Down)
		after(1, Refused, Down)
		after(1, OK, Down)
		after(1, OK, Up)
		after(10, Local, Up) // counts for nothing, ...
		if s := state(t, e, "a"); s.Successes != 2 || s.Last.Class != Local {
			t.Errorf("%+v", s)
		}
		after(2, Refused, Up)
		after(5, Local, Up)
		after(1, Refused, Down) // ... neither against nor for a target
		var told []State
		for _, tr := range n.got() {
			told = append(told, tr.To)
		}
		if want := []State{Up, Down, Up}; !slices.Equal(told, want) && !slices.Equal(told, append(want, Down)) {
			t.Errorf("told %v", told)
		}
	})
}

func TestInitialStateStands(t *testing.T) {
	for _, initial := range []State{Unknown, Up, Down} {
		synctest.Test(t, func(t *testing.T) {
			n := newNotes()
			cfg := exact
			cfg.Sink = n
			p := newTarget(Local)
			e := start(t, cfg, Check{ID: "a", Probe: p, Initial: initial})
			time.Sleep(time.Minute)
			wantState(t, e, "a", initial)
			p.set(map[State]Class{Unknown: OK, Up: OK, Down: Refused}[initial])
			time.Sleep(time.Minute)
			if got := n.got(); initial != Unknown && len(got) > 0 {
				t.Errorf("what the sink knows was told again: %+v", got)
			}
		})
	}
}

// Checks of one interval are probed at times that their IDs spread, and these
// are the same in another engine.
func TestPhasesSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		targets := make([]*target, n)
		checks := make([]Check, n)
		begin := func() *Engine {
			for i := range targets {
				targets[i] = newTarget(OK)
				checks[i] = Check{ID: fmt.Sprint("check ", i), Probe: targets[i], Interval: time.Second}
			}
			return start(t, exact, checks...)
		}
		phases := func() (out []time.Duration) {
			time.Sleep(3 * time.Second)
			for _, p := range targets {
				all := p.take()
				out = append(out, all[len(all)-1]%time.Second)
			}
			return out
		}
		e := begin()
		first := phases()
		e.Close()
		begin()
		if second := phases(); !slices.Equal(first, second) {
			t.Error("the phases of a second engine differ")
		}
		slices.Sort(first)
		for i, p := range first {
			if want := time.Duration(i) * time.Second / n; (p - want).Abs() > 150*time.Millisecond {
				t.Errorf("phase %d of %d is %v, want about %v", i, n, p, want)
			}
		}
	})
}

// A large set begins over the time that it takes at startRate, a single check
// at once.
func TestStartIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		checks := make([]Check, 5000)
		for i := range checks {
			checks[i] = Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Minute}
		}
		e := start(t, exact, checks...)
		time.Sleep(490 * time.Millisecond)
		if n := len(p.times()); n < 4500 || n >= 5000 {
			t.Errorf("%d of 5000 began within 490ms, want most", n)
		}
		time.Sleep(30 * time.Millisecond)
		if n := len(p.times()); n != 5000 {
			t.Errorf("%d of 5000 began within 520ms", n)
		}
		alone := newTarget(OK)
		if err := e.Update([]Check{{ID: "alone", Probe: alone, Interval: time.Minute}}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * tick)
		if len(alone.times()) != 1 {
			t.Error("one new check does not begin at once")
		}
	})
}

func TestJitterStaysWithinItsPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		start(t, Config{Jitter: 0.1}, Check{ID: "a", Probe: p, Interval: time.Second})
		time.Sleep(200 * time.Second)
		r := &record{id: "a"}
		moved := 0
		times := p.take()[1:]
		if len(times) < 198 {
			t.Fatalf("%d probes in 200 s", len(times))
		}
		for _, at := range times {
			grid := r.grid(at-time.Second/2, time.Second)
			off := (at - grid).Abs()
			if off > 100*time.Millisecond+tick {
				t.Errorf("%v off its time, want at most a tenth of the interval", off)
			}
			if off > 2*tick {
				moved++
			}
		}
		if moved < len(times)/2 {
			t.Errorf("%d of %d moved: there is no jitter", moved, len(times))
		}
	})
}

// A probe that takes longer than its interval is followed by one, not by those
// that were missed.
func TestNoCatchingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		cfg := exact
		cfg.Metrics = n
		p := newTarget(OK)
		e := start(t, cfg, Check{ID: "a", Probe: p, Interval: time.Second, Timeout: 20 * time.Second})
		time.Sleep(5 * time.Second)
		p.take()
		p.slow(10500 * time.Millisecond)
		time.Sleep(2 * time.Second)
		p.slow(0)
		time.Sleep(12 * time.Second)
		g := gaps(p.take())
		if g[0] != 11*time.Second {
			t.Errorf("after a probe of 10.5 s the next began %v later, want 11s", g[0])
		}
		for _, g := range g[1:] {
			if g != time.Second {
				t.Errorf("a gap of %v afterwards", g)
			}
		}
		if e.Stats().Skipped != 10 || n.seen().skipped != 10 {
			t.Errorf("skipped %d, the metrics say %d; want 10", e.Stats().Skipped, n.seen().skipped)
		}
		if _, most := p.atOnce(); most > 1 {
			t.Errorf("%d probes of one check at once", most)
		}
	})
}

// The timeout counts from when a probe begins, though it was due much earlier.
func TestTimeoutCountsFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := exact
		cfg.InFlight = 1
		left := make(chan time.Duration, 1)
		first := newTarget(OK)
		first.takes, first.hard = 3*time.Second, true
		second := ProbeFunc(func(ctx context.Context, _ netip.AddrPort) Result {
			deadline, ok := ctx.Deadline()
			if !ok {
				t.Error("no deadline")
			}
			select {
			case left <- time.Until(deadline):
			default:
			}
			<-ctx.Done()
			return Result{Class: Timeout}
		})
		e := start(t, cfg, Check{ID: "first", Probe: first, Interval: time.Minute, Timeout: 10 * time.Second})
		time.Sleep(time.Second)
		if err := e.Update([]Check{{ID: "second", Probe: second, Interval: time.Minute, Timeout: 2 * time.Second}}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s := e.Stats(); s.Running != 1 || s.Waiting != 1 || s.OldestOverdue < 900*time.Millisecond {
			t.Errorf("%+v: want one to wait since a second", s)
		}
		if d := <-left; d != 2*time.Second {
			t.Errorf("%v left at the start, want the whole timeout", d)
		}
		time.Sleep(2*time.Second + tick)
		if s := state(t, e, "second"); s.Last.Class != Timeout || s.Last.Latency != 2*time.Second {
			t.Errorf("%+v: want a timeout of 2s", s.Last)
		}
	})
}

func TestInFlightIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := exact
		cfg.InFlight = 7
		p := newTarget(OK)
		p.takes = 100 * time.Millisecond
		checks := make([]Check, 50)
		for i := range checks {
			checks[i] = Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Second}
		}
		e := start(t, cfg, checks...)
		time.Sleep(10 * time.Second)
		if _, most := p.atOnce(); most != 7 {
			t.Errorf("%d at once, want 7", most)
		}
		// 50 probes of 100 ms in 7 places take 0.8 s: all get their turn.
		if n := len(p.times()); n < 450 {
			t.Errorf("%d probes in 10 s, want about 500", n)
		}
		if s := e.Stats(); s.Up != 50 || s.Skipped != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Targets that time out run in a lane of their own, and leave the others'
// places and times alone; one that answers again comes back.
func TestStalledLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		cfg := exact
		cfg.InFlight, cfg.StalledInFlight, cfg.Metrics = 10, 4, n
		dead, well := newTarget(Timeout), newTarget(OK)
		dead.takes = time.Hour
		var checks []Check
		for i := range 40 {
			checks = append(checks,
				Check{ID: fmt.Sprint("dead", i), Probe: dead, Interval: time.Second},
				Check{ID: fmt.Sprint("well", i), Probe: well, Interval: time.Second})
		}
		e := start(t, cfg, checks...)
		time.Sleep(10 * time.Second) // each dead one has been met once
		s := e.Stats()
		if s.RunningStalled != 4 || s.WaitingStalled < 20 || s.Waiting != s.WaitingStalled {
			t.Errorf("%+v: want 4 stalled ones to run and the others of them to wait", s)
		}
		well.take()
		n.forget()
		time.Sleep(10 * time.Second)
		if late := n.seen().late; n.seen().probed[OK] < 399 || late > 2*tick {
			t.Errorf("%v, late by %v", n.seen().probed, late)
		}
		if got := len(well.take()); got < 399 || got > 401 {
			t.Errorf("%d probes of 40 targets that are well in 10 s, want 400", got)
		}
		dead.slow(0)
		dead.set(OK)
		time.Sleep(5 * time.Second)
		if s := e.Stats(); s.Up != 80 || s.WaitingStalled != 0 || s.RunningStalled != 0 {
			t.Errorf("after they came back: %+v", s)
		}
	})
}

// A failure that took most of the timeout holds a place as long as a timeout.
func TestSlowFailuresAreStalledToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := exact
		cfg.InFlight, cfg.StalledInFlight = 1, 1
		slow := newTarget(DNS, DNS, Local, Local)
		slow.takes = 700 * time.Millisecond
		e := start(t, cfg, Check{ID: "slow", Probe: slow, Interval: time.Second, Timeout: time.Second})
		for range 200 {
			time.Sleep(50 * time.Millisecond)
			if s := e.Stats(); len(slow.times()) > 1 && s.Running != s.RunningStalled {
				t.Fatalf("%+v: it runs among those that are well", s)
			}
		}
	})
}

func TestPauseFreezes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		e := start(t, exact, Check{ID: "a", Probe: p, Interval: time.Second})
		time.Sleep(5 * time.Second)
		p.set(Refused)
		time.Sleep(2 * time.Second)
		before := state(t, e, "a")
		e.Pause("a", "a", "no such")
		time.Sleep(time.Minute)
		s := state(t, e, "a")
		if !s.Paused || s.State != Up || s.Failures != before.Failures || !s.Next.IsZero() || s.LastAt != before.LastAt {
			t.Errorf("%+v became %+v while paused", before, s)
		}
		p.take()
		e.Resume("a", "a", "no such")
		time.Sleep(10 * time.Second)
		wantState(t, e, "a", Down)
		if n := len(p.take()); n < 10 || n > 11 {
			t.Errorf("%d probes in the 10 s after Resume", n)
		}
	})
}

// A probe that runs while its check is paused, resumed or changed says nothing
// about what the check is by then.
func TestResultsOfAFormerCheckAreDropped(t *testing.T) {
	for name, meddle := range map[string]func(*Engine, Check) error{
		"pause":            func(e *Engine, _ Check) error { e.Pause("a"); return nil },
		"pause and resume": func(e *Engine, _ Check) error { e.Pause("a"); e.Resume("a"); return nil },
		"change": func(e *Engine, c Check) error {
			c.Rise = 9
			return e.Update([]Check{c}, nil)
		},
		"remove": func(e *Engine, c Check) error { return e.Update(nil, []string{"a"}) },
		"remove and add": func(e *Engine, c Check) error {
			return e.Update([]Check{c}, []string{"a"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNotes()
				cfg := exact
				cfg.Metrics, cfg.Sink = n, n
				p := newTarget(OK)
				p.takes = 400 * time.Millisecond
				c := Check{ID: "a", Probe: p, Interval: time.Minute}
				e := start(t, cfg, c)
				time.Sleep(200 * time.Millisecond)
				if err := meddle(e, c); err != nil {
					t.Fatal(err)
				}
				time.Sleep(250 * time.Millisecond)
				if s, ok := e.Status("a"); ok && s.State != Unknown {
					t.Errorf("%+v", s)
				}
				if n.seen().probed[OK] != 0 || len(n.got()) != 0 {
					t.Errorf("%v results, %v reported", n.seen().probed, n.got())
				}
			})
		})
	}
}

// INV-31.
func TestAChangedCheckKeepsItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTarget(OK)
		c := Check{ID: "a", Probe: p, Interval: time.Second, Rise: 2, Fall: 3}
		e := start(t, exact, c)
		time.Sleep(10 * time.Second)
		p.set(Refused)
		for state(t, e, "a").Failures < 2 {
			time.Sleep(tick)
		}

		// The failures under the old terms do not count under the new ones.
		c.Fall = 5
		worse := newTarget(Refused)
		c.Probe = worse
		if err := e.Update([]Check{c}, nil); err != nil {
			t.Fatal(err)
		}
		s := state(t, e, "a")
		if s.State != Up || s.Failures != 0 || s.Confirmed {
			t.Errorf("after a change: %+v", s)
		}
		for len(worse.times()) < 4 {
			time.Sleep(tick)
		}
		wantState(t, e, "a", Up)
		time.Sleep(1010 * time.Millisecond)
		wantState(t, e, "a", Down)

		// The same again is no change.
		before := state(t, e, "a")
		time.Sleep(100 * time.Millisecond)
		if err := e.Update([]Check{c}, nil); err != nil {
			t.Fatal(err)
		}
		if s := state(t, e, "a"); s.Next.Sub(before.Next).Abs() > tick || s.Failures != before.Failures {
			t.Errorf("an update without a change turned %+v into %+v", before, s)
		}
	})
}

// An ID that an update names twice ends as the last says, and runs once.
func TestUpdateNamesACheckTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, exact)
		synctest.Wait()
		first, second := newTarget(OK), newTarget(OK)
		err := e.Update([]Check{{ID: "a", Probe: first, Interval: time.Second}, {ID: "a", Probe: second, Interval: time.Second}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10500 * time.Millisecond)
		if n, m := len(first.times()), len(second.times()); n != 0 || m < 10 || m > 11 {
			t.Errorf("%d probes of the former and %d of the latter in 10 s", n, m)
		}
		if err := e.Update(nil, []string{"a", "a"}); err != nil {
			t.Fatal(err)
		}
		if s := e.Stats(); s.Up+s.Down+s.Unknown != 0 {
			t.Errorf("after the removal: %+v", s)
		}
	})
}

// A Probe that cannot be compared is taken for a new one each time.
func TestProbesThatCannotBeCompared(t *testing.T) {
	f := ProbeFunc(func(context.Context, netip.AddrPort) Result { return Result{} })
	p, q := newTarget(OK), newTarget(OK)
	if sameProbe(f, f) || sameProbe(p, q) || sameProbe(p, f) || !sameProbe(p, p) {
		t.Error("probes are the same if they are comparable and equal")
	}
}

func TestAPanickingProbeIsInconclusive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, exact, Check{ID: "a", Initial: Up, Interval: time.Second, Probe: ProbeFunc(func(context.Context, netip.AddrPort) Result {
			panic("oh")
		})})
		time.Sleep(time.Minute)
		if s := state(t, e, "a"); s.State != Up || s.Last.Class != Local || s.Last.Found != "panic: oh" {
			t.Errorf("%+v", s)
		}
	})
}

func TestProbeNowCountsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		cfg := exact
		cfg.Metrics = n
		p := newTarget(OK)
		e := start(t, cfg, Check{ID: "a", Probe: p, Interval: time.Hour})
		time.Sleep(time.Second)
		before := state(t, e, "a")
		p.set(Refused)
		for range 5 {
			if res, err := e.ProbeNow(t.Context(), "a"); err != nil || res.Class != Refused {
				t.Errorf("%+v, %v", res, err)
			}
		}
		e.Pause("a")
		if res, err := e.ProbeNow(t.Context(), "a"); err != nil || res.Class != Refused {
			t.Errorf("paused: %+v, %v", res, err)
		}
		e.Resume("a")
		if s := state(t, e, "a"); s.State != before.State || s.Failures != 0 || s.LastAt != before.LastAt || n.seen().probed[Refused] != 0 {
			t.Errorf("%+v became %+v", before, s)
		}
		if _, err := e.ProbeNow(t.Context(), "b"); err == nil {
			t.Error("a check that there is not was probed")
		}
		p.slow(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := e.ProbeNow(ctx, "a"); err == nil {
			t.Error("the caller's context does not end it")
		}
	})
}

// Latency, lateness and next run as Status and Metrics have them.
func TestStatusTellsTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		cfg := exact
		cfg.Metrics = n
		p := newTarget(OK)
		p.takes = 3 * time.Millisecond
		e := start(t, cfg, Check{ID: "a", Probe: p, Interval: time.Second})
		time.Sleep(20 * time.Second)
		s := state(t, e, "a")
		if s.Last.Latency != 3*time.Millisecond || s.P50 < 3*time.Millisecond || s.P99 > 5*time.Millisecond {
			t.Errorf("%+v", s)
		}
		if left := time.Until(s.Next); left <= 0 || left > time.Second {
			t.Errorf("next in %v", left)
		}
		if ago := time.Since(s.LastAt); ago < 0 || ago > time.Second {
			t.Errorf("last %v ago", ago)
		}
		if up := time.Since(s.Since); up < 19*time.Second || up > 20*time.Second {
			t.Errorf("up since %v", up)
		}
		if n.seen().late > tick || n.seen().probed[OK] < 20 || n.seen().changes != 1 {
			t.Errorf("late by %v, %v, %d changes", n.seen().late, n.seen().probed, n.seen().changes)
		}
		if all := e.Statuses(); len(all) != 1 || all[0].ID != "a" {
			t.Errorf("%+v", all)
		}
	})
}
