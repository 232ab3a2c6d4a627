package reconcile

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Source is where a desired state comes from.
type Source interface {
	// Next blocks until there is a state that it has not returned yet, and returns
	// the newest. It returns soon after ctx ends. Any other error ends Follow.
	Next(ctx context.Context) (Desired, error)
}

// Follow is Run, and a Sync of each state that src gives; Config.OnReport gets
// the reports of these too. Where nothing can be said about the kernel (see
// Sync) it tries again, with a pause between Config.RetryMin and RetryMax, until
// src has a newer state. It returns nil when ctx ends, otherwise src's error.
// Next is called by one goroutine at a time.
func (r *Reconciler) Follow(ctx context.Context, src Source) error {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { _ = r.Run(ctx) }) // it has no other end than ctx's

	states, failed := make(chan Desired), make(chan error, 1)
	background.Go(func() {
		for {
			d, err := src.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case states <- d:
			case <-ctx.Done():
				return
			}
		}
	})
	var latest Desired
	var again <-chan time.Time // nil: there is nothing to try again
	pause := r.cfg.RetryMin
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case latest = <-states:
			pause = r.cfg.RetryMin
		case <-again:
		}
		again = nil
		rep, err := r.Sync(ctx, latest)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.cfg.Logger.Error("the desired state was not applied; trying again", zap.Uint64("revision", latest.Revision), zap.Duration("in", pause), zap.Error(err))
			again = time.After(pause)
			pause = min(2*pause, r.cfg.RetryMax)
		case r.cfg.OnReport != nil:
			r.cfg.OnReport(rep)
		}
	}
}
