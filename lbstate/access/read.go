package access

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
)

func (st *Store) read(ctx context.Context, o lbstate.ReadOptions, fn func(view) error) error {
	in := func(tx *bbolt.Tx) error { return fn(openView(tx)) }
	if o.Stale {
		return st.replicator.ReadStale(in)
	}
	return st.replicator.Read(ctx, in)
}

func list[T any](ctx context.Context, st *Store, kind lbstate.Kind, from func(*accesspb.Object) T, o lbstate.ReadOptions) (all []T, err error) {
	all = []T{}
	err = st.read(ctx, o, func(v view) error {
		return v.each(kind, func(obj *accesspb.Object) error {
			all = append(all, from(obj))
			return nil
		})
	})
	return all, err
}

func one[T any](ctx context.Context, st *Store, ref lbstate.Ref, from func(*accesspb.Object) T, o lbstate.ReadOptions) (found T, err error) {
	err = st.read(ctx, o, func(v view) error {
		obj, err := v.object(ref)
		if err == nil && obj == nil {
			return fmt.Errorf("%s %.300s: %w", ref.Kind, ref.Name, lbstate.ErrNotFound)
		}
		if err == nil {
			found = from(obj)
		}
		return err
	})
	return found, err
}

// Barrier returns once this node knows every write that was acknowledged before,
// in its lookups too.
func (st *Store) Barrier(ctx context.Context) error {
	var at uint64
	if err := st.read(ctx, lbstate.ReadOptions{}, func(v view) error {
		n, err := v.numbers()
		at = n.revision
		return err
	}); err != nil {
		return err
	}
	return st.state.reached(ctx, at)
}

// Users returns every user, by name.
func (st *Store) Users(ctx context.Context, o lbstate.ReadOptions) ([]User, error) {
	return list(ctx, st, KindUser, userFrom, o)
}

// User returns one user, or ErrNotFound.
func (st *Store) User(ctx context.Context, name string, o lbstate.ReadOptions) (User, error) {
	return one(ctx, st, User{Name: name}.Ref(), userFrom, o)
}

// Tokens returns every token, by ID.
func (st *Store) Tokens(ctx context.Context, o lbstate.ReadOptions) ([]Token, error) {
	return list(ctx, st, KindToken, tokenFrom, o)
}

// Revocations returns every revocation, by kind and name.
func (st *Store) Revocations(ctx context.Context, o lbstate.ReadOptions) ([]Revocation, error) {
	return list(ctx, st, KindRevocation, revocationFrom, o)
}

// Credentials returns every credential, by role and name.
func (st *Store) Credentials(ctx context.Context, o lbstate.ReadOptions) ([]Credential, error) {
	return list(ctx, st, KindCredential, credentialFrom, o)
}

// Credential returns one credential, or ErrNotFound.
func (st *Store) Credential(ctx context.Context, role, name string, o lbstate.ReadOptions) (Credential, error) {
	return one(ctx, st, Credential{Role: role, Name: name}.Ref(), credentialFrom, o)
}

// HistoryOptions say which entries of the history are wanted.
type HistoryOptions struct {
	lbstate.ReadOptions
	Before uint64 // those of before this revision; 0: the newest
	Limit  int    // at most so many; 0: 100
}

// History returns the entries that are kept, newest first.
func (st *Store) History(ctx context.Context, o HistoryOptions) (entries []Entry, err error) {
	if o.Limit == 0 {
		o.Limit = 100
	}
	entries = []Entry{}
	err = st.read(ctx, o.ReadOptions, func(v view) error {
		return v.entries(o.Before, func(revision uint64, c *accesspb.Change) bool {
			entries = append(entries, entryFrom(revision, c))
			return len(entries) < o.Limit
		})
	})
	return entries, err
}
