package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

func (s *Store) founder(member uint64) Founder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Founder{Member: member, Incarnation: s.node.Incarnation, Name: s.cfg.Name, RaftAddr: s.cfg.RaftAddr, HTTPAddr: s.cfg.HTTPAddr}
}

// Found makes a founding record durable. A node accepts one, once ever: the
// same again gives nil, any other ErrFounded.
func (s *Store) Found(f Founding) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node.Cluster != 0 {
		if s.node.Founding != nil && equalFounding(*s.node.Founding, f) {
			return nil
		}
		return ErrFounded
	}
	i := slices.IndexFunc(f.Founders, func(m Founder) bool { return m.Incarnation == s.node.Incarnation })
	if f.Cluster == 0 || i < 0 {
		return fmt.Errorf("the founding record of cluster %016x does not name this node, of incarnation %016x", f.Cluster, s.node.Incarnation)
	}
	n := s.node
	n.Cluster, n.Member, n.Founding = f.Cluster, f.Founders[i].Member, &f
	return s.become(n)
}

// Join makes durable what the leader answered to a node that joins. It is
// accepted once, by a node that knows no cluster.
func (s *Store) Join(m Membership) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node.Cluster != 0 {
		if s.node.Cluster == m.Cluster && s.node.Member == m.Member {
			return nil
		}
		return ErrFounded
	}
	if m.Cluster == 0 || m.Member == 0 {
		return fmt.Errorf("a membership without cluster or member: %+v", m)
	}
	n := s.node
	n.Cluster, n.Member, n.Peers = m.Cluster, m.Member, m.Members
	return s.become(n)
}

// become makes an identity durable. The caller holds mu.
func (s *Store) become(n nodeFile) error {
	if err := n.save(s.cfg.files, s.cfg.Dir); err != nil {
		return err
	}
	s.node = n
	close(s.formed)
	return nil
}

func equalFounding(a, b Founding) bool {
	return a.Cluster == b.Cluster && a.Predecessor == b.Predecessor && slices.Equal(a.Founders, b.Founders)
}

// Founding returns the record that this node accepted, if it is a founder.
func (s *Store) Founding() (Founding, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node.Founding == nil {
		return Founding{}, false
	}
	return *s.node.Founding, true
}

// AddMember takes a node into the cluster, as a learner that is promoted when
// it has caught up. Only the leader can (ErrNotLeader). The ID is given by it;
// asked again for the same incarnation it answers the same. A name that is in
// use is taken over only when its member has been silent for ten election
// timeouts, had the same address, and is not needed for the quorum.
func (s *Store) AddMember(ctx context.Context, m Member) (Membership, error) {
	if m.Name == "" || m.RaftAddr == "" || m.Incarnation == 0 {
		return Membership{}, fmt.Errorf("a member needs a name, a raft address and an incarnation: %+v", m)
	}
	var answer Membership
	err := s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) {
		for _, known := range l.applied.members {
			if known.Incarnation == m.Incarnation {
				answer = l.membership(known.ID)
				return nil, nil, nil
			}
		}
		gone := false
		if err := s.state.view(func(tx *bbolt.Tx) error {
			gone = ownIn(tx).gone(m.Incarnation)
			return nil
		}); err != nil {
			return nil, nil, err
		}
		if gone {
			return nil, nil, fmt.Errorf("%w: an incarnation never returns; start with an empty directory", ErrRemoved)
		}
		m.ID, m.Learner = randomID(), true
		change := &memberChange{Nonce: randomID(), Put: &m}
		var changes []*raftpb.ConfChangeSingle
		for _, known := range l.applied.members {
			if known.Name != m.Name {
				continue
			}
			silent := l.now().Sub(l.lastHeard[known.ID])
			limit := 10 * time.Duration(s.cfg.ElectionTicks) * s.cfg.TickInterval
			if known.ID == l.self || known.RaftAddr != m.RaftAddr || silent < limit || !l.quorumWithout(known.ID) {
				return nil, nil, fmt.Errorf("%w by the member at %s (%s)", ErrNameInUse, known.RaftAddr, known.HTTPAddr)
			}
			change.Remove = known.ID
			changes = append(changes, single(raftpb.ConfChangeType_ConfChangeRemoveNode, known.ID))
		}
		changes = append(changes, single(raftpb.ConfChangeType_ConfChangeAddLearnerNode, m.ID))
		answer = l.membership(m.ID)
		answer.Members = append(answer.Members, m)
		return change, changes, nil
	})
	return answer, err
}

