package access

import (
	"errors"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
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
	for _, name := range []string{"\xff", strings.Repeat("x", 64<<10)} {
		if _, err := n.Delete(ctx, lbstate.Ref{Kind: KindUser, Name: name}, WriteOptions{}); !errors.Is(err, lbstate.ErrNotFound) {
			t.Errorf("delete user %.10q: %.200v", name, err)
		}
	}
	// As another program could have written it into the log.
	if _, err := n.propose(ctx, WriteOptions{}, &accesspb.Command{Kind: &accesspb.Command_Delete{Delete: &accesspb.Ref{Kind: "credential/agent", Name: "lb1"}}}); !errors.Is(err, lbstate.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := n.Credential(ctx, "agent", "lb1", lbstate.ReadOptions{}); err != nil {
		t.Error(err)
	}
}
