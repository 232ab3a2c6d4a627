package lbstate

import (
	"bytes"
	"context"
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

// INV-17: a command has the lowest version that can say it, and is not proposed
// where some member does not know that one.
func TestNewFieldsWaitForAllMembers(t *testing.T) {
	n := newNode(t)
	g := &gate{Replicator: n.local, most: 1}
	st := NewStore(n.state, g)
	version := func() uint32 {
		var c lbstatepb.Command
		if err := proto.Unmarshal(g.last, &c); err != nil {
			t.Error(err)
		}
		return c.GetVersion()
	}
	if _, err := st.Put(t.Context(), Object{Settings: &Settings{}}, WriteOptions{}); err != nil || version() != 1 {
		t.Errorf("a command of version 1: %v, its version is %d", err, version())
	}
	before := g.last
	newer := web(func(s *Service) { s.HealthCheck = &HealthCheck{Type: CheckTypeTLS} })
	_, err := st.PutService(t.Context(), newer, WriteOptions{})
	if err == nil || !NotApplied(err) || !bytes.Equal(g.last, before) {
		t.Errorf("a command of version 2: %v", err)
	}
	g.most = 2
	if _, err := st.PutService(t.Context(), newer, WriteOptions{}); err != nil || version() != 2 {
		t.Errorf("where all know it: %v, its version is %d", err, version())
	}
	if err := n.local.Accepts(CommandVersion + 1); err == nil || !NotApplied(err) {
		t.Errorf("without replication: %v", err)
	}
}
