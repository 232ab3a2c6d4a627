package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// step gives raft a message of another member.
func (l *loop) step(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MessageType_MsgHeartbeat:
		last, err := l.log.LastIndex()
		if err != nil {
			return err
		}
		// The leader commits here only what this node once acknowledged.
		if m.GetCommit() > last && m.GetTerm() >= l.rn.BasicStatus().GetTerm() {
			return fmt.Errorf("the log ends at entry %d, but this node once acknowledged entry %d: the disk was set back, or lost what it had synced; start with an empty directory, and the node comes back as a new member", last, m.GetCommit())
		}
	case raftpb.MessageType_MsgSnap:
		return nil // these come as streams alone
	case raftpb.MessageType_MsgReadIndex:
		if l.behind() {
			return nil // it asks again
		}
	case raftpb.MessageType_MsgTransferLeader, raftpb.MessageType_MsgForgetLeader, raftpb.MessageType_MsgHup, raftpb.MessageType_MsgBeat,
		raftpb.MessageType_MsgUnreachable, raftpb.MessageType_MsgSnapStatus, raftpb.MessageType_MsgCheckQuorum:
		return nil // local matters; no peer has a say in them
	}
	if err := l.rn.Step(m); err != nil && m.GetType() != raftpb.MessageType_MsgProp {
		l.s.log.Debug("message not taken", zap.Stringer("type", m.GetType()), zap.Uint64("from", m.GetFrom()), zap.Error(err))
	}
	return nil
}

// lost hears of members that are gone. When it is the leader whose connection
// was reset, which its kernel does when its process dies, this node does not
// wait for the election timeout: it asks whether a quorum agrees (PreVote),
// which harms nothing if it is wrong. The jitter keeps followers from splitting
// the vote.
func (s *Store) lost(ctx context.Context) func(uint64, error) {
	return func(peer uint64, err error) {
		var refused interface{ Removed() bool }
		if errors.As(err, &refused) && refused.Removed() {
			// This node was away when it was removed, and no one will tell it by raft.
			s.inbox.fail(ErrRemoved)
			return
		}
		var lost interface{ Reset() bool }
		reset := errors.As(err, &lost) && lost.Reset()
		s.inbox.call(func(l *loop) {
			l.rn.ReportUnreachable(peer)
			if !reset || l.rn.BasicStatus().Lead != peer {
				return
			}
			l.after(2*time.Millisecond+rand.N(20*time.Millisecond), func() {
				if ctx.Err() == nil {
					s.inbox.call(func(l *loop) { l.succeed(peer) })
				}
			})
		})
	}
}

// succeed campaigns if a member that is gone is still taken for the leader.
func (l *loop) succeed(gone uint64) {
	if l.rn.BasicStatus().Lead != gone {
		return
	}
	// Both may refuse, as when this node is a learner.
	_ = l.rn.ForgetLeader()
	if !l.isLearner(l.self) {
		_ = l.rn.Campaign()
	}
}

func (l *loop) isLearner(id uint64) bool {
	m, ok := l.applied.members[id]
	return !ok || m.Learner
}

// forgetRemoved tells the transport whom to refuse for ever.
func (s *Store) forgetRemoved(o own) error {
	ids, err := o.removed()
	if err != nil || s.cfg.Transport == nil {
		return err
	}
	for _, id := range ids {
		s.cfg.Transport.RemovePeer(id)
	}
	return nil
}

// setPeers tells the transport who is there.
func (s *Store) setPeers(self uint64, members map[uint64]Member) {
	if s.cfg.Transport == nil {
		return
	}
	for _, m := range members {
		if m.ID != self {
			s.cfg.Transport.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
		}
	}
	if len(members) > 0 {
		return
	}
	s.mu.Lock()
	peers := s.node.Peers // of a node that joined, and heard nothing yet
	s.mu.Unlock()
	for _, m := range peers {
		if m.ID != self {
			s.cfg.Transport.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
		}
	}
}
