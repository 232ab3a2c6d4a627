package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Change is what is different from the state of the last Sync or Update.
type Change struct {
	Revision uint64
	Set      []DesiredService // whole services, new or changed
	Removed  []Key            // services that nobody wants any more; unknown ones are ignored
}

// Update is Sync for one who knows what changed: the state of the last Sync with
// the change. Where only values and destinations of services that are there
// change, its cost is that of the change, however many services there are;
// otherwise it is a Sync. Before the first Sync it is an error.
func (r *Reconciler) Update(ctx context.Context, change Change) (Report, error) {
	if err := r.lock(ctx); err != nil {
		return Report{}, err
	}
	defer r.unlock()
	if !r.desired {
		return Report{}, fmt.Errorf("reconcile: an Update before the first Sync has nothing to start from; Sync the whole state once")
	}
	defer r.wakeRun()
	return r.update(ctx, change)
}

func (r *Reconciler) update(ctx context.Context, change Change) (Report, error) {
	set, refused := r.in.normalServices(Desired{Services: change.Set}.clone())
	if err := r.notDrifted(ctx); err != nil {
		return Report{}, err
	}
	r.given = nil
	if len(refused) == 0 && len(r.refused) == 0 && len(change.Removed) == 0 && r.narrow(set) {
		return r.updateNarrowly(ctx, change.Revision, set)
	}
	r.revision = change.Revision
	r.want = r.want.with(set, change.Removed)
	r.refuse(change, refused)
	return r.reconcile(ctx, bySync)
}

// updateNarrowly reconciles services of which narrow is true.
func (r *Reconciler) updateNarrowly(ctx context.Context, revision uint64, set []DesiredService) (Report, error) {
	r.revision = revision
	for i := range set {
		*r.want.service(set[i].Key) = set[i]
	}
	last := r.Status()
	p := partial{r: r, want: &wanted{services: set}}
	rep, err := r.rounds(ctx, bySync, p.plan)
	if err != nil {
		return Report{}, err
	}
	rep.Services, rep.Warnings, rep.Collisions = last.Services, last.Warnings, last.Collisions
	rep.Draining = len(r.rec.Drains) - p.ending
	return r.finish(rep), nil
}

// refuse keeps the refusals of services that the change is not about.
func (r *Reconciler) refuse(change Change, refused []Failure) {
	about := map[string]bool{}
	for i := range change.Set {
		about[change.Set[i].Key.String()] = true
	}
	for _, k := range change.Removed {
		about[k.String()] = true
	}
	kept := slices.DeleteFunc(slices.Clone(r.refused), func(f Failure) bool { return about[f.Object] })
	r.refused = append(kept, refused...)
}

// narrow says whether setting these services touches nothing but themselves: they
// are there and ours already, all is as desired, and nothing of the host depends
// on what changes.
func (r *Reconciler) narrow(set []DesiredService) bool {
	if r.rec == nil || len(r.backoffs) > 0 || !r.reader.whole() || !r.Status().Converged {
		return false
	}
	for i := range set {
		s := &set[i]
		old := r.want.service(s.Key)
		if old == nil || old.SNAT != s.SNAT || old.masquerades() != s.masquerades() || (old.Flags^s.Flags)&Persistent != 0 {
			return false
		}
		if _, there := r.reader.services[s.Key]; !there || r.rec.Foreign[s.Key] {
			return false
		}
	}
	return true
}

// partial plans for some services alone.
type partial struct {
	r      *Reconciler
	want   *wanted
	ending int // drains that the last plan ended
}

func (p *partial) plan(ctx context.Context) (*plan, *Actual, error) {
	r := p.r
	if !r.reader.whole() {
		if err := r.reader.read(ctx, r.want, r.rec); err != nil {
			return nil, nil, err
		}
	}
	a := &Actual{IPVS: *r.reader.ipvs, Now: time.Now()}
	keys := map[Key]bool{}
	for i := range p.want.services {
		k := p.want.services[i].Key
		keys[k] = true
		if s, there := r.reader.services[k]; there {
			a.Services = append(a.Services, s)
		}
	}
	rec := &record{Drains: maps.Clone(r.rec.Drains)}
	maps.DeleteFunc(rec.Drains, func(at destination, _ Drain) bool { return !keys[at.service] })
	a.Drains = r.reader.drains(rec)
	out := new(plan)
	r.in.planServices(out, p.want.services, a)
	maps.DeleteFunc(r.rec.Drains, func(at destination, _ Drain) bool { return keys[at.service] })
	r.noteDrains(out)
	r.noted = r.noted || len(rec.Drains)+len(out.drains)+len(out.ending) > 0
	p.ending = len(out.ending)
	return out, a, nil
}

// with is w with services set and others removed. w itself stays as it is.
func (w *wanted) with(set []DesiredService, removed []Key) *wanted {
	out := *w
	gone := make(map[Key]bool, len(set)+len(removed))
	for _, k := range removed {
		gone[k] = true
	}
	for i := range set {
		gone[set[i].Key] = true
	}
	out.services = slices.DeleteFunc(slices.Clone(w.services), func(s DesiredService) bool { return gone[s.Key] })
	out.services = append(out.services, set...)
	slices.SortFunc(out.services, func(a, b DesiredService) int { return a.Key.Compare(b.Key) })
	return &out
}
