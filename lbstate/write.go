package lbstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// Operation is one step of a transaction: exactly one of its first four fields
// is set.
type Operation struct {
	Put           Object      `json:"put,omitzero"`    // create or replace; missing fields get their defaults
	Delete        Ref         `json:"delete,omitzero"` // an error where it does not exist
	PutBackend    *BackendPut `json:"put_backend,omitempty"`
	DeleteBackend *BackendRef `json:"delete_backend,omitempty"`

	// IfRevision is that which the object must have before the transaction; 0:
	// it must not exist. nil: that of the object which is put, or where that is
	// 0 whatever it is.
	IfRevision *uint64 `json:"if_revision,omitempty"`
}

// parts is how many things an operation does.
func (op Operation) parts() (n int) {
	for _, set := range []bool{op.Put.exists(), op.Delete != Ref{}, op.PutBackend != nil, op.DeleteBackend != nil} {
		if set {
			n++
		}
	}
	return n
}

// BackendPut adds a backend to a service, or replaces the one of its address
// and port.
type BackendPut struct {
	Service string  `json:"service"`
	Backend Backend `json:"backend"`
}

// BackendRef names a backend of a service.
type BackendRef struct {
	Service string         `json:"service"`
	Address netip.AddrPort `json:"address"`
}

// maxStale is how often a write is tried again because the service changed
// between its validation and its turn.
const maxStale = 10

// Transact applies operations as one revision: all of them, or none. Objects
// are validated as they will be together, so their order matters only where
// they name the same object.
//
// Errors: *ValidationError with every fault of every object, *ConflictError,
// ErrNotFound, *KeyReusedError, or the replicator's; see NotApplied.
func (st *Store) Transact(ctx context.Context, ops []Operation, o WriteOptions) (BatchResult, error) {
	return st.transact(ctx, ops, o, ops)
}

// transact is Transact; under an idempotency key request is what was asked for.
func (st *Store) transact(ctx context.Context, ops []Operation, o WriteOptions, request any) (BatchResult, error) {
	if o.IfRevision != nil {
		return BatchResult{}, &ValidationError{[]Fault{{Path: "if_revision", Found: fmt.Sprint(*o.IfRevision), Reason: "belongs to each operation of a transaction"}}}
	}
	for try := 1; ; try++ {
		tx, warnings, err := st.transaction(ctx, ops)
		if err != nil {
			return BatchResult{}, err
		}
		res, err := st.propose(ctx, o, request, transactionCommand(tx))
		var stale *staleError
		if errors.As(err, &stale) {
			if try < maxStale {
				continue
			}
			return BatchResult{}, &stale.ConflictError
		}
		if err == nil {
			res.Warnings = warnings
		}
		return res, err
	}
}

func transactionCommand(tx *lbstatepb.Transaction) *lbstatepb.Command {
	return &lbstatepb.Command{Kind: &lbstatepb.Command_Transaction{Transaction: tx}}
}

// transaction validates operations, and makes a command's of them.
func (st *Store) transaction(ctx context.Context, ops []Operation) (*lbstatepb.Transaction, []Fault, error) {
	var found, warnings faults
	several := len(ops) > 1
	about := func(ref Ref, f []Fault) []Fault {
		if several {
			return about(ref, f)
		}
		return f
	}
	tx := &lbstatepb.Transaction{}
	puts := map[string]Service{} // by this transaction
	for i, op := range ops {
		p := &lbstatepb.Operation{IfRevision: op.IfRevision}
		tx.Operations = append(tx.Operations, p)
		if n := op.parts(); n != 1 {
			found.add(fmt.Sprintf("operations[%d]", i), fmt.Sprintf("%d of them", n), "one of put, delete, put_backend, delete_backend", "does not do exactly one thing")
			continue
		}
		switch {
		case op.Put.exists():
			obj := op.Put.withDefaults()
			if rev := obj.Revision(); rev != 0 && p.IfRevision == nil {
				p.IfRevision = &rev
			}
			var invalid *ValidationError
			if err := obj.validate(); errors.As(err, &invalid) {
				found = append(found, about(obj.Ref(), invalid.Faults)...)
				continue
			}
			if refused := st.refusedChecks(obj); len(refused) > 0 {
				found = append(found, about(obj.Ref(), refused)...)
				continue
			}
			warnings = append(warnings, about(obj.Ref(), obj.warnings())...)
			if obj.Service != nil {
				puts[obj.Service.Name] = *obj.Service
			}
			obj.putInto(p)
		case op.PutBackend != nil:
			ref := Ref{KindService, op.PutBackend.Service}
			s, put := puts[ref.Name]
			var frame uint64
			if !put {
				var err error
				if s, frame, err = st.framed(ctx, ref); err != nil {
					return nil, nil, err
				}
			}
			b := op.PutBackend.Backend.withDefaults(s)
			probe := s
			probe.Backends = []Backend{b}
			var invalid *ValidationError
			if err := probe.Validate(); errors.As(err, &invalid) {
				found = append(found, about(ref, invalid.Faults)...)
				continue
			}
			probe.HealthCheck = nil // it stands already
			if refused := st.refusedChecks(Object{Service: &probe}); len(refused) > 0 {
				found = append(found, about(ref, refused)...)
				continue
			}
			p.Operation = &lbstatepb.Operation_PutBackend{PutBackend: &lbstatepb.PutBackend{Service: ref.Name, Backend: b.proto(), Frame: frame}}
		case op.DeleteBackend != nil:
			at := op.DeleteBackend.Address
			p.Operation = &lbstatepb.Operation_DeleteBackend{DeleteBackend: &lbstatepb.DeleteBackend{
				Service: op.DeleteBackend.Service, Address: at.Addr().Unmap().AsSlice(), Port: uint32(at.Port()),
			}}
		default:
			p.Operation = &lbstatepb.Operation_Delete{Delete: &lbstatepb.Delete{Kind: string(op.Delete.Kind), Name: op.Delete.Name}}
		}
	}
	if len(found) > 0 {
		return nil, nil, &ValidationError{found}
	}
	return tx, warnings, nil
}

