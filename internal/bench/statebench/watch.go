package statebench

import (
	"context"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/lbstate"
)

// watchAll starts many watchers, each of which gets the full state, and wakes
// them with single changes: until the last one has the bytes that it would send.
func watchAll(ctx context.Context, o figures.Options, store *lbstate.Store, f *figuresOf) error {
	before, _ := figures.Settled()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all, turn sync.WaitGroup
	defer all.Wait()
	defer cancel()
	failed := make(chan error, watchers)
	watch := func() {
		for w := store.Watch(lbstate.WatchOptions{}); ; turn.Done() {
			u, err := w.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				_, err = u.Services[0].EncodedDesired()
			}
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}
	}
	turn.Add(watchers)
	f.start, _ = timed(func() error {
		for range watchers {
			all.Go(watch)
		}
		turn.Wait()
		return nil
	})
	after, _ := figures.Settled()
	f.perWatcher = (int64(after) - int64(before)) / watchers
	var wakes []time.Duration
	for i := range 3 * o.Rounds() {
		turn.Add(watchers)
		d, err := timed(func() error {
			if err := change(ctx, store, 20_000+i, services); err != nil {
				return err
			}
			turn.Wait()
			return nil
		})
		if err != nil {
			return err
		}
		wakes = append(wakes, d)
	}
	f.wake = figures.Median(wakes)
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
