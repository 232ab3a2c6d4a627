package statebench

import (
	"context"
	"fmt"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/lbstate"
)

// Limits that do not depend on a rival. A ratio below 1 breaks one.
const (
	flatLimit   = 1.5         // cost of a change at 10,000 services by that at 100
	listLimit   = time.Second // 10,000 services, nothing cached
	wakeLimit   = time.Second // 10,000 watchers, one change
	memoryLimit = 10 << 10    // heap of a service that is cached, bytes
	watchLimit  = 10 << 10    // heap of a watcher and its goroutine, bytes
)

// Run measures everything and prints it.
func Run(ctx context.Context, o figures.Options) error {
	dir, err := os.MkdirTemp("", "statebench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := flat(ctx, o, dir); err != nil {
		return err
	}
	ours, err := measureOurs(ctx, o, dir)
	if err != nil {
		return err
	}
	theirs, err := measureRival(ctx, o, dir)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "%d services, %d backends each\tlbstate\tetcd\n", services, backends)
	fmt.Fprintf(w, "load\t%v\t%v\n", round(ours.load), round(theirs.load))
	fmt.Fprintf(w, "list, nothing cached\t%v\t%v\n", round(ours.list), round(theirs.list))
	fmt.Fprintf(w, "list again\t%v\t%v\n", round(ours.again), round(theirs.again))
	fmt.Fprintf(w, "one change\t%v\t%v\n", round(ours.change), round(theirs.change))
	fmt.Fprintf(w, "one change of many writers\t%v\t%v\n", round(ours.busy), round(theirs.busy))
	fmt.Fprintf(w, "start %d watchers\t%v\t%v\n", watchers, round(ours.start), round(theirs.start))
	fmt.Fprintf(w, "wake them all\t%v\t%v\n", round(ours.wake), round(theirs.wake))
	fmt.Fprintf(w, "heap of a cached service\t%d B\t\n", ours.perService)
	fmt.Fprintf(w, "heap of a watcher\t%d B\t%d B\n", ours.perWatcher, theirs.perWatcher)
	fmt.Fprintf(w, "a service on the wire\t%d B\t\n", ours.wire)
	fmt.Fprintf(w, "a service as JSON\t%d B\t\n", ours.json)
	fmt.Fprintf(w, "a service stored, all told\t%d B\t\n", ours.stored)
	if err := w.Flush(); err != nil {
		return err
	}
	out := os.Stdout
	figures.Less(out, "state/load", ours.load, theirs.load)
	figures.Less(out, "state/change", ours.change, theirs.change)
	figures.Less(out, "state/changes-together", ours.busy, theirs.busy)
	figures.Less(out, "state/watchers-start", ours.start, theirs.start)
	figures.Less(out, "state/watchers-wake", ours.wake, theirs.wake)
	figures.Less(out, "state/watcher-memory", ours.perWatcher, theirs.perWatcher)
	figures.Less(out, "state/list-limit", ours.list, listLimit)
	figures.Less(out, "state/wake-limit", ours.wake, wakeLimit)
	figures.Less(out, "state/memory-limit", ours.perService, memoryLimit)
	figures.Less(out, "state/watcher-limit", ours.perWatcher, watchLimit)
	return nil
}

const services = 10_000

// figuresOf is what one side took.
type figuresOf struct {
	load, list, again, change, busy, start, wake time.Duration
	perService, perWatcher                       int64
	wire, json, stored                           int
}

