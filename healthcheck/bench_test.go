package healthcheck

import (
	"fmt"
	"testing"
	"time"
)

// Adding and removing one check costs the same however many there are.
func BenchmarkUpdateOne(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint("of-", n), func(b *testing.B) {
			e, err := New(Config{})
			if err != nil {
				b.Fatal(err)
			}
			p := newTarget(OK)
			checks := make([]Check, n)
			for i := range checks {
				checks[i] = Check{ID: fmt.Sprint("check ", i), Probe: p, Interval: time.Hour}
			}
			if err := e.Update(checks, nil); err != nil {
				b.Fatal(err)
			}
			one := []Check{{ID: "one", Probe: p, Interval: time.Hour}}
			gone := []string{"one"}
			b.ReportAllocs()
			for b.Loop() {
				if err := e.Update(one, nil); err != nil {
					b.Fatal(err)
				}
				if err := e.Update(nil, gone); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What the engine itself costs for a result, the probe aside.
func BenchmarkSettle(b *testing.B) {
	e, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	if err := e.Update([]Check{{ID: "a", Probe: newTarget(OK)}}, nil); err != nil {
		b.Fatal(err)
	}
	r := e.checks["a"]
	b.ReportAllocs()
	for b.Loop() {
		e.mu.Lock()
		e.settle(r, Result{Latency: time.Millisecond}, 1, 2)
		e.release()
	}
}
