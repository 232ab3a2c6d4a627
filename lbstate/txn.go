package lbstate

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// txn is a transaction that is being worked out: what its operations make of
// the objects that they name, over a view that it only reads. So the same code
// serves to validate a change before it is proposed, on a read transaction, and
// to apply it.
type txn struct {
	view
	rev     uint64 // that it will make
	at      int64  // Unix milliseconds, by the proposer's clock
	changes map[Ref]*change
	order   []Ref   // as first named
	staged  *staged // the services that it leaves; see left
}

// change is one object before and after.
type change struct {
	ref      Ref
	old, new record
	put      bool // written as a whole by this transaction
	outcome  string
	body     []byte // new, encoded; nil: deleted
}

// refused marks an error that is a command's result: the rules forbid it.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// staleError says that a backend was validated against a service that has
// changed since; the Store validates again.
type staleError struct{ ConflictError }

// newTxn starts a transaction on a state at a revision.
func newTxn(v view, revision uint64, at int64) *txn {
	return &txn{view: v, rev: revision + 1, at: at, changes: map[Ref]*change{}}
}

// load returns the change of an object, which changes nothing yet.
func (t *txn) load(ref Ref) (*change, error) {
	if c, ok := t.changes[ref]; ok {
		return c, nil
	}
	old, _, err := t.record(ref)
	if err != nil {
		return nil, err
	}
	c := &change{ref: ref, old: old, new: old}
	t.changes[ref] = c
	t.order = append(t.order, ref)
	return c, nil
}

// operate works one operation out.
func (t *txn) operate(op *lbstatepb.Operation) error {
	switch o := op.GetOperation().(type) {
	case *lbstatepb.Operation_PutBackend:
		return t.putBackend(op, o.PutBackend)
	case *lbstatepb.Operation_DeleteBackend:
		return t.deleteBackend(op, o.DeleteBackend)
	case *lbstatepb.Operation_Delete:
		c, err := t.named(op, Ref{Kind(o.Delete.GetKind()), o.Delete.GetName()})
		if err != nil {
			return err
		}
		c.new, c.put = record{}, true
		return nil
	}
	obj, err := objectOf(op)
	if err != nil {
		return err
	}
	ref := obj.Ref()
	if !validName(ref.Name) {
		return refused{&ValidationError{[]Fault{{Path: "name", Found: clip(ref.Name), Allowed: nameAllowed, Reason: "is not a name"}}}}
	}
	c, err := t.load(ref)
	if err != nil {
		return err
	}
	if err := precondition(c, op); err != nil {
		return err
	}
	c.new, c.put = record{Object: obj}, true
	return nil
}

// objectOf returns what a put operation puts. What could not have been stored
// is refused.
func objectOf(op *lbstatepb.Operation) (o Object, err error) {
	switch p := op.GetOperation().(type) {
	case *lbstatepb.Operation_PutService:
		var s Service
		s, err = serviceFrom(p.PutService)
		o = Object{Service: &s}
	case *lbstatepb.Operation_PutCheck:
		var c SharedCheck
		c, err = sharedCheckFrom(p.PutCheck)
		o = Object{Check: &c}
	case *lbstatepb.Operation_PutProfile:
		var d DirectorProfile
		d, err = profileFrom(p.PutProfile)
		o = Object{Profile: &d}
	case *lbstatepb.Operation_PutSettings:
		s := settingsFrom(p.PutSettings)
		o = Object{Settings: &s}
	default:
		return o, errors.New("operation of a kind that this program does not know")
	}
	if err != nil {
		return o, malformed(err)
	}
	return o, nil
}

// malformed refuses what no Store would have proposed.
func malformed(err error) error {
	return refused{&ValidationError{[]Fault{{Reason: err.Error()}}}}
}

func precondition(c *change, op *lbstatepb.Operation) error {
	if op.IfRevision != nil && op.GetIfRevision() != c.old.Revision() {
		return refused{&ConflictError{Object: c.ref.path(), Current: c.old.Revision(), Wanted: op.GetIfRevision()}}
	}
	return nil
}

// named loads an object that must exist.
func (t *txn) named(op *lbstatepb.Operation, ref Ref) (*change, error) {
	c, err := t.load(ref)
	if err != nil {
		return nil, err
	}
	if !c.new.exists() {
		return nil, refused{fmt.Errorf("%s: %w", ref.path(), ErrNotFound)}
	}
	return c, precondition(c, op)
}

// edit replaces the backends of a service by what fn makes of a copy of them.
func (t *txn) edit(c *change, fn func([]Backend) ([]Backend, error)) error {
	s := *c.new.Service
	backends, err := fn(slices.Clone(s.Backends))
	if err != nil {
		return err
	}
	s.Backends = backends
	c.new = record{Object: Object{Service: &s}, frame: c.new.frame}
	return nil
}

