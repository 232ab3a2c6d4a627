package access

import (
	"context"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate"
)

// late is a state whose Committed comes when the test wants it, as a store calls
// it once for many transactions.
type late struct {
	*State
	upTo uint64
}

func (l *late) Committed(upTo uint64) { l.upTo = upTo }

// What a Barrier has waited for is in the lookups, not in the database alone.
func TestBarrierWaitsForLookups(t *testing.T) {
	l := &late{State: New(Config{})}
	local, err := lbstate.NewLocal(t.TempDir(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	st := NewStore(l.State, local)
	if _, err := st.Revoke(t.Context(), Revocation{Kind: holderOperator, Name: "alice", Reason: "left"}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.Barrier(ctx); err == nil && l.Revoked(holderOperator, "alice", "") == "" {
		t.Error("the barrier is over, and the revocation is not known")
	}
	done := make(chan error, 1)
	go func() { done <- st.Barrier(t.Context()) }()
	l.State.Committed(l.upTo)
	if err := <-done; err != nil || l.Revoked(holderOperator, "alice", "") == "" {
		t.Errorf("%v", err)
	}
	if err := local.ReadStale(func(tx *bbolt.Tx) error { return l.Restored(tx) }); err != nil {
		t.Fatal(err)
	}
	if err := st.Barrier(t.Context()); err != nil {
		t.Error(err)
	}
}
