package reconcile

import (
	"context"
	"fmt"
	"sync"
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
	usual := &wanted{services: []DesiredService{{Service: Service{Key: Key{Family: IPv4}}}}}
	if err := r.reader.read(ctx, usual, newRecord()); err != nil {
		r.reader.forget() // the first Sync meets the same error, and tells it
	}
	r.unlock()
	defer func() {
		<-r.turn
		r.running--
		r.unlock()
	}()
	told := make(chan struct{}, 1)
	var notifier sync.WaitGroup
	defer notifier.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if n, ok := r.cfg.Kernel.(Notifier); ok {
		notifier.Go(func() { r.listen(ctx, n, told) })
	}
	timer := time.NewTimer(r.cfg.DriftInterval)
	defer timer.Stop()
	l := look{fullAt: time.Now().Add(r.cfg.FullInterval)}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-told:
			l.told = true
		case <-timer.C:
			r.tick(ctx, &l)
		}
		pause := r.pause()
		if l.told {
			// Changes come together: one look for all of them.
			pause = min(pause, settleTime)
		}
		timer.Reset(pause)
	}
}

// look is when and why Run looks at the kernel.
type look struct {
	fullAt time.Time
	told   bool // the kernel said that an interface or address changed
}

// settleTime is how long Run waits after it was told of a change.
const settleTime = 50 * time.Millisecond

// listen waits for the kernel's notifications. Without them drift is found when
// it is looked for, so that they fail is only said.
func (r *Reconciler) listen(ctx context.Context, n Notifier, told chan<- struct{}) {
	err := n.Notify(ctx, func() {
		select {
		case told <- struct{}{}:
		default:
		}
	})
	if err != nil && ctx.Err() == nil {
		r.cfg.Logger.Warn("no notifications of changed interfaces; drift is found by looking for it", zap.Error(err))
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
	if until, timed := r.want.next(r.planned); timed {
		pause = min(pause, until.Sub(now))
	}
	for _, b := range r.backoffs {
		pause = min(pause, b.next.Sub(now))
	}
	return max(pause, 10*time.Millisecond)
}

// tick does what is due, and reports it if it was anything.
func (r *Reconciler) tick(ctx context.Context, l *look) {
	rep, did, err := r.maintain(ctx, l)
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

func (r *Reconciler) maintain(ctx context.Context, l *look) (Report, bool, error) {
	if err := r.lock(ctx); err != nil {
		return Report{}, false, err
	}
	defer r.unlock()
	if !r.desired {
		return Report{}, false, nil
	}
	before := r.Status()
	told := l.told
	l.told = false
	by, due := byDrift, false
	now := time.Now()
	switch {
	case !now.Before(l.fullAt):
		l.fullAt = now.Add(r.cfg.FullInterval)
		r.reader.forget()
		r.checked, r.forgot = now, now
		due = true
	case now.Sub(r.checked) >= r.cfg.DriftInterval:
		drifted, err := r.lookForDrift(ctx)
		if err != nil {
			return Report{}, false, err
		}
		due = drifted
	case told:
		drifted, err := r.reader.linksDrifted(ctx)
		if err != nil {
			r.reader.forget()
			return Report{}, false, fmt.Errorf("reconcile: %w", err)
		}
		due = drifted
	}
	if !due {
		if by = byRetry; r.retryDue(now) {
			due = true
		}
	}
	if !due {
		until, timed := r.want.next(r.planned)
		by, due = byDrain, r.rec != nil && len(r.rec.Drains) > 0 || timed && !until.After(now)
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
