package healthcheck

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// reportLoop is the reporter's goroutine: the only one that calls the sink.
func (e *Engine) reportLoop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	wait := func(d time.Duration) bool {
		timer.Reset(d)
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		}
	}
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.report:
		}
		if !wait(e.cfg.Coalesce) {
			return
		}
		for {
			batch, records := e.take()
			if len(batch) == 0 {
				break
			}
			err := e.deliver(ctx, batch)
			if ctx.Err() != nil {
				return // whoever comes next starts from what the sink knows
			}
			e.delivered(batch, records, err)
			e.metrics.Reported(len(batch), err)
			if err == nil {
				failures = 0
				continue
			}
			if failures == 0 {
				e.log.Warn("transitions could not be reported; trying again", zap.Int("transitions", len(batch)), zap.Error(err))
			}
			if !wait(e.cfg.BackOff * time.Duration(min(1<<min(failures, 6), 50))) {
				return
			}
			failures++
		}
	}
}

func (e *Engine) deliver(ctx context.Context, batch []Transition) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ReportTimeout)
	defer cancel()
	return e.cfg.Sink.Report(ctx, batch)
}

// take makes a batch of what is pending: for each check its present state, so
// however often it changed meanwhile it is reported once, or not at all when
// it is back where it was.
func (e *Engine) take() ([]Transition, []*record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var batch []Transition
	var records []*record
	n := 0
	for ; n < len(e.pending) && len(batch) < e.cfg.MaxBatch; n++ {
		r := e.pending[n]
		r.pending = false
		held := e.cfg.Holds && r.held()
		wanted := r.effective != r.told || held != r.toldHeld || r.uncertain || r.announce
		if r.removed || !wanted {
			continue
		}
		r.announce = false
		e.seq++
		at := r.since
		if at == 0 || held { // a confirmation of the initial state, or a fall that changed nothing
			at = r.last
		}
		batch = append(batch, Transition{
			ID: r.id, From: r.told, To: r.effective, Held: held, At: e.wall(at),
			Result: r.why(), Epoch: e.cfg.Epoch, Seq: e.seq,
		})
		records = append(records, r)
	}
	if e.pending = e.pending[n:]; len(e.pending) == 0 {
		e.pending = nil
	}
	return batch, records
}

// delivered takes note of what the sink knows now. After an error it may know
// it or not: the checks are reported again, with what they are by then.
func (e *Engine) delivered(batch []Transition, records []*record, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, r := range records {
		if err != nil {
			r.uncertain = true
			e.enqueue(r)
			continue
		}
		r.uncertain = false
		r.told, r.toldHeld = batch[i].To, batch[i].Held
	}
}