// together is how long one of many changes takes when 64 writers make them.
func together(change func(i int) error) (time.Duration, error) {
	const writers, each = 64, 100
	var all sync.WaitGroup
	failed := make(chan error, writers)
	took, _ := timed(func() error {
		for w := range writers {
			all.Go(func() {
				for i := range each {
					if err := change(w*each + i); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		all.Wait()
		return nil
	})
	close(failed)
	return took / (writers * each), <-failed
}

func round(d time.Duration) time.Duration { return d.Round(max(time.Microsecond, d/1000)) }

func timed(fn func() error) (time.Duration, error) {
	begun := time.Now()
	err := fn()
	return time.Since(begun), err
}

// load puts services in transactions of many.
func load(ctx context.Context, store *lbstate.Store, n int) error {
	for i := 0; i < n; {
		var ops []lbstate.Operation
		for ; i < n && len(ops) < batch; i++ {
			s := service(i, 100)
			ops = append(ops, lbstate.Operation{Put: lbstate.Object{Service: &s}})
		}
		if _, err := store.Transact(ctx, ops, lbstate.WriteOptions{Author: "bench"}); err != nil {
			return err
		}
	}
	return nil
}

// change makes the i-th change: to one of n services, chosen from all over.
func change(ctx context.Context, store *lbstate.Store, i, n int) error {
	res, err := store.PutService(ctx, service(i*7919%n, i%60000+101), lbstate.WriteOptions{Author: "bench"})
	if err == nil && res.Outcome != lbstate.Changed {
		err = fmt.Errorf("change %d: %s", i, res.Outcome)
	}
	return err
}

// flat compares the cost of one change at sizes of the state, in turns so that
// a noisy machine is noisy to all.
func flat(ctx context.Context, o figures.Options, dir string) error {
	sizes := []int{100, 1000, 10_000}
	stores := make([]*lbstate.Store, len(sizes))
	times := make([][]time.Duration, len(sizes))
	for i, n := range sizes {
		sub, err := os.MkdirTemp(dir, "flat")
		if err != nil {
			return err
		}
		store, r, err := open(sub)
		if err != nil {
			return err
		}
		defer r.close()
		if err := load(ctx, store, n); err != nil {
			return err
		}
		stores[i] = store
	}
	const turn = 50
	for i := range 100 * o.Rounds() {
		for j, n := range sizes {
			for k := range turn {
				d, err := timed(func() error { return change(ctx, stores[j], i*turn+k, n) })
				if err != nil {
					return err
				}
				times[j] = append(times[j], d)
			}
		}
	}
	base := figures.Median(times[0])
	for j, n := range sizes {
		fmt.Printf("one change at %6d services: median %v, p90 %v\n", n, round(figures.Median(times[j])), round(figures.Quantile(times[j], 0.9)))
	}
	for j, n := range sizes[1:] {
		figures.Less(os.Stdout, fmt.Sprintf("state/flat-%d", n), float64(figures.Median(times[j+1]))/float64(base), flatLimit)
	}
	return nil
}

func measureOurs(ctx context.Context, o figures.Options, dir string) (f figuresOf, err error) {
	store, r, err := open(dir)
	if err != nil {
		return f, err
	}
	defer r.close()
	if f.load, err = timed(func() error { return load(ctx, store, services) }); err != nil {
		return f, err
	}
	used, err := r.size()
	if err != nil {
		return f, err
	}
	f.stored = int(used / services)
	before, _ := figures.Settled()
	var list []lbstate.ServiceStatus
	lists := func() (err error) {
		list, _, err = store.Services(ctx, lbstate.ReadOptions{})
		return err
	}
	if f.list, err = timed(lists); err != nil {
		return f, err
	}
	if f.again, err = timed(lists); err != nil {
		return f, err
	}
	after, _ := figures.Settled()
	f.perService = (int64(after) - int64(before)) / services
	wire, err := list[0].EncodedDesired()
	if err != nil {
		return f, err
	}
	shown, err := list[0].EncodedJSON()
	if err != nil {
		return f, err
	}
	f.wire, f.json = len(wire), len(shown)
	var changes []time.Duration
	for i := range 1000 {
		d, err := timed(func() error { return change(ctx, store, i, services) })
		if err != nil {
			return f, err
		}
		changes = append(changes, d)
	}
	f.change = figures.Median(changes)
	if f.busy, err = together(func(i int) error { return change(ctx, store, 1000+i, services) }); err != nil {
		return f, err
	}

	return f, watchAll(ctx, o, store, &f)
}
