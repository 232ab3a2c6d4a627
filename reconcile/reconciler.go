package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"go.uber.org/zap"
)

// Reconciler makes one kernel equal to what is desired, again and again. All
// methods are safe for concurrent use; one reconciliation runs at a time.
type Reconciler struct {
	cfg  Config        // of this host
	turn chan struct{} // holds one token; who has it owns the fields up to wake

	rec      *record // nil: not read from the journal yet
	saved    []byte  // what the journal holds
	kept     *record // the same as a record
	noted    bool    // rec may differ from it
	reader   reader
	desired  bool   // Sync has been called
	revision uint64 // of the last Sync or Update
	in       Config // cfg with the profile of that in force
	profile  *lbstate.AppliedProfile
	given    *Desired  // what want was made of, if that was one Sync
	settled  bool      // the last reconciliation left nothing to do, nor to wait for
	want     *wanted   // of them: what can be programmed
	refused  []Failure // and what cannot
	backoffs map[string]*backoff
	host     []HostChange
	checked  time.Time // when drift was last looked for
	forgot   time.Time // when everything was last read anew, to look for drift
	planned  time.Time // as of when the last plan was made
	running  int       // how many Runs there are

	wake chan struct{} // tells Run that Sync left something to do

	mu     sync.Mutex
	status Report // guarded by mu
}

// New makes a Reconciler. Nothing is read or written until Sync or Apply.
func New(cfg Config) (*Reconciler, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	in := cfg.under(nil)
	r := &Reconciler{
		cfg: cfg, in: in, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		reader: reader{kernel: cfg.Kernel, cfg: in}, backoffs: map[string]*backoff{}, want: new(wanted),
	}
	r.turn <- struct{}{}
	return r, nil
}

