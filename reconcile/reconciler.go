package reconcile

import (
	"context"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Reconciler makes one kernel equal to what is desired, again and again.
type Reconciler struct {
	cfg Config
}

// New makes a Reconciler. Nothing is read or written yet.
func New(cfg Config) (*Reconciler, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Reconciler{cfg: cfg}, nil
}

// Apply is Sync in lbstate's words.
func (r *Reconciler) Apply(ctx context.Context, v lbstate.View) (lbstate.Applied, error) {
	d, failures := FromView(v)
	rep, err := r.Sync(ctx, d)
	if err != nil {
		return lbstate.Applied{}, err
	}
	rep.Failures = append(rep.Failures, failures...)
	rep.Converged = rep.Converged && len(failures) == 0
	return rep.Applied(), nil
}

// Sync makes the kernel as desired.
func (r *Reconciler) Sync(ctx context.Context, d Desired) (Report, error) { return Report{}, ctx.Err() }

// Run keeps the kernel as desired.
func (r *Reconciler) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Status is the last report.
func (r *Reconciler) Status() Report { return Report{} }
