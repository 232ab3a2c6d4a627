package access

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a state with a store on it, whose clock the test turns.
type node struct {
	*Store
	state *State
	clock time.Time
}

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newNode(t testing.TB) *node {
	t.Helper()
	state := New(Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Store: NewStore(state, local), state: state, clock: began}
	n.now = func() time.Time { return n.clock }
	t.Cleanup(func() {
		if err := local.ReadStale(func(tx *bbolt.Tx) error { return consistent(tx, state) }); err != nil {
			t.Errorf("the state contradicts itself: %v", err)
		}
		if err := local.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) must(t testing.TB) func(lbstate.WriteResult, error) lbstate.WriteResult {
	return func(r lbstate.WriteResult, err error) lbstate.WriteResult {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// consistent says where indexes, counters or lookups differ from the objects.
func consistent(tx *bbolt.Tx, s *State) error {
	v := openView(tx)
	if v.root == nil {
		return nil
	}
	fresh := newIndex()
	var counted [4]uint64
	hashes, owned := 0, 0
	if err := v.each("", func(o *accesspb.Object) error {
		fresh.take(nil, o)
		ref := refOf(o)
		counted[slices.Index(kinds, ref.Kind)]++
		if t := o.GetToken(); t != nil {
			same, err := v.tokenOf(t.GetHash())
			if err != nil || same.GetToken().GetId() != t.GetId() {
				return fmt.Errorf("token %s is not found by its hash: %w", t.GetId(), errors.Join(err))
			}
			ids, err := v.tokensOf(t.GetUser())
			if err != nil || !slices.Contains(ids, t.GetId()) {
				return fmt.Errorf("token %s is not among those of %s: %w", t.GetId(), t.GetUser(), errors.Join(err))
			}
		}
		return wellFormed(o)
	}); err != nil {
		return err
	}
	for _, c := range []struct {
		bucket []byte
		n      *int
	}{{hashesBucket, &hashes}, {ownedBucket, &owned}} {
		if err := v.root.Bucket(c.bucket).ForEach(func(_, _ []byte) error { *c.n++; return nil }); err != nil {
			return err
		}
	}
	n, err := v.numbers()
	if err != nil {
		return err
	}
	entries, size := uint64(0), uint64(0)
	if err := v.root.Bucket(historyBucket).ForEach(func(_, data []byte) error {
		entries++
		size += uint64(len(data) - 4)
		return nil
	}); err != nil {
		return err
	}
	switch {
	case n.objects != counted || hashes != int(counted[1]) || owned != int(counted[1]):
		return fmt.Errorf("counters %v, objects %v, %d hashes, %d owned", n.objects, counted, hashes, owned)
	case entries != n.history || size != n.historyBytes:
		return fmt.Errorf("history of %d entries and %d bytes, counters %d and %d", entries, size, n.history, n.historyBytes)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, same := range []bool{
		maps.EqualFunc(s.index.users, fresh.users, func(a, b User) bool { return a.Stamp == b.Stamp && a.Role == b.Role && a.Disabled == b.Disabled }),
		maps.Equal(s.index.tokens, fresh.tokens), maps.Equal(s.index.revocations, fresh.revocations),
		maps.EqualFunc(s.index.credentials, fresh.credentials, func(a, b Credential) bool { return a.Stamp == b.Stamp && maps.Equal(a.Labels, b.Labels) }),
	} {
		if !same {
			return fmt.Errorf("lookups differ from the database")
		}
	}
	return nil
}

func (n *node) token(t testing.TB, user string, role Role) (string, Token) {
	t.Helper()
	secret, made, err := n.CreateToken(context.Background(), Token{User: user, Role: role}, WriteOptions{Author: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	return secret, made
}