// RemoveMember takes a member out of the cluster, for ever. It refuses to
// remove the last voter, and what the quorum needs (ErrQuorum).
func (s *Store) RemoveMember(ctx context.Context, name string) error {
	return s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) {
		m, ok := l.named(name)
		if !ok {
			return nil, nil, fmt.Errorf("%w: %q", ErrNoMember, name)
		}
		if !m.Learner && !l.quorumWithout(m.ID) {
			return nil, nil, fmt.Errorf("%w without %s", ErrQuorum, name)
		}
		return &memberChange{Nonce: randomID(), Remove: m.ID},
			[]*raftpb.ConfChangeSingle{single(raftpb.ConfChangeType_ConfChangeRemoveNode, m.ID)}, nil
	})
}

// TransferLeadership asks the leader, which must be this node, to hand over to
// another. It returns when that is asked, not when it is done: see Leadership.
func (s *Store) TransferLeadership(ctx context.Context, name string) error {
	var err error
	if e := s.on(ctx, func(l *loop) {
		m, ok := l.named(name)
		switch {
		case !l.leads():
			err = ErrNotLeader
		case !ok || m.Learner:
			err = fmt.Errorf("%w that votes: %q", ErrNoMember, name)
		default:
			l.rn.TransferLeader(m.ID)
		}
	}); e != nil {
		return e
	}
	return err
}

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
		l.changes[change.Nonce] = done
		if err := l.proposeChange(change, changes...); err != nil {
			delete(l.changes, change.Nonce)
			done <- notApplied(err)
		}
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

// proposeChange hands a membership change to raft. One that raft replaces by an
// empty entry, because another is pending, is an error.
func (l *loop) proposeChange(change *memberChange, changes ...*raftpb.ConfChangeSingle) error {
	context, err := json.Marshal(change)
	if err != nil {
		return err
	}
	return l.rn.ProposeConfChange(&raftpb.ConfChangeV2{Changes: changes, Context: context})
}

func single(kind raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeSingle {
	return &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: proto.Uint64(id)}
}

func (l *loop) leads() bool { return l.rn.BasicStatus().Lead == l.self }

func (l *loop) named(name string) (Member, bool) {
	for _, m := range l.applied.members {
		if m.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

func (l *loop) membership(id uint64) Membership {
	answer := Membership{Cluster: l.s.Identity().Cluster, Member: id}
	for _, m := range l.applied.members {
		answer.Members = append(answer.Members, m)
	}
	return answer
}

// quorumWithout says whether the voters but one are enough of themselves, and
// enough of them were heard lately.
func (l *loop) quorumWithout(id uint64) bool {
	voters, active := 0, 0
	st := l.rn.Status()
	for _, m := range l.applied.members {
		if m.Learner || m.ID == id {
			continue
		}
		voters++
		if m.ID == l.self || st.Progress[m.ID].RecentActive {
			active++
		}
	}
	return voters > 0 && active > voters/2
}

// promote makes voters of the learners that have caught up. One at a time:
// raft takes one change at a time.
func (l *loop) promote() {
	if !l.leads() || l.ticks-l.promoted < promoteTicks {
		return
	}
	for _, m := range l.applied.members {
		if !m.Learner {
			continue
		}
		st := l.rn.Status()
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
