package raftstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
)

func (s *Store) founder(member uint64) Founder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Founder{Member: member, Incarnation: s.node.Incarnation, Name: s.cfg.Name, RaftAddr: s.cfg.RaftAddr, HTTPAddr: s.cfg.HTTPAddr, Versions: s.cfg.programVersions()}
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
	return a.Cluster == b.Cluster && a.Predecessor == b.Predecessor && slices.EqualFunc(a.Founders, b.Founders, Founder.equal)
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
// timeouts, had the same address, and is not needed for the quorum. A node whose
// program cannot apply what the cluster accepts is refused (ErrOlder).
func (s *Store) AddMember(ctx context.Context, m Member) (Membership, error) {
	if m.Name == "" || m.RaftAddr == "" || m.Incarnation == 0 {
		return Membership{}, fmt.Errorf("a member needs a name, a raft address and an incarnation: %+v", m)
	}
	var answer Membership
	err := s.change(ctx, func(l *loop) (change *memberChange, changes []*raftpb.ConfChangeSingle, err error) {
		answer, change, changes, err = l.planAdd(m)
		return change, changes, err
	})
	return answer, err
}

func (l *loop) planAdd(m Member) (Membership, *memberChange, []*raftpb.ConfChangeSingle, error) {
	fail := func(err error) (Membership, *memberChange, []*raftpb.ConfChangeSingle, error) {
		return Membership{}, nil, nil, err
	}
	for _, known := range l.applied.members {
		if known.Incarnation == m.Incarnation {
			return l.membership(known.ID), nil, nil, nil
		}
	}
	if err := l.applied.accepted.Admits(m.Versions); err != nil {
		return fail(err)
	}
	gone := false
	if err := l.s.state.view(func(tx *bbolt.Tx) error {
		gone = ownIn(tx).gone(m.Incarnation)
		return nil
	}); err != nil {
		return fail(err)
	}
	if gone {
		return fail(fmt.Errorf("%w: an incarnation never returns; start with an empty directory", ErrRemoved))
	}
	m.ID, m.Learner = randomID(), true
	change := &memberChange{Nonce: randomID(), Put: &m}
	var changes []*raftpb.ConfChangeSingle
	if known, ok := l.named(m.Name); ok {
		c := l.s.cfg
		silent := l.silentFor(known.ID)
		limit := 10 * time.Duration(c.ElectionTicks) * c.TickInterval
		if known.ID == l.self || known.RaftAddr != m.RaftAddr || silent < limit || !l.quorumWithout(known.ID) {
			return fail(fmt.Errorf("%w by the member at %s (%s)", ErrNameInUse, known.RaftAddr, known.HTTPAddr))
		}
		change.Remove = known.ID
		changes = append(changes, single(raftpb.ConfChangeType_ConfChangeRemoveNode, known.ID))
	}
	changes = append(changes, single(raftpb.ConfChangeType_ConfChangeAddLearnerNode, m.ID))
	answer := l.membership(m.ID)
	answer.Members = append(answer.Members, m)
	return answer, change, changes, nil
}

// ReplaceMember takes a member out for ever and another node in, in one change:
// as a learner, which is promoted when it has caught up. Unlike AddMember it asks
// neither for the name nor for the address of the former one, nor how long it has
// been silent; it refuses what would lose the quorum (ErrQuorum).
func (s *Store) ReplaceMember(ctx context.Context, name string, m Member) (Membership, error) {
	if m.Name == "" || m.RaftAddr == "" || m.Incarnation == 0 {
		return Membership{}, fmt.Errorf("a member needs a name, a raft address and an incarnation: %+v", m)
	}
	var answer Membership
	err := s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) {
		remove, removals, err := l.planRemove(name)
		if err != nil {
			return nil, nil, err
		}
		if other, ok := l.named(m.Name); ok && other.ID != remove.Remove {
			return nil, nil, fmt.Errorf("%w by the member at %s (%s)", ErrNameInUse, other.RaftAddr, other.HTTPAddr)
		}
		if remove.Remove == l.self {
			return nil, nil, fmt.Errorf("%w: this node is the leader; hand over first", ErrQuorum)
		}
		former := l.applied.members
		defer func() { l.applied.members = former }()
		l.applied.members = maps.Clone(former)
		delete(l.applied.members, remove.Remove)
		var change *memberChange
		var changes []*raftpb.ConfChangeSingle
		if answer, change, changes, err = l.planAdd(m); err != nil || change == nil {
			return nil, nil, err
		}
		change.Remove = remove.Remove
		return change, append(removals, changes...), nil
	})
	return answer, err
}

// UpdateMember changes the addresses of a member; an empty one stays. The others
// connect to the new one at once.
func (s *Store) UpdateMember(ctx context.Context, name, raftAddr, httpAddr string) error {
	return s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) {
		m, ok := l.named(name)
		if !ok {
			return nil, nil, fmt.Errorf("%w: %q", ErrNoMember, name)
		}
		m.RaftAddr, m.HTTPAddr = cmp.Or(raftAddr, m.RaftAddr), cmp.Or(httpAddr, m.HTTPAddr)
		return &memberChange{Nonce: randomID(), Put: &m},
			[]*raftpb.ConfChangeSingle{single(raftpb.ConfChangeType_ConfChangeUpdateNode, m.ID)}, nil
	})
}

// Promote makes a voter of a learner, whether it has caught up or not; those that
// have are promoted without being asked, unless Config.ManualPromotion is set.
func (s *Store) Promote(ctx context.Context, name string) error {
	return s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) {
		m, ok := l.named(name)
		if !ok {
			return nil, nil, fmt.Errorf("%w: %q", ErrNoMember, name)
		}
		if !m.Learner {
			return nil, nil, nil
		}
		m.Learner = false
		return &memberChange{Nonce: randomID(), Put: &m},
			[]*raftpb.ConfChangeSingle{single(raftpb.ConfChangeType_ConfChangeAddNode, m.ID)}, nil
	})
}

// silentFor is how long a member was not heard, by this leader.
func (l *loop) silentFor(id uint64) time.Duration {
	since := l.lastHeard[id]
	if since.Before(l.leadsSince) {
		since = l.leadsSince
	}
	return l.now().Sub(since)
}

// RemoveMember takes a member out of the cluster, for ever. It refuses to
// remove the last voter, and what the quorum needs (ErrQuorum).
func (s *Store) RemoveMember(ctx context.Context, name string) error {
	return s.change(ctx, func(l *loop) (*memberChange, []*raftpb.ConfChangeSingle, error) { return l.planRemove(name) })
}

func (l *loop) planRemove(name string) (*memberChange, []*raftpb.ConfChangeSingle, error) {
	m, ok := l.named(name)
	if !ok {
		return nil, nil, fmt.Errorf("%w: %q", ErrNoMember, name)
	}
	if !m.Learner && !l.quorumWithout(m.ID) {
		return nil, nil, fmt.Errorf("%w without %s", ErrQuorum, name)
	}
	return &memberChange{Nonce: randomID(), Remove: m.ID},
		[]*raftpb.ConfChangeSingle{single(raftpb.ConfChangeType_ConfChangeRemoveNode, m.ID)}, nil
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
	return Membership{Cluster: l.s.Identity().Cluster, Member: id, Members: l.sortedMembers()}
}

func (l *loop) sortedMembers() []Member { return sortedByID(l.applied.members) }

func sortedByID(members map[uint64]Member) []Member {
	return slices.SortedFunc(maps.Values(members), func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
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
