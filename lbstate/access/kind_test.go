package access

import (
	"errors"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

// A kind and a name that together make the key of another object name none: a
// panic where commands are applied would stop every node, at each start anew.
func TestNoOtherKindsKey(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	n.must(t)(n.PutCredential(ctx, Credential{Role: "agent", Name: "lb1", Note: "rack 4"}, WriteOptions{}))
	for _, ref := range []lbstate.Ref{
		{Kind: "credential/agent", Name: "lb1"},
		{Kind: "credential/agent/lb1"},
		{Kind: "", Name: "credential/agent/lb1"},
	} {
		if _, err := n.Delete(ctx, ref, WriteOptions{}); !errors.Is(err, lbstate.ErrNotFound) {
			t.Errorf("delete %+v: %v", ref, err)
		}
	}
	if _, err := n.Credential(ctx, "agent", "lb1", lbstate.ReadOptions{}); err != nil {
		t.Error(err)
	}
}