// refusedChecks names the checks of an object that run programs, where this
// Store does not take them. It is a rule of the proposer: whatever is in the
// log is applied by every node.
func (st *Store) refusedChecks(o Object) []Fault {
	var f faults
	if st.execChecks {
		return f
	}
	for path, c := range o.checks() {
		if c.UsesExec() {
			f.add(path, CheckTypeExec, "", "runs a program, which this server's configuration does not allow")
		}
	}
	slices.SortFunc(f, func(a, b Fault) int { return strings.Compare(a.Path, b.Path) })
	return f
}

// checks are the checks that an object has itself, by path.
func (o Object) checks() map[string]*HealthCheck {
	all := map[string]*HealthCheck{}
	switch {
	case o.Check != nil:
		all["check"] = &o.Check.Check
	case o.Service != nil:
		if c := o.Service.HealthCheck; c != nil {
			all["health_check"] = c
		}
		for i, b := range o.Service.Backends {
			if b.HealthCheck != nil {
				all[fmt.Sprintf("backends[%d].health_check", i)] = b.HealthCheck
			}
		}
	}
	return all
}

// framed returns a service, and the frame that a backend of it is validated
// against.
func (st *Store) framed(ctx context.Context, ref Ref) (s Service, frame uint64, err error) {
	err = st.read(ctx, ReadOptions{}, func(r *reader) error {
		rec, ok, err := r.record(ref)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%s: %w", clip(ref.path()), ErrNotFound)
		}
		s, frame = *rec.Service, rec.frame
		return nil
	})
	return s, frame, err
}

// putInto makes an operation of an object.
func (o Object) putInto(p *lbstatepb.Operation) {
	switch {
	case o.Service != nil:
		s := o.Service.proto()
		s.Revision = 0
		p.Operation = &lbstatepb.Operation_PutService{PutService: s}
	case o.Check != nil:
		c := o.Check.proto()
		c.Revision = 0
		p.Operation = &lbstatepb.Operation_PutCheck{PutCheck: c}
	case o.Profile != nil:
		d := o.Profile.proto()
		d.Revision = 0
		p.Operation = &lbstatepb.Operation_PutProfile{PutProfile: d}
	case o.Settings != nil:
		s := o.Settings.proto()
		s.Revision = 0
		p.Operation = &lbstatepb.Operation_PutSettings{PutSettings: s}
	}
}

// write applies one operation.
func (st *Store) write(ctx context.Context, op Operation, o WriteOptions) (WriteResult, error) {
	op.IfRevision, o.IfRevision = o.IfRevision, nil
	res, err := st.Transact(ctx, []Operation{op}, o)
	return res.single(), err
}

// Put creates or replaces an object. Missing fields get their defaults; a
// revision in it that is not zero is a precondition like o.IfRevision. Errors
// are Transact's.
func (st *Store) Put(ctx context.Context, obj Object, o WriteOptions) (WriteResult, error) {
	return st.write(ctx, Operation{Put: obj}, o)
}

// Delete removes an object, or returns ErrNotFound. A service takes the health
// of its backends with it; a check that a service uses cannot go.
func (st *Store) Delete(ctx context.Context, ref Ref, o WriteOptions) (WriteResult, error) {
	return st.write(ctx, Operation{Delete: ref}, o)
}

// PutService is Put for a service.
func (st *Store) PutService(ctx context.Context, s Service, o WriteOptions) (WriteResult, error) {
	return st.Put(ctx, Object{Service: &s}, o)
}

// DeleteService is Delete for a service.
func (st *Store) DeleteService(ctx context.Context, name string, o WriteOptions) (WriteResult, error) {
	return st.Delete(ctx, Ref{KindService, name}, o)
}

// PutBackend adds a backend to a service or replaces the one of its address
// and port. Others may change the service's other backends at the same time.
func (st *Store) PutBackend(ctx context.Context, service string, b Backend, o WriteOptions) (WriteResult, error) {
	return st.write(ctx, Operation{PutBackend: &BackendPut{service, b}}, o)
}

// DeleteBackend removes a backend from a service.
func (st *Store) DeleteBackend(ctx context.Context, service string, backend netip.AddrPort, o WriteOptions) (WriteResult, error) {
	return st.write(ctx, Operation{DeleteBackend: &BackendRef{service, backend}}, o)
}
