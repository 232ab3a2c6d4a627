// Package figures holds what the benchmarks share: their options, medians, and
// the form of a ratio line.
package figures

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// Options are those of the command line.
type Options struct {
	Quick bool // a short run, of one to two minutes
	Keys  int  // raft alone: writes and reads with so many keys, nothing else; 0: 100,000, and everything
	// Only, where given, are the kinds that are measured, by their names; raft alone.
	Only []string
	// Callers, where given, is how many write at once, one measurement each; raft alone.
	Callers []int
}

// Rounds is how many interleaved rounds to take the median of.
func (o Options) Rounds() int {
	if o.Quick {
		return 3
	}
	return 5
}

// Number is what a figure can be.
type Number interface {
	~int | ~int64 | ~uint64 | ~float64
}

// Median returns the median of values, 0 of none; of an even count the lower
// of the two in the middle.
func Median[N Number](values []N) N {
	if len(values) == 0 {
		return 0
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return s[(len(s)-1)/2]
}

// Quantile returns the q-quantile (0 to 1) of values, 0 of none.
func Quantile[N Number](values []N, q float64) N {
	if len(values) == 0 {
		return 0
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// Less prints the ratio of a figure where less is better (time, memory, CPU).
func Less[N Number](w io.Writer, what string, ours, rival N) {
	ratio(w, what, float64(rival), float64(ours))
}

// More prints the ratio of a figure where more is better (throughput).
func More[N Number](w io.Writer, what string, ours, rival N) {
	ratio(w, what, float64(ours), float64(rival))
}

func ratio(w io.Writer, what string, better, worse float64) {
	if worse == 0 {
		fmt.Fprintf(w, "ratio %s unmeasured\n", what)
		return
	}
	fmt.Fprintf(w, "ratio %s %.2f\n", what, better/worse)
}

// Settled collects garbage and returns the live heap and the memory got from
// the system, in bytes.
func Settled() (heap, sys uint64) {
	for range 3 {
		runtime.GC()
		time.Sleep(20 * time.Millisecond) // finalizers run between collections
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.Sys - m.HeapReleased
}
