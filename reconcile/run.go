package reconcile

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// drainPoll is how often the connections of draining destinations are counted.
const drainPoll = time.Second

// Run keeps the kernel as the last Sync or Apply wanted it: it ends drains when
// their connections have ended or their deadline has passed, tries failed
// operations again with a growing pause each, and undoes changes by others. It
// returns nil when ctx ends. Before the first Sync the kernel is read, since to
// find the packet filter takes longer than all else together, but not changed.
func (r *Reconciler) Run(ctx context.Context) error {
	if err := r.lock(ctx); err != nil {
		return nil
	}
	r.running++
	if err := r.reader.read(ctx, nil); err != nil {
		r.reader.forget() // the first Sync meets the same error, and tells it
	}
	r.unlock()
	defer func() {
		<-r.turn
		r.running--
		r.unlock()
	}()
	timer := time.NewTimer(r.cfg.DriftInterval)
	defer timer.Stop()
	fullAt := time.Now().Add(r.cfg.FullInterval)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
			r.tick(ctx, &fullAt)
		}
		timer.Reset(r.pause())
	}
}

func (r *Reconciler) wakeRun() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// pause is how long until something may be due.
func (r *Reconciler) pause() time.Duration {
	<-r.turn
	defer r.unlock()
	pause := r.cfg.DriftInterval
	now := time.Now()
	if r.rec != nil && len(r.rec.Drains) > 0 {
		pause = min(pause, drainPoll)
	}
	for _, b := range r.backoffs {
		pause = min(pause, b.next.Sub(now))
	}
	return max(pause, 10*time.Millisecond)
}

// tick does what is due, and reports it if it was anything.
func (r *Reconciler) tick(ctx context.Context, fullAt *time.Time) {
	rep, did, err := r.maintain(ctx, fullAt)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.cfg.Logger.Error("cannot look after the kernel", zap.Error(err))
	case did:
		if rep.Repaired > 0 {
			r.cfg.Logger.Warn("changes by others undone", zap.Int("operations", rep.Repaired))
		}
		if r.cfg.OnReport != nil {
			r.cfg.OnReport(rep)
		}
	}
}

func (r *Reconciler) maintain(ctx context.Context, fullAt *time.Time) (Report, bool, error) {
	if err := r.lock(ctx); err != nil {
		return Report{}, false, err
	}
	defer r.unlock()
	if !r.desired {
		return Report{}, false, nil
	}
	before := r.Status()
	by, due := byDrift, false
	now := time.Now()
	switch {
	case !now.Before(*fullAt):
		*fullAt = now.Add(r.cfg.FullInterval)
		r.reader.forget()
		r.checked = now
		due = true
	case now.Sub(r.checked) >= r.cfg.DriftInterval:
		drifted, err := r.lookForDrift(ctx)
		if err != nil {
			return Report{}, false, err
		}
		due = drifted
	}
	if !due {
		if by = byRetry; r.retryDue(now) {
			due = true
		}
	}
	if !due && r.rec != nil && len(r.rec.Drains) > 0 {
		by, due = byDrain, true
	}
	if !due {
		return Report{}, false, nil
	}
	rep, err := r.reconcile(ctx, by)
	if err != nil {
		return Report{}, false, err
	}
	did := rep.Operations > 0 || rep.Converged != before.Converged ||
		len(rep.Failures) != len(before.Failures) || rep.Draining != before.Draining
	return rep, did, nil
}

func (r *Reconciler) retryDue(now time.Time) bool {
	for _, b := range r.backoffs {
		if !now.Before(b.next) {
			return true
		}
	}
	return false
}