// putBackend adds or replaces a backend. The bound is part of command version 1.
func (t *txn) putBackend(op *lbstatepb.Operation, p *lbstatepb.PutBackend) error {
	c, err := t.named(op, Ref{KindService, p.GetService()})
	if err != nil {
		return err
	}
	if !c.put && p.GetFrame() != c.new.frame {
		return refused{&staleError{ConflictError{Object: c.ref.path(), Current: c.old.Revision(), Wanted: p.GetFrame()}}}
	}
	var a addrs
	b := backendFrom(&a, p.GetBackend())
	if a.err != nil {
		return malformed(a.err)
	}
	return t.edit(c, func(backends []Backend) ([]Backend, error) {
		i := slices.IndexFunc(backends, func(o Backend) bool { return o.AddrPort() == b.AddrPort() })
		switch {
		case i >= 0:
			backends[i] = b
		case len(backends) >= maxBackends:
			return nil, refused{&ValidationError{[]Fault{{Path: "backends", Found: fmt.Sprint(len(backends) + 1), Allowed: fmt.Sprintf("at most %d", maxBackends), Reason: fmt.Sprintf("a service has at most %d", maxBackends)}}}}
		default:
			backends = append(backends, b)
		}
		return backends, nil
	})
}

func (t *txn) deleteBackend(op *lbstatepb.Operation, p *lbstatepb.DeleteBackend) error {
	c, err := t.named(op, Ref{KindService, p.GetService()})
	if err != nil {
		return err
	}
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok {
		return malformed(fmt.Errorf("backend's address has %d bytes, not 4 or 16", len(p.GetAddress())))
	}
	key := netip.AddrPortFrom(addr, uint16(p.GetPort()))
	return t.edit(c, func(backends []Backend) ([]Backend, error) {
		i := slices.IndexFunc(backends, func(o Backend) bool { return o.AddrPort() == key })
		if i < 0 {
			return nil, refused{fmt.Errorf("backend %s of service %s: %w", key, p.GetService(), ErrNotFound)}
		}
		return slices.Delete(backends, i, i+1), nil
	})
}

// settle says what became of each object, and refuses what the final state
// may not be. Afterwards changed lists what is to be written.
func (t *txn) settle() error {
	for _, ref := range t.order {
		if err := t.stamp(t.changes[ref]); err != nil {
			return err
		}
	}
	var faults faults
	for _, c := range t.changed() {
		found, err := t.conflicts(c)
		if err != nil {
			return err
		}
		if len(t.order) > 1 {
			for i := range found {
				found[i].Object = c.ref.String()
			}
		}
		faults = append(faults, found...)
	}
	if len(faults) > 0 {
		return refused{&ValidationError{faults}}
	}
	return nil
}

// stamp sets what the state sets, and finds out whether anything changed.
func (t *txn) stamp(c *change) error {
	if !c.new.exists() {
		c.outcome = Deleted
		if !c.old.exists() {
			c.outcome = Unchanged
		}
		return nil
	}
	c.new = c.new.copied()
	if s := c.new.Service; s != nil {
		var before []Backend
		if c.old.exists() {
			before = c.old.Service.Backends
		}
		t.stampDrains(before, s.Backends)
	}
	bare, err := c.new.bare()
	if err != nil {
		return err
	}
	// What is equal but for its revisions is unchanged.
	if c.old.exists() && bytes.Equal(c.old.raw, stamped(bare, c.old.Revision(), c.old.frame)) {
		c.new, c.outcome = c.old, Unchanged
		return nil
	}
	c.outcome = Changed
	if !c.old.exists() {
		c.outcome = Created
	}
	c.new.setRevision(t.rev)
	if c.put {
		c.new.frame = 0
		if c.ref.Kind == KindService {
			c.new.frame = t.rev
		}
	}
	c.body = stamped(bare, t.rev, c.new.frame)
	return nil
}

// stampDrains says since when backends drain: since before, or from now.
func (t *txn) stampDrains(before, after []Backend) {
	since := map[netip.AddrPort]time.Time{}
	for _, b := range before {
		if b.State == Drain {
			since[b.AddrPort()] = b.DrainSince
		}
	}
	for i := range after {
		b := &after[i]
		b.DrainSince = time.Time{}
		if b.State == Drain {
			if begun, ok := since[b.AddrPort()]; ok {
				b.DrainSince = begun
			} else {
				b.DrainSince = time.UnixMilli(t.at).UTC()
			}
		}
	}
}

// changed lists what is to be written, in the order of the operations.
func (t *txn) changed() []*change {
	var changed []*change
	for _, ref := range t.order {
		if c := t.changes[ref]; c.outcome != Unchanged {
			changed = append(changed, c)
		}
	}
	return changed
}

// result says what the transaction does.
func (t *txn) result() BatchResult {
	res := BatchResult{Revision: t.rev - 1}
	for _, ref := range t.order {
		c := t.changes[ref]
		if !c.old.exists() && !c.new.exists() {
			continue // it came and went
		}
		o := ObjectOutcome{Ref: ref, Outcome: c.outcome, Revision: t.rev}
		if c.outcome == Unchanged {
			o.Revision = c.old.Revision()
		} else {
			res.Revision = t.rev
		}
		res.Objects = append(res.Objects, o)
	}
	res.Outcome = overall(res.Objects)
	return res
}

// copied returns a record whose top level and backends are not shared.
func (r record) copied() record {
	switch {
	case r.Service != nil:
		s := *r.Service
		s.Backends = slices.Clone(s.Backends)
		r.Object = Object{Service: &s}
	case r.Check != nil:
		c := *r.Check
		r.Object = Object{Check: &c}
	case r.Profile != nil:
		p := *r.Profile
		r.Object = Object{Profile: &p}
	case r.Settings != nil:
		s := *r.Settings
		r.Object = Object{Settings: &s}
	}
	return r
}
