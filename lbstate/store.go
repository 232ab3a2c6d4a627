package lbstate

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// Store is one node's typed access to the state. Safe for concurrent use.
type Store struct {
	state      *State
	replicator Replicator
	now        func() time.Time
	execChecks bool // may be stored
}

// StoreOption changes what a Store does.
type StoreOption func(*Store)

// AllowExecChecks lets a Store take checks that run programs. It is asked for
// by name, since who may change the state may then have programs run.
func AllowExecChecks() StoreOption { return func(st *Store) { st.execChecks = true } }

// NewStore returns a Store that reads and writes st through r.
func NewStore(st *State, r Replicator, options ...StoreOption) *Store {
	store := &Store{state: st, replicator: r, now: time.Now}
	for _, set := range options {
		set(store)
	}
	return store
}

// WriteOptions go with every write.
type WriteOptions struct {
	Author string // who, for people
	Reason string // why, for people

	// IfRevision is a precondition of a write of one object: its revision must
	// be this; 0: it must not exist; nil: whatever it is. A transaction has one
	// with each operation instead.
	IfRevision *uint64

	// Key makes a write idempotent: under a key that was used before, the same
	// write has no effect, and returns what it did then. The last 10,000 keys
	// are remembered (Settings.IdempotencyKeys). Empty: none.
	Key string
}

// Limits of what goes with a write, in bytes.
const (
	maxAuthor  = 256
	maxReason  = 2048
	maxKey     = 128
	maxMessage = 512 // of a transition
)

// ReadOptions go with every read.
type ReadOptions struct {
	Stale bool // answer from what this node has, which may lag
}

// propose replicates a command, which it completes.
func (st *Store) propose(ctx context.Context, o WriteOptions, request any, c *lbstatepb.Command) (BatchResult, error) {
	var f faults
	f.text("author", o.Author, maxAuthor)
	f.text("reason", o.Reason, maxReason)
	f.text("key", o.Key, maxKey)
	if err := f.err(); err != nil {
		return BatchResult{}, err
	}
	c.Author, c.Reason, c.Key = o.Author, o.Reason, o.Key
	c.At = st.now().UnixMilli()
	if o.Key != "" {
		var err error
		if c.Request, err = requestHash(request); err != nil {
			return BatchResult{}, err
		}
	}
	c.Version = commandVersion(c)
	if err := st.replicator.Accepts(uint64(c.Version)); err != nil {
		return BatchResult{}, err
	}
	data, err := encodeCommand(c)
	if err != nil {
		return BatchResult{}, err
	}
	if len(data) > MaxCommandBytes {
		return BatchResult{}, &ValidationError{[]Fault{{Found: fmt.Sprintf("%d bytes", len(data)), Allowed: fmt.Sprintf("at most %d", MaxCommandBytes), Reason: "the change is too large: divide it"}}}
	}
	result, _, err := st.replicator.Propose(ctx, data)
	if err != nil {
		return BatchResult{}, err
	}
	switch r := result.(type) {
	case BatchResult:
		return r, nil
	case error:
		return BatchResult{}, r
	}
	return BatchResult{}, fmt.Errorf("the state machine returned a %T", result)
}

// requestHash tells requests under one idempotency key apart.
func requestHash(request any) (uint64, error) {
	asked, err := json.Marshal(request)
	if err != nil {
		return 0, err
	}
	h := fnv.New64a()
	h.Write(asked)
	return h.Sum64(), nil
}

// replay returns what was done under an idempotency key, if that was used before.
func (st *Store) replay(ctx context.Context, key string, request any) (res BatchResult, done bool, err error) {
	if key == "" {
		return res, false, nil
	}
	c := &lbstatepb.Command{Key: key}
	if c.Request, err = requestHash(request); err != nil {
		return res, false, err
	}
	err = st.read(ctx, ReadOptions{}, func(r *reader) error {
		res, done, err = r.done(c)
		return plainly(err)
	})
	return res, done, err
}

func (st *Store) read(ctx context.Context, o ReadOptions, fn func(*reader) error) error {
	_, gen := st.state.next()
	in := func(tx *bbolt.Tx) error {
		r := &reader{view: openView(tx), cache: &st.state.cache, restores: gen.restores}
		var err error
		if r.counters, err = r.numbers(); err != nil {
			return err
		}
		return fn(r)
	}
	if o.Stale {
		return st.replicator.ReadStale(in)
	}
	return st.replicator.Read(ctx, in)
}

