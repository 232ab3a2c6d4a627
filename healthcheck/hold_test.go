package healthcheck

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// crowd is a set of targets that are up, one second apart from probe to probe,
// and fall and rise at once.
type crowd struct {
	*Engine
	t       *testing.T
	n       *notes
	targets []*target
}

func newCrowd(t *testing.T, size int, hold Hold, cfg Config, more ...Check) *crowd {
	c := &crowd{t: t, n: newNotes()}
	checks := more
	for i := range size {
		p := newTarget(OK)
		c.targets = append(c.targets, p)
		checks = append(checks, Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Second, Rise: 1, Fall: 1})
	}
	cfg.Jitter, cfg.Sink, cfg.Metrics, cfg.Hold = -1, c.n, c.n, hold
	c.Engine = start(t, cfg, checks...)
	time.Sleep(5 * time.Second)
	if s := c.Stats(); s.Up != len(checks) {
		t.Fatalf("%+v: not all are up", s)
	}
	c.n.forget()
	return c
}

func (c *crowd) set(class Class, targets []*target) {
	for _, p := range targets {
		p.set(class)
	}
}

func (c *crowd) want(up, down, held int) {
	c.t.Helper()
	s := c.Stats()
	if s.Up != up || s.Down != down || s.Held != held {
		c.t.Errorf("%d up (%d of them held), %d down; want %d (%d), %d", s.Up, s.Held, s.Down, up, held, down)
	}
	if h := c.Hold(); h.Held != held || held > 0 && !h.Active {
		c.t.Errorf("%+v: want %d held", h, held)
	}
}

// told counts the checks that the sink was told are in a state.
func (c *crowd) told(to State) int {
	last := map[string]State{}
	for _, tr := range c.n.got() {
		last[tr.ID] = tr.To
	}
	n := 0
	for _, s := range last {
		if s == to {
			n++
		}
	}
	return n
}

// All of 40 fall: more than half are not believed. They come back, and nobody
// was told.
func TestHoldBeginsAndEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		c.set(Timeout, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(20, 20, 20)
		if got := c.told(Down); got != 20 {
			t.Errorf("%d were told to be down, want the 20 that fell before the hold", got)
		}
		h := c.Hold()
		if !strings.Contains(h.Why, "21 of 40") || time.Since(h.Since) > 1100*time.Millisecond || h.Until.Sub(h.Since) != time.Minute {
			t.Errorf("%+v", h)
		}
		for id := range 40 {
			if s := state(t, c.Engine, fmt.Sprint(id)); s.Held != (s.State == Up) || s.Raw != Down {
				t.Errorf("%+v", s)
			}
		}
		c.set(OK, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(40, 0, 0)
		if !slices.Equal(c.n.seen().held, []bool{true, false}) {
			t.Errorf("alarms %v", c.n.seen().held)
		}
		if got := len(c.n.got()); got != 40 {
			t.Errorf("%d reports, want 20 falls and their 20 returns", got)
		}
	})
}

func TestHoldIsLimitedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{Limit: 20 * time.Second}, Config{})
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		until := c.Hold().Until
		time.Sleep(time.Until(until) - 100*time.Millisecond)
		c.want(20, 20, 20)
		time.Sleep(110 * time.Millisecond)
		c.want(0, 40, 0)
		time.Sleep(100 * time.Millisecond)
		if got := c.told(Down); got != 40 {
			t.Errorf("%d were told to be down", got)
		}
	})
}

func TestHoldIsReleasedByRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		if c.ReleaseHold() {
			t.Error("there was one to release")
		}
		c.set(Refused, c.targets)
		for !c.Hold().Active {
			time.Sleep(tick)
		}
		if !c.ReleaseHold() || c.Hold().Active {
			t.Error("it was not released")
		}
		// Who released it knows better: the falls that follow are believed too.
		time.Sleep(1100 * time.Millisecond)
		c.want(0, 40, 0)

		// Once they have eased, a new mass failure is suspected anew.
		c.set(OK, c.targets)
		time.Sleep(30 * time.Second)
		c.want(40, 0, 0)
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(20, 20, 20)
	})
}

func TestNoHold(t *testing.T) {
	t.Run("off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, 40, Hold{Share: 1}, Config{})
			c.set(Refused, c.targets)
			time.Sleep(1100 * time.Millisecond)
			c.want(0, 40, 0)
		})
	})
	t.Run("too few", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, 9, Hold{}, Config{})
			c.set(Refused, c.targets)
			time.Sleep(1100 * time.Millisecond)
			c.want(0, 9, 0)
		})
	})
	t.Run("no more than the share", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, 40, Hold{}, Config{})
			c.set(Refused, c.targets[:20])
			time.Sleep(30 * time.Second)
			c.want(20, 20, 0)
		})
	})
	t.Run("one after the other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, 40, Hold{Window: 3 * time.Second}, Config{})
			for i := range c.targets {
				c.set(Refused, c.targets[i:i+1])
				time.Sleep(500 * time.Millisecond)
			}
			time.Sleep(1100 * time.Millisecond)
			c.want(0, 40, 0)
		})
	})
}

func TestCanaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway, resolver := newTarget(OK), newTarget(OK)
		c := newCrowd(t, 40, Hold{}, Config{},
			Check{ID: "gateway", Probe: gateway, Interval: time.Second, Rise: 1, Fall: 100, Canary: true},
			Check{ID: "resolver", Probe: resolver, Interval: time.Second, Rise: 1, Fall: 100, Canary: true})
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(2, 40, 0) // the canaries answer when asked: the targets are to blame
		if held := c.n.seen().held; !slices.Equal(held, []bool{true, false}) {
			t.Errorf("alarms %v, want one, over at once", held)
		}
		c.set(OK, c.targets)
		time.Sleep(30 * time.Second)

		gateway.set(Timeout)
		time.Sleep(1100 * time.Millisecond)
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		if h := c.Hold(); !h.Active || h.Held < 15 {
			t.Fatalf("%+v: a canary that fails makes no hold", h)
		}
		time.Sleep(10 * time.Second)
		if !c.Hold().Active {
			t.Fatal("it ended though the canary fails")
		}
		gateway.set(OK)
		time.Sleep(1100 * time.Millisecond)
		c.want(2, 40, 0) // this host is well, and they are down all the same
	})
}

func TestRulesOfTheHoldAreChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		if err := c.SetHold(Hold{Min: -1}); err == nil {
			t.Error("faulty rules were taken")
		}
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(20, 20, 20)
		if err := c.SetHold(Hold{Limit: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(c.Hold().Until) + tick)
		c.want(0, 40, 0)

		c.set(OK, c.targets)
		time.Sleep(30 * time.Second)
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(20, 20, 20)
		if err := c.SetHold(Hold{Share: 1}); err != nil {
			t.Fatal(err)
		}
		c.want(0, 40, 0)
	})
}

// This host was cut off, and its canary is the first to answer again: nothing is
// believed of what was held until it fails once more.
func TestACanaryIsTheFirstToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := newTarget(OK)
		c := newCrowd(t, 40, Hold{}, Config{}, Check{ID: "gateway", Probe: gateway, Interval: 100 * time.Millisecond, Rise: 1, Fall: 1, Canary: true})
		c.set(Timeout, append(c.targets, gateway))
		time.Sleep(1100 * time.Millisecond)
		held := c.Hold().Held
		if held < 15 {
			t.Fatalf("%+v", c.Hold())
		}
		down := c.Stats().Down
		c.n.forget()
		c.set(OK, append(c.targets, gateway))
		c.targets[0].set(Refused)
		c.targets[1].set(Refused)
		time.Sleep(1100 * time.Millisecond)
		c.want(39, 2, 0)
		if c.Hold().Active {
			t.Error("the hold goes on")
		}
		if c.told(Down) > 2 || c.told(Up) > down {
			t.Errorf("told %d down and %d up; %d were down and %d held", c.told(Down), c.told(Up), down, held)
		}
	})
}

// With Holds the sink is told what is held, and when it is not any more; the
// state that it is told is the effective one.
func TestHeldIsReported(t *testing.T) {
	for name, end := range map[string]func(*crowd){
		"they come back": func(c *crowd) { c.set(OK, c.targets) },
		"released":       func(c *crowd) { c.ReleaseHold() },
		"changed": func(c *crowd) {
			var changed []Check
			for i, p := range c.targets {
				changed = append(changed, Check{ID: fmt.Sprint(i), Probe: p, Interval: time.Second, Rise: 1, Fall: 100})
			}
			if err := c.Update(changed, nil); err != nil {
				c.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, 40, Hold{}, Config{Holds: true})
				c.set(Refused, c.targets)
				time.Sleep(1200 * time.Millisecond)
				last := map[string]Transition{}
				take := func() {
					for _, tr := range c.n.got() {
						last[tr.ID] = tr
					}
					c.n.forget()
				}
				take()
				for _, s := range c.Statuses() {
					if tr := last[s.ID]; tr.To != s.State || tr.Held != s.Held || tr.Result.Class != Refused {
						t.Fatalf("told %+v of %+v", tr, s)
					}
				}
				end(c)
				time.Sleep(2 * time.Second)
				take()
				for _, s := range c.Statuses() {
					if tr := last[s.ID]; s.Held || tr.To != s.State || tr.Held {
						t.Fatalf("told %+v of %+v", tr, s)
					}
				}
			})
		})
	}
}

// What a canary said before the falls does not vouch for this host: cut off, it
// has its canaries asked at once, and holds what falls though none was due.
func TestCanariesAreAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := newTarget(OK)
		c := newCrowd(t, 40, Hold{}, Config{}, Check{ID: "gateway", Probe: gateway, Interval: time.Hour, Rise: 1, Fall: 3, Canary: true})
		c.set(Timeout, append(c.targets, gateway))
		gateway.take()
		time.Sleep(1100 * time.Millisecond)
		if len(gateway.take()) == 0 || !c.Hold().Active || c.Hold().Held < 15 {
			t.Errorf("%+v", c.Hold())
		}
	})
}

