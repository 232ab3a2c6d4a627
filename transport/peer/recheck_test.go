package peer

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// INV-40: a member that is revoked while it is connected is cut off, and not let
// in again.
func TestRevokedMemberIsCutOff(t *testing.T) {
	shared := testTLS(t)
	var revoked atomic.Bool
	judge := func(tls.ConnectionState) error {
		if revoked.Load() {
			return errors.New("revoked")
		}
		return nil
	}
	strict := shared.Clone()
	strict.VerifyConnection = judge
	cfg := testConfig(t)
	cfg.ServerTLS, cfg.ClientTLS = strict, strict
	other := testConfig(t)
	other.ServerTLS, other.ClientTLS = shared, shared
	a, b := pair(t, cfg, other)
	up := func(n *node) bool {
		for _, p := range n.Peers() {
			if p.Control && p.Data {
				return true
			}
		}
		return false
	}
	b.Send([]*raftpb.Message{message(raftpb.MsgApp, 2, 1, 1, nil)})
	a.until("a message", func() bool { return len(a.got) == 1 })
	a.Recheck(judge)
	if !up(a) {
		t.Error("a member that may stay was cut off")
	}
	revoked.Store(true)
	a.Recheck(judge)
	eventually(t, "both ends are cut off", func() bool { return !up(a) && !up(b) && inboundOf(a) == 0 })
	b.Send([]*raftpb.Message{message(raftpb.MsgApp, 2, 1, 1, nil)})
	b.until("it is refused", func() bool { return len(b.errs) > 3 })
	if got, _ := a.seen(); inboundOf(a) != 0 || len(got) != 1 {
		t.Error("a revoked member is let in again")
	}
}

func inboundOf(n *node) int {
	n.Transport.mu.RLock()
	defer n.Transport.mu.RUnlock()
	count := 0
	for _, m := range n.members {
		count += len(m.inbound)
	}
	return count
}
