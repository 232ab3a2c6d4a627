package healthcheck

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestLagMeter(t *testing.T) {
	const ms = time.Millisecond
	var m lagMeter
	expect := func(now, want time.Duration) {
		t.Helper()
		if got := m.upTo(now); got != want {
			t.Errorf("at %v the lag is %v, want %v", now, got, want)
		}
	}
	expect(100*ms, 0) // nothing was promised
	m.promise(100 * ms)
	expect(90*ms, 0)
	expect(103*ms, 0) // within tolerance
	expect(104*ms, 4*ms)
	expect(150*ms, 50*ms)
	m.woke(180 * ms)
	expect(500*ms, 80*ms)
	m.promise(500 * ms)
	m.woke(400 * ms) // woken early
	expect(400*ms, 80*ms)
	m.promise(450 * ms)
	expect(480*ms, 110*ms)
	m.woke(480 * ms)
	expect(480*ms, 110*ms)
	m.queued(2 * ms) // within tolerance
	m.queued(5 * ms)
	expect(480*ms, 115*ms)
}

// INV-33.
func TestWhatLatenessCanExplain(t *testing.T) {
	const (
		timeout = time.Second
		slack   = 50 * time.Millisecond
	)
	for _, class := range Classes() {
		explained := class == Timeout || class == Reset || class == Protocol || class == DNS || class == TLS
		for _, tt := range []struct {
			name         string
			elapsed, lag time.Duration
			late         bool
		}{
			{"in time", 10 * time.Millisecond, 0, false},
			{"at the timeout", timeout, 0, false},
			{"a little over", timeout + timeout/10, 0, false},
			{"far over", timeout + timeout/10 + 1, 0, true},
			{"a little lag", timeout, timeout / 10, false},
			{"lag", 300 * time.Millisecond, timeout/10 + 1, true},
		} {
			res := Result{Class: class, Phase: "answer", Latency: tt.elapsed, Found: "x"}
			got := believable(res, tt.elapsed, tt.lag, timeout, slack)
			if want := tt.late && explained; want != (got.Class == Local && class != Local) {
				t.Errorf("%v %s gives %+v", class, tt.name, got)
			} else if !want && got != res {
				t.Errorf("%v %s changed: %+v", class, tt.name, got)
			}
		}
	}
	// Where a tenth of the timeout is less than the slack, the slack counts.
	res := Result{Class: Timeout}
	if got := believable(res, 100*time.Millisecond, slack, 100*time.Millisecond, slack); got != res {
		t.Errorf("%+v", got)
	}
}

// A probe that overran its timeout, or during which this host was held up, does
// not count; one that says more than time can explain does.
func TestALateHostBlamesNobody(t *testing.T) {
	heldUp := func(e *Engine, by time.Duration) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.lag.total += by
	}
	for _, tt := range []struct {
		name  string
		class Class
		takes time.Duration
		lag   time.Duration
		want  State
	}{
		{"timeouts in time", Timeout, time.Second, 0, Down},
		{"overrun", Timeout, 1200 * time.Millisecond, 0, Up},
		{"held up", Timeout, time.Second, 300 * time.Millisecond, Up},
		{"held up a little", Timeout, time.Second, 80 * time.Millisecond, Down},
		{"reset by a peer that gave up", Reset, 500 * time.Millisecond, 300 * time.Millisecond, Up},
		{"refused all the same", Refused, 0, 300 * time.Millisecond, Down},
		{"a bad status all the same", BadStatus, 1200 * time.Millisecond, 0, Down},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var e *Engine
				n := newNotes()
				probe := ProbeFunc(func(context.Context, netip.AddrPort) Result {
					time.Sleep(tt.takes)
					heldUp(e, tt.lag)
					return Result{Class: tt.class}
				})
				var err error
				if e, err = New(Config{Metrics: n, Slack: 100 * time.Millisecond}); err != nil {
					t.Fatal(err)
				}
				if err := e.Update([]Check{{ID: "a", Probe: probe, Interval: 3 * time.Second, Initial: Up}}, nil); err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() { done <- e.Run(t.Context()) }()
				time.Sleep(30 * time.Second)
				s := state(t, e, "a")
				if s.State != tt.want || (tt.want == Up) != (s.Last.Class == Local) {
					t.Errorf("%+v", s)
				}
				if (tt.want == Up) != (n.seen().probed[Local] > 5) {
					t.Errorf("the metrics say %v", n.seen().probed)
				}
				if tt.lag > 0 && e.Stats().Lag < tt.lag {
					t.Errorf("%+v", e.Stats())
				}
				e.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
