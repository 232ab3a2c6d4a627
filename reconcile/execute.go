package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
)

// execution carries out one plan, stage by stage.
type execution struct {
	r     *Reconciler
	gated bool // leave out what failed lately
	// What became of each object, for the stages that depend on earlier ones.
	badService map[Key]bool
	badDest    map[destination]bool
	failed     map[string]bool

	done     []*Op // without an error
	tried    []*Op
	failures []Failure
}

func (r *Reconciler) execute(ctx context.Context, p *plan, gated bool) *execution {
	e := &execution{
		r: r, gated: gated,
		badService: map[Key]bool{}, badDest: map[destination]bool{}, failed: map[string]bool{},
	}
	e.stage(ctx, p.host, nil)
	e.stage(ctx, p.raise, nil)
	e.stage(ctx, p.lower, e.mayLower())
	e.stage(ctx, p.bind, func(op *Op) bool { return op.Kind != AddAddress || e.serves(op.Addr) })
	e.stage(ctx, p.remove, nil)
	return e
}

// stage carries out those operations that may be.
func (e *execution) stage(ctx context.Context, ops []Op, may func(*Op) bool) {
	batch := ops
	if may != nil || e.gated {
		batch = make([]Op, 0, len(ops))
		for i := range ops {
			if may != nil && !may(&ops[i]) {
				continue
			}
			if ops[i].Kind == AddDestination && e.badService[ops[i].Service.Key] {
				continue
			}
			if f, ok := e.r.backingOff(ops[i]); ok && e.gated {
				e.mark(ops[i])
				e.report(f)
				continue
			}
			batch = append(batch, ops[i])
		}
	}
	if len(batch) == 0 {
		return
	}
	errs := e.r.cfg.Kernel.Do(ctx, batch)
	e.tried, e.done = slices.Grow(e.tried, len(batch)), slices.Grow(e.done, len(batch))
	for i := range batch {
		e.note(&batch[i], errs[i])
	}
}

func (e *execution) note(op *Op, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return // not tried
	}
	e.tried = append(e.tried, op)
	e.r.cfg.Metrics.Operated(op.Kind, err)
	if err == nil {
		e.done = append(e.done, op)
		e.r.succeeded(*op)
		return
	}
	// Destinations fail with their service: one failure says it.
	if op.Kind == AddDestination && e.badService[op.Service.Key] {
		return
	}
	e.mark(*op)
	f := Failure{Object: op.Object(), Op: op.Kind.String(), Err: explain(*op, err)}
	if w := e.r.want.service(op.Service.Key); w != nil {
		f.Service = w.Name
	}
	e.report(f)
	e.r.fail(*op, f)
}

func (e *execution) report(f Failure) {
	if !e.failed[f.Object] {
		e.failed[f.Object] = true
		e.failures = append(e.failures, f)
	}
}

func (e *execution) mark(op Op) {
	switch op.Kind {
	case AddService:
		e.badService[op.Service.Key] = true
	case AddDestination, SetDestination:
		e.badDest[destination{op.Service.Key, op.Dest.AddrPort()}] = true
	}
}

var errHeld = errors.New("held back: every destination that should get connections failed, and this would leave none")

// mayLower holds a service's lowered weights back when none of the destinations
// that should have a weight got one.
func (e *execution) mayLower() func(*Op) bool {
	verdict := map[Key]bool{}
	return func(op *Op) bool {
		if op.Kind != SetDestination && op.Kind != DelDestination {
			return true
		}
		k := op.Service.Key
		ok, judged := verdict[k]
		if !judged {
			ok = true
			if w := e.r.want.service(k); w != nil {
				ok = e.keepsWeight(w)
			}
			verdict[k] = ok
		}
		if !ok {
			e.report(Failure{Object: op.Object(), Op: op.Kind.String(), Err: errHeld})
		}
		return ok
	}
}

func (e *execution) keepsWeight(w *DesiredService) bool {
	wanted := false
	for _, d := range w.Destinations {
		if d.Weight > 0 {
			if !e.badDest[destination{w.Key, d.AddrPort()}] {
				return true
			}
			wanted = true
		}
	}
	return !wanted
}

// serves says whether at least one wanted service of a VIP is there: otherwise
// binding it would only draw packets to this host's own ports.
func (e *execution) serves(vip netip.Addr) bool {
	first := Key{Family: FamilyOf(vip), Addr: vip}
	services := e.r.want.services
	i, _ := slices.BinarySearchFunc(services, first, func(s DesiredService, k Key) int { return s.Key.Compare(k) })
	for ; i < len(services) && services[i].Addr == vip; i++ {
		if !e.badService[services[i].Key] {
			return true
		}
	}
	return false
}

// backoff is an operation that failed, and when it may be tried again.
type backoff struct {
	op      string
	failure Failure
	pause   time.Duration
	next    time.Time
}

func (r *Reconciler) backingOff(op Op) (Failure, bool) {
	if len(r.backoffs) == 0 {
		return Failure{}, false
	}
	b, ok := r.backoffs[op.Object()]
	if !ok || b.op != op.String() || !time.Now().Before(b.next) {
		return Failure{}, false
	}
	return b.failure, true
}

func (r *Reconciler) fail(op Op, f Failure) {
	b, ok := r.backoffs[op.Object()]
	if !ok || b.op != op.String() {
		b = &backoff{op: op.String()}
		r.backoffs[op.Object()] = b
		r.cfg.Logger.Warn("operation failed", zap.String("op", b.op), zap.Error(f.Err))
	}
	b.failure = f
	b.pause = min(max(2*b.pause, r.cfg.RetryMin), r.cfg.RetryMax)
	b.next = time.Now().Add(b.pause)
}

func (r *Reconciler) succeeded(op Op) {
	if len(r.backoffs) > 0 {
		delete(r.backoffs, op.Object())
	}
}
