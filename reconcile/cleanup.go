package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Cleanup removes all that is ours and nothing else: services at once with their
// connections, the interface with the VIPs, our chains and the jumps to them, sync
// daemons that we started. What a profile set is as it was before. Other settings of
// the namespace stay as they are, since others may rely on them by now; Report.Host
// names what was changed. What could
// be removed is no longer in the journal afterwards; Run rests until the next
// Sync. To let connections end first, Sync an empty Desired with
// Config.DrainServices and wait until nothing drains.
//
// Failures of the report name what is still there; Cleanup can be called again.
func (r *Reconciler) Cleanup(ctx context.Context) (Report, error) {
	if err := r.lock(ctx); err != nil {
		return Report{}, err
	}
	defer r.unlock()
	r.desired, r.want, r.given, r.refused, r.revision = false, new(wanted), nil, nil, 0
	r.putInForce(Desired{})
	r.reader.forget()
	rep, err := r.rounds(ctx, bySync, r.planCleanup)
	if err != nil {
		return Report{}, err
	}
	r.finish(rep)
	if !rep.Converged {
		return rep, nil
	}
	r.rec, r.noted = newRecord(), true
	return rep, r.saveRecord()
}

func (r *Reconciler) planCleanup(ctx context.Context) (*plan, *Actual, error) {
	if err := r.reader.read(ctx, r.want, r.rec); err != nil {
		return nil, nil, err
	}
	// An interface of our name that is not ours yet is not adopted now.
	a := r.reader.actual(r.want, r.rec, time.Now())
	p := new(plan)
	for i := range a.Services {
		p.remove = append(p.remove, Op{Kind: DelService, Service: Service{Key: a.Services[i].Key}})
	}
	if a.Link.Alias == Alias {
		p.remove = append(p.remove, Op{Kind: DelLink, Link: a.Link.Name})
	}
	for _, k := range allChains {
		switch {
		case a.Chains[k].Exists:
			p.remove = append(p.remove, Op{Kind: DelChain, Chain: &Chain{ChainKey: k}})
		case a.chainErrs[k] != nil:
			p.failures = append(p.failures, Failure{Object: k.String(), Op: "read chain", Err: a.chainErrs[k]})
		}
	}
	for i := range a.IPVS.Daemons {
		if d := &a.IPVS.Daemons[i]; a.ownDaemons[d.Role] {
			p.remove = append(p.remove, Op{Kind: StopDaemon, Daemon: d})
		}
	}
	r.cfg.planRestores(p, nil, a)
	if t := a.before.Timeouts.over(a.IPVS.Timeouts); t != a.IPVS.Timeouts {
		p.host = append(p.host, Op{Kind: SetTimeouts, Timeouts: &t})
	}
	return p, a, nil
}

// Zero sets the kernel's counters of one service of ours with its destinations to
// 0, or those of all that are ours if none is named. Counters of others are left
// alone. It fails for a key that is not ours or not there.
func (r *Reconciler) Zero(ctx context.Context, keys ...Key) error {
	a, err := r.Observe(ctx)
	if err != nil {
		return err
	}
	ours := make(map[Key]bool, len(a.Services))
	for i := range a.Services {
		ours[a.Services[i].Key] = true
	}
	if len(keys) == 0 {
		keys = slices.SortedFunc(maps.Keys(ours), Key.Compare)
	}
	ops := make([]Op, len(keys))
	for i, k := range keys {
		if !ours[k] {
			return fmt.Errorf("reconcile: zero %s: it is not among the services that are ours", k)
		}
		ops[i] = Op{Kind: Zero, Service: Service{Key: k}}
	}
	var errs []error
	for i, err := range r.cfg.Kernel.Do(ctx, ops) {
		errs = append(errs, Failure{Object: keys[i].String(), Op: "zero", Err: err})
	}
	if len(errs) > 0 {
		return fmt.Errorf("reconcile: %w", errors.Join(errs...))
	}
	return nil
}

// VIPs are the addresses on our interface, sorted.
func (a Actual) VIPs() []netip.Addr {
	var out []netip.Addr
	for _, p := range a.Link.Addresses {
		if p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}