// lock waits for the turn; the error is ctx's.
func (r *Reconciler) lock(ctx context.Context) error {
	select {
	case <-r.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Reconciler) unlock() { r.turn <- struct{}{} }

// Apply is Sync in lbstate's words. Services of the view that cannot be
// expressed are failures of the account.
func (r *Reconciler) Apply(ctx context.Context, v lbstate.View) (lbstate.Applied, error) {
	d, unusable := FromView(v)
	d.Timeouts, d.Daemons = r.cfg.Timeouts, r.cfg.Daemons
	rep, err := r.sync(ctx, d, true, unusable)
	if err != nil {
		return lbstate.Applied{}, err
	}
	return rep.Applied(), nil
}

// Sync makes the kernel equal to desired, within the scope, with the smallest
// set of operations, and reads back what it touched. Objects that could not be
// made are failures of the report, and do not stop the others; all of them are
// tried again by the next Sync, and by Run.
//
// An error means that nothing can be said about the kernel: it could not be
// read, the journal could not be written, or ctx ended. It is safe to call Sync
// again. desired is copied.
func (r *Reconciler) Sync(ctx context.Context, desired Desired) (Report, error) {
	return r.sync(ctx, desired, false, nil)
}

func (r *Reconciler) sync(ctx context.Context, desired Desired, owned bool, unusable []Failure) (Report, error) {
	if err := r.lock(ctx); err != nil {
		return Report{}, err
	}
	defer r.unlock()
	if err := r.notDrifted(ctx); err != nil {
		return Report{}, err
	}
	alike := r.settled && r.given != nil && r.reader.whole() && len(unusable) == 0
	if alike {
		if changed, ok := desired.changes(r.given); ok && len(changed) == 0 {
			return r.unchanged(desired.Revision), nil
		}
	}
	if !owned {
		desired = desired.clone() // it may be the caller's own
	}
	if alike {
		if changed, ok := desired.changes(r.given); ok {
			if set, refused := r.in.normalServices(Desired{Services: changed}); len(refused) == 0 && r.narrow(set) {
				defer r.wakeRun()
				rep, err := r.updateNarrowly(ctx, desired.Revision, set)
				r.given = &desired
				return rep, err
			}
		}
	}
	r.putInForce(desired)
	want, refused := r.in.normal(desired)
	r.revision, r.want, r.refused = desired.Revision, want, slices.Concat(unusable, refused)
	r.desired, r.given = true, &desired
	defer r.wakeRun()
	return r.reconcile(ctx, bySync)
}

// putInForce makes what follows go by the profile of what is desired.
func (r *Reconciler) putInForce(d Desired) {
	r.in = r.cfg.under(d.Profile)
	r.reader.cfg = r.in
	r.profile = r.cfg.profileAccount(d)
}

// unchanged is the last report for a Sync that has nothing to do.
func (r *Reconciler) unchanged(revision uint64) Report {
	r.revision = revision
	rep := r.Status()
	rep.Revision, rep.Operations, rep.Repaired, rep.Took = revision, 0, 0, 0
	return r.finish(rep)
}

// notDrifted looks for drift where nobody else does: Run does in the background.
func (r *Reconciler) notDrifted(ctx context.Context) error {
	now := time.Now()
	switch {
	case r.running > 0 && now.Sub(r.checked) <= 2*r.cfg.DriftInterval:
		return nil
	case r.running == 0 && now.Sub(r.forgot) >= r.cfg.FullInterval:
		r.reader.forget()
		r.checked, r.forgot = now, now
		return nil
	}
	_, err := r.lookForDrift(ctx)
	return err
}

// Plan is what Sync would do now, without doing it: a dry run. Failures are
// those that are known beforehand.
func (r *Reconciler) Plan(ctx context.Context, desired Desired) ([]Op, []Failure, error) {
	in := r.cfg.under(desired.Profile)
	want, refused := in.normal(desired)
	if err := r.lock(ctx); err != nil {
		return nil, nil, err
	}
	defer r.unlock()
	rec, err := r.readRecord()
	if err != nil {
		return nil, nil, err
	}
	fresh := reader{kernel: r.cfg.Kernel, cfg: in}
	if err := fresh.read(ctx, want, rec); err != nil {
		return nil, nil, err
	}
	p := in.plan(want, fresh.actual(want, rec, time.Now()))
	return p.ops(), in.attribute(want, append(refused, p.failures...)), nil
}

// Observe reads what the kernel has, statistics and connection counts included,
// and tells what is ours. It changes nothing.
func (r *Reconciler) Observe(ctx context.Context) (Actual, error) {
	if err := r.lock(ctx); err != nil {
		return Actual{}, err
	}
	defer r.unlock()
	rec, err := r.readRecord()
	if err != nil {
		return Actual{}, err
	}
	fresh := reader{kernel: r.cfg.Kernel, cfg: r.in}
	if err := fresh.read(ctx, r.want, rec); err != nil {
		return Actual{}, err
	}
	return *fresh.actual(r.want, rec, time.Now()), nil
}

// Status is the last report; the zero Report before the first Sync.
func (r *Reconciler) Status() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// readRecord is a copy of the journal's record.
func (r *Reconciler) readRecord() (*record, error) {
	b := r.saved
	if r.rec == nil {
		var err error
		if b, err = r.cfg.Journal.Load(); err != nil {
			return nil, fmt.Errorf("reconcile: read the journal: %w", err)
		}
	}
	rec, err := decodeRecord(b)
	if err != nil {
		return nil, fmt.Errorf("reconcile: the journal is damaged: %w; move it away to go on: what is ours is then what the interface %s shows", err, r.cfg.DummyName)
	}
	if r.rec == nil {
		r.saved = b
	}
	return rec, nil
}

func (r *Reconciler) saveRecord() error {
	if !r.noted {
		return nil
	}
	r.noted = false
	if r.rec.equal(r.kept) {
		return nil
	}
	b := r.rec.encode()
	if err := r.cfg.Journal.Save(b); err != nil {
		r.rec = nil // what is durable is no longer known
		return fmt.Errorf("reconcile: write the journal: %w", err)
	}
	r.saved, r.kept = b, r.rec.clone()
	return nil
}

type origin uint8

const (
	bySync origin = iota
	byRetry
	byDrain
	byDrift
)

// maxRounds bounds how often one reconciliation plans: once for the work, once
// to see that it is done, and some for a kernel that changes meanwhile.
const maxRounds = 6

// reconcile plans and carries out until the plan is empty or what is left has
// failed: each plan reads back what the one before it touched. The caller has
// the turn.
func (r *Reconciler) reconcile(ctx context.Context, by origin) (Report, error) {
	rep, err := r.rounds(ctx, by, r.planAll)
	if err != nil {
		return Report{}, err
	}
	return r.finish(rep), nil
}

// planAll plans for everything, and notes in the record what must be there before
// the plan is carried out.
func (r *Reconciler) planAll(ctx context.Context) (*plan, *Actual, error) {
	if err := r.reader.read(ctx, r.want, r.rec); err != nil {
		return nil, nil, err
	}
	a := r.reader.actual(r.want, r.rec, time.Now())
	p := r.in.plan(r.want, a)
	r.planned, r.noted = a.Now, true
	r.noteBefore(p, a)
	r.rec.Profile = ""
	if f := r.profile; f != nil {
		r.rec.Profile = fmt.Sprintf("%s, of revision %d", f.Name, f.Revision)
	}
	r.rec.Drains = make(map[destination]Drain, len(p.drains)+len(p.ending))
	r.noteDrains(p)
	for _, role := range []SyncRole{SyncMaster, SyncBackup} {
		switch {
		case slices.ContainsFunc(p.host, func(o Op) bool { return o.Kind == StartDaemon && o.Daemon.Role == role }):
			r.rec.Daemons[role] = true
		case daemonOf(a.IPVS.Daemons, role) == nil:
			delete(r.rec.Daemons, role)
		}
	}
	r.rec.Protected = r.cfg.ProtectVIPs || a.Chains[ChainKey{Filter, IPv4}].Exists || a.Chains[ChainKey{Filter, IPv6}].Exists
	return p, a, nil
}

func (r *Reconciler) noteDrains(p *plan) {
	for _, d := range slices.Concat(p.drains, p.ending) {
		r.rec.Drains[destination{d.Service, d.Dest}] = d
	}
}

// rounds is reconcile for what planned plans; the report is not known to others yet.
func (r *Reconciler) rounds(ctx context.Context, by origin, planned func(context.Context) (*plan, *Actual, error)) (Report, error) {
	began := time.Now()
	r.settled = false
	if r.rec == nil {
		rec, err := r.readRecord()
		if err != nil {
			return Report{}, err
		}
		r.rec, r.kept = rec, rec.clone()
	}
	if by == bySync {
		for _, b := range r.backoffs {
			b.next = began // everything is tried once
		}
	}
	rep := Report{Revision: r.revision, Simulated: r.cfg.Kernel.Simulated(), Profile: r.profile}
	r.reader.recount()
	if err := r.countConnections(ctx, slices.Collect(maps.Values(r.rec.Drains))); err != nil {
		return Report{}, err
	}
	var failures []Failure
	var p *plan
	written := map[string]int{} // settings, how often
	for round := 0; ; {
		var a *Actual
		var err error
		if p, a, err = planned(ctx); err != nil {
			r.reader.forget()
			return Report{}, fmt.Errorf("reconcile: %w", err)
		}
		refuseStubborn(p, a, written)
		if again, err := r.countEnding(ctx, p); err != nil {
			return Report{}, err
		} else if again {
			continue
		}
		if err := r.saveRecord(); err != nil {
			return Report{}, err
		}
		e := r.execute(ctx, p, round > 0 || by != bySync)
		failures = e.failures
		for _, op := range e.done {
			if op.Kind == SetSysctl {
				written[op.Name]++
			}
		}
		rep.Operations += len(e.done)
		r.account(&rep, e, a, by)
		if err := r.reader.touch(context.WithoutCancel(ctx), e.tried, e.done); err != nil {
			r.reader.forget()
			return Report{}, fmt.Errorf("reconcile: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("reconcile: %w", err)
		}
		if len(e.tried) == 0 {
			rep.Services = len(a.Services)
			break
		}
		if round == maxRounds {
			for _, op := range p.ops() {
				if !e.failed[op.Object()] {
					failures = append(failures, Failure{Object: op.Object(), Op: op.Kind.String(), Err: errUnstable})
				}
			}
			rep.Services = len(a.Services)
			break
		}
		round++
	}
	r.forgetBackoffs(p)
	rep.Failures = r.in.attribute(r.want, slices.Concat(r.refused, p.failures, failures))
	rep.Collisions, rep.Warnings = p.collisions, p.warnings
	rep.Draining = len(p.drains)
	rep.Converged = len(rep.Failures) == 0
	rep.Host = slices.Clone(r.host)
	rep.Took = time.Since(began)
	return rep, nil
}

// finish makes a report known.
func (r *Reconciler) finish(rep Report) Report {
	r.settled = rep.settled()
	r.mu.Lock()
	r.status = rep
	r.mu.Unlock()
	r.cfg.Metrics.Reconciled(rep)
	return rep
}

// countConnections reads the services of drains again, unless they have been read
// since the reconciliation began.
func (r *Reconciler) countConnections(ctx context.Context, drains []Drain) error {
	for _, d := range drains {
		if r.reader.services == nil || r.reader.counted[d.Service] {
			continue
		}
		if err := r.reader.readService(ctx, d.Service); err != nil {
			r.reader.forget()
			return fmt.Errorf("reconcile: %w", err)
		}
	}
	return nil
}

// countEnding counts the connections of what a plan ends, where that was not done
// in this reconciliation: then it must be planned again.
func (r *Reconciler) countEnding(ctx context.Context, p *plan) (bool, error) {
	old := slices.DeleteFunc(slices.Clone(p.ending), func(d Drain) bool { return r.reader.counted[d.Service] })
	if len(old) > 64 {
		r.reader.services = nil // one list of all
		return true, nil
	}
	return len(old) > 0, r.countConnections(ctx, old)
}

var errUnstable = fmt.Errorf("not as desired when read back, %d times; is someone else changing it?", maxRounds)

// account adds to the report what an execution did.
func (r *Reconciler) account(rep *Report, e *execution, a *Actual, by origin) {
	for _, op := range e.done {
		switch op.Kind {
		case SetSysctl:
			change := HostChange{Name: op.Name, From: a.Sysctls[op.Name], To: op.Value, Why: op.Why}
			r.host = append(slices.DeleteFunc(r.host, func(h HostChange) bool { return h.Name == op.Name }), change)
			r.cfg.Logger.Info("setting changed", zap.String("name", change.Name),
				zap.String("from", change.From), zap.String("to", change.To), zap.String("why", change.Why))
		case DelDestination:
			r.cfg.Metrics.Drained(connectionsOf(a, *op))
		}
		// Other operations with a reason are our own doing: a drain that ended.
		if by == byDrift && (op.Why == "" || op.Kind == SetSysctl) {
			rep.Repaired++
		}
		if ce := r.cfg.Logger.Check(zap.DebugLevel, "done"); ce != nil {
			ce.Write(zap.Stringer("op", op))
		}
	}
}

func connectionsOf(a *Actual, op Op) int {
	i, ok := slices.BinarySearchFunc(a.Services, op.Service.Key, func(s ServiceState, k Key) int { return s.Key.Compare(k) })
	if !ok {
		return 0
	}
	for _, d := range a.Services[i].Destinations {
		if d.AddrPort() == op.Dest.AddrPort() {
			return int(d.Active + d.Inactive)
		}
	}
	return 0
}

// forgetBackoffs drops those whose operation nobody plans any more.
func (r *Reconciler) forgetBackoffs(p *plan) {
	if len(r.backoffs) == 0 {
		return
	}
	planned := map[string]bool{}
	for _, op := range p.ops() {
		planned[op.Object()] = true
	}
	for object := range r.backoffs {
		if !planned[object] {
			delete(r.backoffs, object)
		}
	}
}

// lookForDrift compares the kernel, cheaply, with what was last read. What
// differs is read again by the next reconciliation.
func (r *Reconciler) lookForDrift(ctx context.Context) (bool, error) {
	drifted, err := r.reader.drifted(ctx)
	if err != nil {
		r.reader.forget()
		return false, fmt.Errorf("reconcile: %w", err)
	}
	r.checked = time.Now()
	return drifted, nil
}