// Services returns every service, by name, and the revision that they show.
func (st *Store) Services(ctx context.Context, o ReadOptions) (services []ServiceStatus, revision uint64, err error) {
	err = st.read(ctx, o, func(r *reader) (err error) {
		revision = r.revision
		services, err = r.services()
		return err
	})
	return services, revision, err
}

// Service returns one service, or ErrNotFound.
func (st *Store) Service(ctx context.Context, name string, o ReadOptions) (ServiceStatus, error) {
	var s ServiceStatus
	err := st.read(ctx, o, func(r *reader) error {
		found, err := r.status(name)
		switch {
		case err != nil:
			return err
		case found == nil:
			return fmt.Errorf("service %s: %w", clip(name), ErrNotFound)
		}
		s = *found
		return nil
	})
	return s, err
}

// Object returns one object, or ErrNotFound.
func (st *Store) Object(ctx context.Context, ref Ref, o ReadOptions) (Object, error) {
	var obj Object
	err := st.read(ctx, o, func(r *reader) error {
		rec, ok, err := r.record(ref)
		if err == nil && !ok {
			return fmt.Errorf("%s: %w", clip(ref.path()), ErrNotFound)
		}
		obj = rec.Object
		return err
	})
	return obj, err
}

// Objects returns every object of a kind, by name, and the state's revision.
func (st *Store) Objects(ctx context.Context, kind Kind, o ReadOptions) (objects []Object, revision uint64, err error) {
	if !slices.Contains(kinds, kind) {
		return nil, 0, unknownKind(kind)
	}
	err = st.read(ctx, o, func(r *reader) error {
		revision = r.revision
		return r.each(kind, nil, func(rec record) error {
			objects = append(objects, rec.Object)
			return nil
		})
	})
	return objects, revision, err
}

// Settings returns the state's settings, defaults filled in.
func (st *Store) Settings(ctx context.Context, o ReadOptions) (s Settings, err error) {
	err = st.read(ctx, o, func(r *reader) (err error) {
		s, err = r.settings()
		return err
	})
	return s, err
}

// ProfileFor returns the profile of an agent with these labels; ok is false
// where none selects it.
func (st *Store) ProfileFor(ctx context.Context, labels map[string]string, o ReadOptions) (p DirectorProfile, ok bool, err error) {
	err = st.read(ctx, o, func(r *reader) error {
		profiles, err := r.profiles()
		if found := ProfileOf(profiles, labels); found != nil {
			p, ok = *found, true
		}
		return err
	})
	return p, ok, err
}

// Revision returns the state's revision.
func (st *Store) Revision(ctx context.Context, o ReadOptions) (revision uint64, err error) {
	err = st.read(ctx, o, func(r *reader) error {
		revision = r.revision
		return nil
	})
	return revision, err
}

// HealthTransition reports that a backend's health has changed.
type HealthTransition struct {
	Service   string
	Backend   netip.AddrPort
	CheckHash uint64 // of the check that was run
	Term      uint64 // the leadership term in which it was run
	To        HealthState
	Held      bool // with To up: its check fails, but with so many others that it is not believed
	At        time.Time
	Message   string // cut at 512 bytes
}

// ReportHealth stores transitions. It is idempotent: a batch whose outcome was
// unknown may be reported again.
func (st *Store) ReportHealth(ctx context.Context, transitions []HealthTransition) error {
	if len(transitions) == 0 {
		return nil
	}
	report := &lbstatepb.HealthReport{}
	for _, t := range transitions {
		if t.To != Up && (t.To != Down || t.Held) {
			return &ValidationError{[]Fault{{Object: Ref{KindService, t.Service}.String(), Path: "to", Found: clip(t.To), Allowed: "up, down", Reason: fmt.Sprintf("is not what backend %s can have become", t.Backend)}}}
		}
		report.Transitions = append(report.Transitions, &lbstatepb.HealthTransition{
			Service: t.Service, Address: t.Backend.Addr().Unmap().AsSlice(), Port: uint32(t.Backend.Port()),
			CheckHash: t.CheckHash, Term: t.Term, To: string(t.To), At: t.At.UnixMilli(), Message: cut(t.Message, maxMessage), Held: t.Held,
		})
	}
	_, err := st.propose(ctx, WriteOptions{}, nil, &lbstatepb.Command{Kind: &lbstatepb.Command_Health{Health: report}})
	return err
}

// cut shortens a text to whole characters within a number of bytes.
func cut(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
