package healthcheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseAndRunInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		never.Close()
		never.Close()
		if err := never.Run(t.Context()); err != nil {
			t.Errorf("Run after Close: %v", err)
		}

		e, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- e.Run(t.Context()) }()
		synctest.Wait()
		if err := e.Run(t.Context()); err == nil {
			t.Error("a second Run was allowed")
		}
		var closers sync.WaitGroup
		for range 5 {
			closers.Go(func() { e.Close() })
		}
		closers.Wait()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}

		ended, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- ended.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run with a context that ended: %v", err)
		}
		ended.Close()
	})
}

// Whenever it is closed, with whatever under way: Run returns, with every probe
// and call of the sink ended, nothing cut short counts, and nothing follows.
func TestCloseAtAnyMoment(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			n := newNotes()
			sink := SinkFunc(func(ctx context.Context, batch []Transition) error {
				select {
				case <-ctx.Done():
				case <-time.After(30 * time.Millisecond):
				}
				return n.Report(ctx, batch)
			})
			e, err := New(Config{Sink: sink, Metrics: n, InFlight: 3, StalledInFlight: 2})
			if err != nil {
				t.Fatal(err)
			}
			var checks []Check
			p := newTarget(OK)
			p.takes = time.Duration(random.IntN(300)) * time.Millisecond
			for i := range 20 {
				checks = append(checks, Check{ID: fmt.Sprint(i), Probe: p, Interval: 100 * time.Millisecond, Timeout: 200 * time.Millisecond, Initial: Up})
			}
			if err := e.Update(checks, nil); err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { done <- e.Run(t.Context()) }()
			time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
			began := time.Now()
			e.Close()
			if took := time.Since(began); took > 0 {
				t.Errorf("Close took %v", took)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if now, _ := p.atOnce(); now != 0 {
				t.Errorf("%d probes run on", now)
			}
			before := len(p.times())
			calls := len(n.got())
			time.Sleep(time.Minute)
			if len(p.times()) != before || len(n.got()) != calls {
				t.Error("it goes on after Close")
			}
			if p.takes < 200*time.Millisecond {
				for _, s := range e.Statuses() {
					if s.Failures > 0 {
						t.Errorf("a probe that was cut short counted: %+v", s)
					}
				}
			}
			if s := e.Stats(); s.Running != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// All methods at once, for the race detector, and for a deadlock.
func TestConcurrentUse(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		n := newNotes()
		e := start(t, Config{Sink: n, Metrics: n, Confirmations: true, InFlight: 5, Hold: Hold{Min: 3}})
		flaky := ProbeFunc(func(context.Context, netip.AddrPort) Result {
			time.Sleep(rand.N(100 * time.Millisecond))
			return Result{Class: Class(rand.IntN(int(numClasses)))}
		})
		var users sync.WaitGroup
		for u := range 8 {
			random := rand.New(rand.NewPCG(seed, uint64(u)))
			users.Go(func() {
				for range 500 {
					id := fmt.Sprint(random.IntN(20))
					switch random.IntN(12) {
					case 0, 1, 2:
						c := Check{ID: id, Probe: flaky, Interval: time.Duration(1+random.IntN(5)) * 100 * time.Millisecond, Rise: 1, Fall: 1, Canary: random.IntN(9) == 0}
						if err := e.Update([]Check{c}, nil); err != nil {
							t.Error(err)
						}
					case 3:
						if err := e.Update(nil, []string{id}); err != nil {
							t.Error(err)
						}
					case 4:
						e.Pause(id)
					case 5:
						e.Resume(id)
					case 6:
						e.Announce(id)
					case 7:
						e.Status(id)
						e.Statuses()
					case 8:
						e.Stats()
						e.Hold()
					case 9:
						e.ReleaseHold()
					case 10:
						if err := e.SetHold(Hold{Min: 1 + random.IntN(5), Limit: time.Second}); err != nil {
							t.Error(err)
						}
					case 11:
						e.ProbeNow(t.Context(), id) //nolint:errcheck // the check may be gone
					}
					time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
				}
			})
		}
		users.Wait()
		s := e.Stats()
		all := e.Statuses()
		if s.Up+s.Down+s.Unknown != len(all) {
			t.Errorf("%+v for %d checks", s, len(all))
		}
		// The wheel, the lanes and the probes under way hold each check once.
		e.mu.Lock()
		defer e.mu.Unlock()
		places := map[place]int{}
		for _, r := range e.checks {
			places[r.place]++
			if r.paused && r.place != resting && r.place != running {
				t.Errorf("%s is paused and %d", r.id, r.place)
			}
			if !r.paused && r.place == resting {
				t.Errorf("%s is forgotten", r.id)
			}
		}
		if places[wheeled] != e.wheel.size || places[queued] != e.healthy.waiting+e.stalled.waiting {
			t.Errorf("%v; the wheel has %d, lanes %d and %d", places, e.wheel.size, e.healthy.waiting, e.stalled.waiting)
		}
	})
}
