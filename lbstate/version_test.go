package lbstate

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// gate accepts commands up to a version, and keeps the last one.
type gate struct {
	Replicator
	most uint64
	last []byte
}

func (g *gate) Accepts(version uint64) error {
	if version > g.most {
		return &tooNewError{version, g.most}
	}
	return nil
}

func (g *gate) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	g.last = cmd
	return g.Replicator.Propose(ctx, cmd)
}

// INV-17: a command has the lowest version that has its fields, and is not proposed
// where some member does not know that one.
func TestNewFieldsWaitForAllMembers(t *testing.T) {
	field := (&lbstatepb.Service{}).ProtoReflect().Descriptor().Fields().ByName("scheduler").FullName()
	fieldVersions[field] = 2
	defer delete(fieldVersions, field)
	n := newNode(t)
	g := &gate{Replicator: n.local, most: 1}
	st := NewStore(n.state, g)
	if _, err := st.Put(t.Context(), Object{Settings: &Settings{}}, WriteOptions{}); err != nil {
		t.Errorf("a command of version 1: %v", err)
	}
	var c lbstatepb.Command
	if err := proto.Unmarshal(g.last, &c); err != nil || c.GetVersion() != 1 {
		t.Errorf("its version is %d, %v", c.GetVersion(), err)
	}
	before := g.last
	_, err := st.PutService(t.Context(), web(nil), WriteOptions{})
	if err == nil || !NotApplied(err) || !bytes.Equal(g.last, before) {
		t.Errorf("a command with a field of version 2: %v", err)
	}
	g.most = 2
	g.Replicator = &refusing{n.local} // this program itself does not know version 2
	_, _ = st.PutService(t.Context(), web(nil), WriteOptions{})
	if err := proto.Unmarshal(g.last, &c); err != nil || c.GetVersion() != 2 {
		t.Errorf("its version is %d, %v", c.GetVersion(), err)
	}
	if err := n.local.Accepts(CommandVersion + 1); err == nil || !NotApplied(err) {
		t.Errorf("without replication: %v", err)
	}
}

// refusing proposes nothing.
type refusing struct{ Replicator }

func (refusing) Propose(context.Context, []byte) (any, uint64, error) {
	return nil, 0, errors.New("not proposed")
}