// A paused check stays as it is, even when the hold ends.
func TestAHeldTargetIsPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		var held string
		for _, s := range c.Statuses() {
			if s.Held {
				held = s.ID
			}
		}
		c.Pause(held)
		c.ReleaseHold()
		time.Sleep(10 * time.Second)
		wantState(t, c.Engine, held, Up)
		if s := c.Stats(); s.Held != 1 || s.Down != 39 {
			t.Errorf("%+v", s)
		}
		c.Resume(held)
		time.Sleep(10 * time.Second)
		wantState(t, c.Engine, held, Down)
	})
}

// Held targets that are removed are no reason to hold the others.
func TestHeldTargetsAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40, Hold{}, Config{})
		c.set(Refused, c.targets)
		time.Sleep(1100 * time.Millisecond)
		c.want(20, 20, 20)
		var gone []string
		for i := range 40 {
			if s := state(t, c.Engine, fmt.Sprint(i)); s.Held {
				gone = append(gone, s.ID)
			}
		}
		if err := c.Update(nil, gone[:5]); err != nil {
			t.Fatal(err)
		}
		c.want(15, 20, 15)
		if err := c.Update(nil, gone); err != nil {
			t.Fatal(err)
		}
		c.want(0, 20, 0)
		for i := range 30 {
			if err := c.Update(nil, []string{fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if c.Hold().Active {
			t.Errorf("%+v: hardly anything is left to hold it for", c.Hold())
		}
	})
}

// Whatever comes in whatever order: what is told apart is told right.
func TestHoldAccounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, err := New(Config{Hold: Hold{
			Share: rapid.SampledFrom([]float64{0.2, 0.5, 0.9}).Draw(t, "share"),
			Min:   rapid.IntRange(1, 6).Draw(t, "min"),
			Limit: rapid.SampledFrom([]time.Duration{time.Second, time.Minute}).Draw(t, "limit"),
		}})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Second
		next := 0
		add := func() {
			c := Check{ID: fmt.Sprint(next), Probe: newTarget(OK), Rise: 1, Fall: 1, Initial: Up, Canary: next%16 == 15}
			if err := e.Update([]Check{c}, nil); err != nil {
				t.Fatal(err)
			}
			next++
		}
		for range 12 {
			add()
		}
		pick := func(t *rapid.T) *record {
			ids := make([]string, 0, len(e.checks))
			for id := range e.checks {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			if len(ids) == 0 {
				return nil
			}
			return e.checks[rapid.SampledFrom(ids).Draw(t, "check")]
		}
		result := func(class Class) func(*rapid.T) {
			return func(t *rapid.T) {
				now += time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "later"))
				if r := pick(t); r != nil {
					e.mu.Lock()
					e.settle(r, Result{Class: class}, now-time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "took")), now)
					e.release()
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add":    func(*rapid.T) { add() },
			"fail":   result(Refused),
			"fails":  result(Timeout),
			"answer": result(OK),
			"local":  result(Local),
			"remove": func(t *rapid.T) {
				if r := pick(t); r != nil {
					if err := e.Update(nil, []string{r.id}); err != nil {
						t.Fatal(err)
					}
				}
			},
			"change": func(t *rapid.T) {
				if r := pick(t); r != nil {
					c := Check{ID: r.id, Probe: newTarget(OK), Rise: 1, Fall: 2, Initial: Up}
					if err := e.Update([]Check{c}, nil); err != nil {
						t.Fatal(err)
					}
					if r.held() {
						t.Fatal("what was found under former terms is still held against it")
					}
				}
			},
			"pause": func(t *rapid.T) {
				if r := pick(t); r != nil {
					if r.paused {
						e.Resume(r.id)
					} else {
						e.Pause(r.id)
					}
				}
			},
			"release": func(*rapid.T) { e.ReleaseHold() },
			"review": func(*rapid.T) {
				e.mu.Lock()
				e.reviewHold(now)
				e.release()
			},
			"": func(t *rapid.T) {
				var count [3]int
				held, fallen := 0, 0
				for _, r := range e.checks {
					count[r.effective]++
					if r.raw != r.effective {
						if r.raw != Down || r.effective != Up {
							t.Fatalf("%s is %v by its results and %v in effect", r.id, r.raw, r.effective)
						}
						held++
					}
					if r.fell > 0 && len(e.hold.falls) > 0 && r.fell >= e.hold.falls[0].at {
						fallen++
					}
				}
				switch {
				case count != e.count:
					t.Fatalf("counted %v, are %v", e.count, count)
				case held != e.hold.held:
					t.Fatalf("%d are held, counted %d", held, e.hold.held)
				case fallen != e.hold.down:
					t.Fatalf("%d fell in the window, counted %d", fallen, e.hold.down)
				case !e.hold.active && e.hold.members != 0:
					t.Fatalf("a hold that ended has %d members", e.hold.members)
				}
			},
		})
	})
}
