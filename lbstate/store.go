package lbstate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"
)

// Store is one node's typed access to the state. Safe for concurrent use.
type Store struct {
	state      *State
	replicator Replicator
}

// NewStore returns a Store that reads and writes st through r.
func NewStore(st *State, r Replicator) *Store { return &Store{state: st, replicator: r} }

// WriteOptions go with every write.
type WriteOptions struct {
	Author     string  // who, for people
	Reason     string  // why, for people
	IfRevision *uint64 // the service's revision must be this; 0: it must not exist; nil: whatever it is
}

// ReadOptions go with every read.
type ReadOptions struct {
	Stale bool // answer from what this node has, which may lag
}

// HealthTransition reports that a backend's health has changed.
type HealthTransition struct {
	Service   string
	Backend   netip.AddrPort
	CheckHash uint64 // of the check that was run
	Term      uint64 // the leadership term in which it was run
	To        HealthState
	At        time.Time
	Message   string
}

// maxMessage bounds what a transition says, in bytes.
const maxMessage = 512

// PutService creates or replaces a service. Missing fields get their defaults;
// a Revision in s that is not zero is a precondition like o.IfRevision.
//
// Errors: *ValidationError with every fault, *ConflictError, or the
// replicator's; see NotApplied.
func (st *Store) PutService(ctx context.Context, s Service, o WriteOptions) (WriteResult, error) {
	if s.Revision != 0 && o.IfRevision == nil {
		revision := s.Revision // s.Revision itself is cleared below
		o.IfRevision = &revision
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return WriteResult{}, err
	}
	if err := st.conflicts(s); err != nil {
		return WriteResult{}, err
	}
	warnings := s.Warnings()
	s.Revision = 0
	res, err := st.propose(ctx, o, command{PutService: &s})
	res.Warnings = warnings
	return res, err
}

// DeleteService removes a service and the health of its backends.
func (st *Store) DeleteService(ctx context.Context, name string, o WriteOptions) (WriteResult, error) {
	if name == "" {
		return WriteResult{}, fmt.Errorf("service %q: %w", name, ErrNotFound)
	}
	return st.propose(ctx, o, command{DeleteService: name})
}

// PutBackend adds a backend to a service or replaces the one of its address
// and port.
func (st *Store) PutBackend(ctx context.Context, service string, b Backend, o WriteOptions) (WriteResult, error) {
	current, err := st.Service(ctx, service, ReadOptions{})
	if err != nil {
		return WriteResult{}, err
	}
	b = b.withDefaults(current.Service)
	probe := current.Service
	probe.Backends = []Backend{b}
	if err := probe.Validate(); err != nil {
		return WriteResult{}, err
	}
	if err := st.conflicts(probe); err != nil {
		return WriteResult{}, err
	}
	return st.propose(ctx, o, command{PutBackend: &putBackend{Service: service, Backend: b}})
}

// DeleteBackend removes a backend from a service.
func (st *Store) DeleteBackend(ctx context.Context, service string, backend netip.AddrPort, o WriteOptions) (WriteResult, error) {
	return st.propose(ctx, o, command{DeleteBackend: &deleteBackend{Service: service, Backend: backend.String()}})
}

// ReportHealth stores transitions. It is idempotent: a batch whose outcome was
// unknown may be reported again.
func (st *Store) ReportHealth(ctx context.Context, transitions []HealthTransition) error {
	if len(transitions) == 0 {
		return nil
	}
	reports := make([]healthReport, len(transitions))
	for i, t := range transitions {
		if t.To != Up && t.To != Down {
			return fmt.Errorf("transition of %s of service %s: to %q, not up or down", t.Backend, t.Service, t.To)
		}
		reports[i] = healthReport{
			Service: t.Service, Backend: t.Backend.String(), CheckHash: t.CheckHash, Term: t.Term,
			To: t.To, At: t.At.UnixMilli(), Message: t.Message[:min(len(t.Message), maxMessage)],
		}
	}
	_, err := st.propose(ctx, WriteOptions{}, command{ReportHealth: reports})
	return err
}

// conflicts refuses early what Apply would refuse, with the state of this node.
func (st *Store) conflicts(s Service) error {
	return st.replicator.ReadStale(func(tx *bbolt.Tx) error {
		if faults := openView(tx).conflicts(s); len(faults) > 0 {
			return &ValidationError{faults}
		}
		return nil
	})
}

func (st *Store) propose(ctx context.Context, o WriteOptions, c command) (WriteResult, error) {
	c.Version = commandVersion
	c.Author, c.Reason, c.IfRevision = o.Author, o.Reason, o.IfRevision
	c.At = time.Now().UnixMilli()
	data, err := json.Marshal(c)
	if err != nil {
		return WriteResult{}, err
	}
	if len(data) > maxCommandBytes {
		return WriteResult{}, &ValidationError{[]Fault{{Path: "", Found: fmt.Sprintf("%d bytes", len(data)), Allowed: fmt.Sprintf("at most %d", maxCommandBytes), Reason: "the change is too large"}}}
	}
	result, _, err := st.replicator.Propose(ctx, data)
	if err != nil {
		return WriteResult{}, err
	}
	switch r := result.(type) {
	case WriteResult:
		return r, nil
	case error:
		return WriteResult{}, r
	}
	return WriteResult{}, fmt.Errorf("the state machine returned a %T", result)
}

func (st *Store) read(ctx context.Context, o ReadOptions, fn func(view) error) error {
	in := func(tx *bbolt.Tx) error { return fn(openView(tx)) }
	if o.Stale {
		return st.replicator.ReadStale(in)
	}
	return st.replicator.Read(ctx, in)
}

// Services returns every service, by name, and the revision that they show.
func (st *Store) Services(ctx context.Context, o ReadOptions) (services []ServiceStatus, revision uint64, err error) {
	err = st.read(ctx, o, func(v view) error {
		services, revision = []ServiceStatus{}, v.revision()
		return v.each(func(s ServiceStatus) error {
			services = append(services, s)
			return nil
		})
	})
	return services, revision, err
}

// Service returns one service, or ErrNotFound.
func (st *Store) Service(ctx context.Context, name string, o ReadOptions) (ServiceStatus, error) {
	var s ServiceStatus
	err := st.read(ctx, o, func(v view) error {
		var ok bool
		var err error
		if s, ok, err = v.status(name); err == nil && !ok {
			return fmt.Errorf("service %s: %w", name, ErrNotFound)
		}
		return err
	})
	return s, err
}

// Revision returns the state's revision.
func (st *Store) Revision(ctx context.Context, o ReadOptions) (uint64, error) {
	var revision uint64
	err := st.read(ctx, o, func(v view) error {
		revision = v.revision()
		return nil
	})
	return revision, err
}
