package healthcheck

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A line is what a check begins with, a word of results, + and -, the raw state
// that each leads to (? unknown, U up, D down), and whether it is confirmed.
func TestJudgement(t *testing.T) {
	for _, tt := range []struct {
		initial    State
		rise, fall int
		results    string
		states     string
		confirmed  string
	}{
		// A target of which nothing is known is up after one success, down after fall failures.
		{Unknown, 2, 3, "+++", "UUU", "yyy"},
		{Unknown, 2, 3, "--+", "??U", "nny"},
		{Unknown, 2, 3, "---", "??D", "nny"},
		{Unknown, 5, 1, "-", "D", "y"},
		// Up falls after fall failures in a row, no fewer.
		{Up, 2, 3, "--+--+---", "UUUUUUUUD", "nnnnnnnny"},
		{Up, 1, 1, "-+-", "DUD", "yyy"},
		// Down rises after rise successes in a row, no fewer.
		{Down, 3, 1, "++-++-+++", "DDDDDDDDU", "nnyyyyyyy"},
		// What was taken over is confirmed by as many results as would change it.
		{Up, 2, 3, "+-++", "UUUU", "nnny"},
		{Down, 2, 3, "-----", "DDDDD", "nnyyy"},
		{Down, 2, 3, "--+---", "DDDDDD", "nnnnny"},
	} {
		r := newRecord(Check{ID: "a", Probe: newTarget(OK), Initial: tt.initial, Rise: tt.rise, Fall: tt.fall}.withDefaults())
		var states, confirmed strings.Builder
		for _, c := range tt.results {
			before := r.raw
			if changed := r.judge(c == '+'); changed != (r.raw != before) {
				t.Errorf("judge says changed=%v from %v to %v", changed, before, r.raw)
			}
			states.WriteByte("?UD"[r.raw])
			confirmed.WriteByte("ny"[map[bool]int{true: 1}[r.confirmed]])
		}
		if states.String() != tt.states || confirmed.String() != tt.confirmed {
			t.Errorf("from %v, rise %d, fall %d: %s gives %s confirmed %s, want %s confirmed %s",
				tt.initial, tt.rise, tt.fall, tt.results, states.String(), confirmed.String(), tt.states, tt.confirmed)
		}
	}
}

func TestStreaksSaturate(t *testing.T) {
	r := newRecord(Check{ID: "a", Probe: newTarget(OK)}.withDefaults())
	r.raw, r.streak = Up, math.MaxInt32
	if r.judge(true); r.streak != math.MaxInt32 {
		t.Errorf("%d successes", r.streak)
	}
	r.raw, r.streak = Down, -math.MaxInt32
	if r.judge(false); r.streak != -math.MaxInt32 {
		t.Errorf("%d failures", r.streak)
	}
}

// The points that an ID gets lie one interval apart, are the same whenever one
// asks, and spread evenly over the interval.
func TestPhaseComesFromTheIDAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &record{id: rapid.String().Draw(t, "id")}
		interval := time.Duration(rapid.Int64Range(int64(MinInterval), int64(time.Hour)).Draw(t, "interval"))
		at := time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(t, "at"))
		next := r.grid(at, interval)
		if next <= at && at != 0 || next < at {
			t.Fatalf("after %v comes %v", at, next)
		}
		if next > at+interval {
			t.Fatalf("after %v comes %v: more than an interval of %v", at, next, interval)
		}
		if again := r.grid(next-1, interval); again != next {
			t.Fatalf("before %v comes %v", next, again)
		}
		if then := r.grid(next, interval); then != next+interval {
			t.Fatalf("%v after %v, want %v", then, next, interval)
		}
	})
	// Names as they are in life, alike but for some digits.
	const n, parts = 10_000, 10
	var count [parts]int
	for i := range n {
		r := &record{id: fmt.Sprintf("10.0.%d.%d:80 tcp", i/256, i%256)}
		count[int(r.grid(0, time.Second)*parts/time.Second)]++
	}
	for i, c := range count {
		if c < n/parts*8/10 || c > n/parts*12/10 {
			t.Errorf("%d of %d phases in tenth %d of the interval, want about %d", c, n, i, n/parts)
		}
	}
}

func TestLane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l lane
		var model []*record
		t.Repeat(map[string]func(*rapid.T){
			"push": func(*rapid.T) {
				r := new(record)
				l.push(r)
				model = append(model, r)
			},
			"pop": func(t *rapid.T) {
				var want *record
				if len(model) > 0 {
					want, model = model[0], model[1:]
				}
				if got := l.pop(); got != want {
					t.Fatal("not the first")
				}
			},
			"remove": func(t *rapid.T) {
				if len(model) == 0 {
					return
				}
				i := rapid.IntRange(0, len(model)-1).Draw(t, "i")
				l.remove(model[i])
				model = slices.Delete(model, i, i+1)
			},
			"": func(t *rapid.T) {
				if l.waiting != len(model) {
					t.Fatalf("%d wait, want %d", l.waiting, len(model))
				}
				i := 0
				for r := l.head; r != nil; r = r.next {
					if r != model[i] {
						t.Fatal("not in order")
					}
					i++
				}
			},
		})
	})
}

// An idle check costs at most 300 bytes, its name of some 20 bytes and its place
// in the index included.
func TestSizeOfAnIdleCheck(t *testing.T) {
	const n = 100_000
	p := newTarget(OK)
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range n {
		c := Check{ID: fmt.Sprintf("10.%d.%d.%d:443 tcp", i>>16, i>>8&255, i&255), Probe: p}
		if err := e.Update([]Check{c}, nil); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / n
	t.Logf("%d bytes a check", each)
	if each > 300 {
		t.Errorf("an idle check costs %d bytes, want at most 300", each)
	}
	if len(e.Statuses()) != n {
		t.Error("not all are there")
	}
}
