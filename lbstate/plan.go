package lbstate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
)

// PlanOptions say how a set of objects is meant.
type PlanOptions struct {
	// Prune deletes the services, checks and profiles that the set does not
	// have. Otherwise they stay.
	Prune bool
}

// Plan is what it takes to make the state have a set of objects.
type Plan struct {
	// Hash identifies what would be done, and to what: it changes with the set,
	// and with each object that the plan would touch.
	Hash     string       `json:"hash"`
	Revision uint64       `json:"revision"` // of the configuration that it is for
	Steps    []ObjectDiff `json:"steps"`    // empty: nothing is to be done
	Warnings []Fault      `json:"warnings,omitempty"`

	operations []Operation
}

// PlanChangedError says that what would be done is no longer what was reviewed;
// nothing was written.
type PlanChangedError struct {
	Reviewed string
	Plan     Plan // as it is now
}

func (e *PlanChangedError) Error() string {
	return fmt.Sprintf("the plan %s is out of date: the state or the set has changed since; review the new plan %s", clip(e.Reviewed), e.Plan.Hash)
}

// NotApplied says that nothing was written.
func (e *PlanChangedError) NotApplied() bool { return true }

// Plan works out what it takes to make the state have a set of objects, and
// writes nothing. Revisions in the set do not matter. Errors: *ValidationError
// for what the set may not be, by itself and in the state.
func (st *Store) Plan(ctx context.Context, set Configuration, o PlanOptions) (p Plan, err error) {
	if err := set.Validate(); err != nil {
		return p, err
	}
	err = st.read(ctx, ReadOptions{}, func(r *reader) error {
		p, err = r.plan(set, o)
		return plainly(err)
	})
	if err != nil {
		return p, err
	}
	var refused faults
	for _, op := range p.operations { // what stands already stays
		refused = append(refused, about(op.Put.Ref(), st.refusedChecks(op.Put))...)
	}
	return p, refused.inOrder()
}

// ApplyPlan does what a plan said, as one revision. The hash is that of the plan
// that was reviewed: where the same set would now do anything else the answer is
// *PlanChangedError with the plan as it is now. Under an idempotency key what was
// done already is not done again, though the plan is another since: the answer is
// that of the first time. Errors are Plan's and Transact's.
func (st *Store) ApplyPlan(ctx context.Context, set Configuration, po PlanOptions, hash string, o WriteOptions) (BatchResult, error) {
	request := struct {
		Apply   Configuration
		Options PlanOptions
		Hash    string
	}{set, po, hash}
	p, err := st.Plan(ctx, set, po)
	if err == nil && p.Hash != hash {
		err = &PlanChangedError{Reviewed: hash, Plan: p}
	}
	if err != nil {
		// Read after the plan: what made that another may have been this very change.
		if res, done, replayErr := st.replay(ctx, o.Key, request); done || replayErr != nil {
			res.Warnings = set.warningsOf(res.Objects)
			return res, replayErr
		}
		return BatchResult{}, err
	}
	o.IfRevision = nil
	return st.transact(ctx, p.operations, o, request)
}

// warningsOf are the warnings of a transaction that made these objects of a set.
func (c Configuration) warningsOf(made []ObjectOutcome) (warnings []Fault) {
	for _, obj := range c.Objects() {
		ref := obj.Ref()
		if !slices.ContainsFunc(made, func(o ObjectOutcome) bool { return o.Ref == ref }) {
			continue
		}
		found := obj.withDefaults().warnings()
		if len(made) > 1 {
			found = about(ref, found)
		}
		warnings = append(warnings, found...)
	}
	return warnings
}

func (r *reader) plan(set Configuration, o PlanOptions) (Plan, error) {
	p := Plan{Revision: r.config, Steps: []ObjectDiff{}}
	h := sha256.New()
	x := newTxn(r.view, r.revision, 0)
	step := func(op Operation, old record, d ObjectDiff, body []byte) {
		revision := old.Revision()
		op.IfRevision = &revision
		p.operations = append(p.operations, op)
		p.Steps = append(p.Steps, d)
		fmt.Fprintf(h, "%s %s %d %d\n", d.Action, d.Ref, revision, len(body))
		h.Write(body)
	}
	wanted := map[Ref]bool{}
	for _, obj := range set.Objects() {
		obj = record{Object: obj.withDefaults()}.copied().Object
		rec := record{Object: obj}
		rec.setRevision(0)
		ref := obj.Ref()
		wanted[ref] = true
		old, _, err := r.record(ref)
		if err != nil {
			return p, err
		}
		p.Warnings = append(p.Warnings, about(ref, obj.warnings())...)
		d, differs, err := diffObjects(old.Object, obj)
		if err != nil {
			return p, err
		}
		if !differs {
			continue
		}
		body, err := rec.encode()
		if err != nil {
			return p, err
		}
		step(Operation{Put: obj}, old, d, body)
		c, err := x.load(ref)
		if err != nil {
			return p, err
		}
		c.new, c.put = rec, true
	}
	if o.Prune {
		for i := len(kinds) - 1; i >= 0; i-- { // what uses goes before what is used
			if kinds[i] == KindSettings {
				continue
			}
			if err := r.each(kinds[i], nil, func(old record) error {
				ref := old.Ref()
				if wanted[ref] {
					return nil
				}
				step(Operation{Delete: ref}, old, ObjectDiff{Ref: ref, Action: ActionDelete}, nil)
				c, err := x.load(ref)
				if err != nil {
					return err
				}
				c.new, c.put = record{}, true
				return nil
			}); err != nil {
				return p, err
			}
		}
	}
	p.Hash = hex.EncodeToString(h.Sum(nil)[:16])
	return p, x.settle()
}
