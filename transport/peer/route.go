package peer

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Lane names a connection between two members.
type Lane uint8

const (
	// Control carries heartbeats, votes, and what else is small and urgent.
	Control Lane = 1 + iota
	// Data carries entries and their acknowledgements.
	Data
	// Snapshots is the lane of a connection made for one snapshot.
	Snapshots
)

func (l Lane) String() string {
	switch l {
	case Control:
		return "control"
	case Data:
		return "data"
	case Snapshots:
		return "snapshot"
	}
	return fmt.Sprintf("lane %d", uint8(l))
}

// route says which lane carries messages of a type; ok is false for those that
// never leave their node, and for snapshots, which SendSnapshot sends.
func route(t raftpb.MessageType) (_ Lane, ok bool) {
	switch t {
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp,
		raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgTimeoutNow, raftpb.MsgTransferLeader:
		return Control, true
	case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgProp,
		raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		return Data, true
	}
	return 0, false
}

// checkOrigin says whether a message that arrived from a member may have come
// from there. A follower passes on proposals, reads and transfers that another
// one sent it while taking it for the leader, and those keep their From.
func checkOrigin(m *raftpb.Message, from, self uint64) error {
	t := m.GetType()
	if m.GetTo() != self {
		return violation("%v for member %x arrived at %x", t, m.GetTo(), self)
	}
	switch t {
	case raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgTransferLeader:
		return nil
	}
	if m.GetFrom() != from {
		return violation("%v of member %x arrived from %x", t, m.GetFrom(), from)
	}
	return nil
}
