package raftstore

import (
	"context"
	"encoding/json"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// change proposes what plan says and waits until it is applied here. No change
// gives nil.
func (s *Store) change(ctx context.Context, plan func(*loop) (*memberChange, []*raftpb.ConfChangeSingle, error)) error {
	done := make(chan error, 1)
	if err := s.on(ctx, func(l *loop) {
		if !l.leads() {
			done <- ErrNotLeader
			return
		}
		change, changes, err := plan(l)
		if err != nil || change == nil {
			done <- err
			return
		}
		if err := l.proposeChange(change, changes...); err != nil {
			done <- notApplied(err)
			return
		}
		l.changing.done = done
	}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return unknown(ctx.Err())
	case <-s.stopped:
		return unknown(ErrStopped)
	}
}

// membershipChange is the one that was proposed here and is not applied yet.
type membershipChange struct {
	nonce uint64 // 0: none
	term  uint64
	done  chan error // nil: no one waits
}

// end answers who waits.
func (c *membershipChange) end(err error) {
	if c.done != nil {
		c.done <- err
	}
	*c = membershipChange{}
}

// proposeChange hands a membership change to raft, one at a time: raft would
// silently put an empty entry in the place of a second.
func (l *loop) proposeChange(change *memberChange, changes ...*raftpb.ConfChangeSingle) error {
	st := l.rn.Status()
	if l.changing.nonce != 0 || l.applied.term != st.GetTerm() || len(st.Config.Voters[1]) > 0 {
		return ErrBusy
	}
	context, err := json.Marshal(change)
	if err != nil {
		return err
	}
	if err := l.rn.ProposeConfChange(&raftpb.ConfChangeV2{Changes: changes, Context: context}); err != nil {
		return err
	}
	l.changing = membershipChange{nonce: change.Nonce, term: st.GetTerm()}
	return nil
}

// changed ends the change on its way when it is applied, or when entries of
// another leader are: then it may be lost.
func (l *loop) changed(changes []changeDone) {
	if l.changing.nonce == 0 {
		return
	}
	i := slices.IndexFunc(changes, func(c changeDone) bool { return c.nonce == l.changing.nonce })
	if i >= 0 && changes[i].refused != nil {
		l.changing.end(notApplied(changes[i].refused))
	} else if i >= 0 {
		l.changing.end(nil)
	} else if l.applied.term > l.changing.term {
		l.changing.end(unknown(errLeaderChanged))
	}
}

func single(kind raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeSingle {
	return &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: proto.Uint64(id)}
}

// promote makes voters of the learners that have caught up. One at a time:
// raft takes one change at a time.
func (l *loop) promote() {
	if l.s.cfg.ManualPromotion || !l.leads() || l.ticks-l.promoted < promoteTicks {
		return
	}
	st := l.rn.Status()
	for _, m := range l.sortedMembers() {
		if !m.Learner {
			continue
		}
		p, known := st.Progress[m.ID]
		if !known || p.State != tracker.StateReplicate || !p.RecentActive || p.Match+100 < st.GetCommit() {
			continue
		}
		l.promoted = l.ticks
		m.Learner = false
		// Dropped while another change is pending: tried again later.
		if err := l.proposeChange(&memberChange{Nonce: randomID(), Put: &m}, single(raftpb.ConfChangeType_ConfChangeAddNode, m.ID)); err != nil {
			l.s.log.Debug("promotion not taken", zap.String("member", m.Name), zap.Error(err))
		}
		return
	}
}

// promoteTicks is how long a promotion that was proposed is given.
const promoteTicks = 10
