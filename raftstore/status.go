package raftstore

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// Status is what a node knows of itself and its cluster.
type Status struct {
	Identity
	// Predecessor is the cluster that this one was restored or recovered from; 0:
	// none.
	Predecessor uint64 `json:"predecessor,omitempty"`
	// Accepted are the versions up to which commands may be proposed: what every
	// member can apply.
	Accepted Versions `json:"accepted,omitempty"`

	Term       uint64     `json:"term"`
	Leader     uint64     `json:"leader"` // member ID; 0: none known
	LeaderName string     `json:"leader_name"`
	Role       string     `json:"role"` // leader | follower | learner | none
	Commit     uint64     `json:"commit"`
	Applied    uint64     `json:"applied"`
	Durable    uint64     `json:"durable"`            // entry up to which the state itself is durable; beyond it the log is
	LogBytes   int64      `json:"log_bytes"`          // on disk
	StateBytes int64      `json:"state_bytes"`        // on disk
	Progress   []Progress `json:"progress,omitempty"` // on the leader alone
}

// Progress is how far a member is, as the leader knows it.
type Progress struct {
	Member    uint64    `json:"member"`
	Match     uint64    `json:"match"`
	State     string    `json:"state"` // probe | replicate | snapshot
	Active    bool      `json:"active"`
	LastHeard time.Time `json:"last_heard,omitzero"`
}

// Identity says who this node is.
func (s *Store) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Identity{
		Cluster: s.node.Cluster, Member: s.node.Member, Incarnation: s.node.Incarnation,
		Name: s.cfg.Name, RaftAddr: s.cfg.RaftAddr, HTTPAddr: s.cfg.HTTPAddr, Versions: s.cfg.programVersions(),
	}
}

// Members are the members of the cluster as this node has applied them, by name.
func (s *Store) Members() []Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	members := make([]Member, 0, len(s.seen.members))
	for _, m := range s.seen.members {
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return members
}

// Leadership says whether this node leads, with everything applied that was
// acknowledged before its term, and in which term. changed is closed at the
// next change of leader, term or membership.
func (s *Store) Leadership() (leading bool, term uint64, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.leading, s.seen.term, s.changed
}

// Changed is closed at the next change of leader, term or membership.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Status asks the loop; where the store does not run, it is what was last seen.
func (s *Store) Status() Status {
	st := Status{Identity: s.Identity(), Role: "none"}
	s.mu.Lock()
	n := s.seen
	running := s.started && !s.stopping
	s.mu.Unlock()
	st.Term, st.Leader, st.Commit, st.Applied = n.term, n.leader, n.commit, n.applied
	st.Accepted = maps.Clone(n.accepted)
	st.LeaderName = n.members[n.leader].Name
	st.Durable, st.LogBytes = s.state.lastIndex(), s.logs.wal.Size()
	_ = s.state.view(func(tx *bbolt.Tx) error { // after Close these are left out
		st.StateBytes = tx.Size()
		c, err := ownIn(tx).cluster()
		st.Predecessor = c.Predecessor
		return err
	})
	if me, ok := n.members[st.Member]; ok {
		st.Role = "follower"
		switch {
		case me.Learner:
			st.Role = "learner"
		case n.leader == st.Member:
			st.Role = "leader"
		}
	}
	if !running || n.leader != st.Member || st.Member == 0 {
		return st
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.on(ctx, func(l *loop) { // without an answer the progress is left out
		for id, p := range l.rn.Status().Progress {
			st.Progress = append(st.Progress, Progress{
				Member: id, Match: p.Match, State: p.State.String(), Active: p.RecentActive || id == l.self, LastHeard: l.lastHeard[id],
			})
		}
	})
	slices.SortFunc(st.Progress, func(a, b Progress) int { return cmp.Compare(a.Member, b.Member) })
	return st
}
