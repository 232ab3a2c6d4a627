package raftstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// loop owns raft. Everything that touches it runs in one goroutine: a turn
// takes what has come in, makes it durable, sends, and applies.
type loop struct {
	s    *Store
	rn   *raft.RawNode
	self uint64

	applied     uint64
	appliedTerm uint64
	members     map[uint64]Member

	next    uint64 // sequence number of the next command
	waiting map[uint64]*proposal
	changes map[uint64]chan error // membership changes by nonce
	round   round

	incoming  *incomingSnapshot // verified, waiting for raft to take it
	lastHeard map[uint64]time.Time
	promoted  time.Time // when a promotion was last proposed
	removed   bool

	fatal      error
	background sync.WaitGroup // copies of snapshots that are being sent
}

func (s *Store) newLoop() (*loop, error) {
	l := &loop{
		s: s, next: 1,
		waiting: map[uint64]*proposal{}, changes: map[uint64]chan error{}, lastHeard: map[uint64]time.Time{},
	}
	s.mu.Lock()
	node := s.node
	s.mu.Unlock()
	l.self = node.Member
	if err := s.foundState(node); err != nil {
		return nil, err
	}
	var conf *raftpb.ConfState
	err := s.state.view(func(tx *bbolt.Tx) error {
		o := ownIn(tx)
		l.applied, l.appliedTerm = o.applied()
		var err error
		if l.members, err = o.members(); err != nil {
			return err
		}
		if conf, err = o.conf(); err != nil {
			return err
		}
		for _, name := range s.names {
			if err := s.cfg.StateMachines[name].Restored(tx); err != nil {
				return fmt.Errorf("state machine %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.logdb.current = l.metadata
	if err := s.logdb.load(l.applied, l.appliedTerm, conf); err != nil {
		return nil, err
	}
	l.rn, err = raft.NewRawNode(&raft.Config{
		ID: l.self, ElectionTick: s.cfg.ElectionTicks, HeartbeatTick: 1,
		Storage: s.logdb, Applied: l.applied,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256, MaxInflightBytes: 16 << 20,
		MaxUncommittedEntriesSize: 64 << 20, MaxCommittedSizePerReady: 4 << 20,
		CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
		Logger: zapRaft{s.log.WithOptions(zap.IncreaseLevel(zap.WarnLevel)).Sugar()},
	})
	return l, err
}

// foundState gives a founder the state that the founding record says: entry 1
// of term 1, applied, with the founders as voters. It is the same on each.
func (s *Store) foundState(node nodeFile) error {
	if node.Founding == nil {
		return nil
	}
	return s.state.update(func(tx *bbolt.Tx) error {
		if index, _ := ownIn(tx).applied(); index > 0 {
			return nil
		}
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		conf := &raftpb.ConfState{}
		for _, f := range node.Founding.Founders {
			conf.Voters = append(conf.Voters, f.Member)
			m := Member{ID: f.Member, Incarnation: f.Incarnation, Name: f.Name, RaftAddr: f.RaftAddr, HTTPAddr: f.HTTPAddr}
			if err := o.putMember(m); err != nil {
				return err
			}
		}
		if err := o.setConf(conf); err != nil {
			return err
		}
		return o.setApplied(1, 1)
	})
}

// metadata is that of the state as it is; raft asks for it inside a turn.
func (l *loop) metadata() *raftpb.SnapshotMetadata {
	var meta *raftpb.SnapshotMetadata
	if err := l.s.state.view(func(tx *bbolt.Tx) (err error) {
		meta, err = ownIn(tx).metadata()
		return err
	}); err != nil {
		l.fatal = err
		return nil
	}
	return meta
}

func (l *loop) run(ctx context.Context) error {
	tick := time.NewTicker(l.s.cfg.TickInterval)
	defer tick.Stop()
	if conf := l.rn.Status().Config; len(conf.Voters.IDs()) == 1 {
		if _, only := conf.Voters.IDs()[l.self]; only {
			if err := l.rn.Campaign(); err != nil { // no one to wait for
				return err
			}
		}
	}
	for {
		if err := l.turn(); err != nil || l.removed {
			if err == nil {
				err = ErrRemoved
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.rn.Tick()
			l.ticked()
		case p := <-l.s.proposals:
			l.propose(p)
		case r := <-l.s.reads:
			l.round.queue = append(l.round.queue, r)
			l.ask()
		case call := <-l.s.calls:
			call(l)
		}
	}
}

// turn handles everything that raft has ready: durable first, then sent, then
// applied.
func (l *loop) turn() error {
	for l.fatal == nil && l.rn.HasReady() {
		rd := l.rn.Ready()
		if !raft.IsEmptySnap(rd.Snapshot) {
			if err := l.install(rd.Snapshot, rd.HardState); err != nil {
				return err
			}
		}
		if err := l.s.logdb.save(rd.Entries, rd.HardState, rd.MustSync); err != nil {
			return err
		}
		l.send(rd.Messages)
		l.answered(rd.ReadStates)
		if err := l.apply(rd.CommittedEntries); err != nil {
			return err
		}
		l.rn.Advance(rd)
	}
	if l.fatal != nil {
		return l.fatal
	}
	if err := l.cut(); err != nil {
		return err
	}
	l.release()
	l.publish()
	return nil
}

func (l *loop) send(msgs []*raftpb.Message) {
	t := l.s.cfg.Transport
	if t == nil || len(msgs) == 0 {
		return
	}
	rest := msgs[:0]
	for _, m := range msgs {
		switch {
		case m.GetTo() == l.self:
		case m.GetType() == raftpb.MessageType_MsgSnap:
			l.sendSnapshot(m)
		default:
			rest = append(rest, m)
		}
	}
	t.Send(rest)
}

// ticked does what is due now and then.
func (l *loop) ticked() {
	for seq, p := range l.waiting {
		if p.ctx.Err() != nil {
			delete(l.waiting, seq)
			l.s.pending.Add(-1)
		}
	}
	l.round.ticks++
	l.ask()
	l.promote()
}

// cut drops the part of the log that the state has applied, but for what a
// follower that lags a little may ask for.
func (l *loop) cut() error {
	first, err := l.s.logdb.FirstIndex()
	if err != nil {
		return err
	}
	c := l.s.cfg
	kept := l.applied - min(l.applied, first-1)
	if kept < c.SnapshotEntries+c.TrailingEntries && (l.s.logdb.bytes < c.SnapshotBytes || kept < 2) {
		return nil
	}
	to := l.applied - min(l.applied, c.TrailingEntries)
	if l.s.logdb.bytes >= c.SnapshotBytes {
		to = l.applied - 1
	}
	if to < first {
		return nil
	}
	l.s.log.Debug("the log is cut", zap.Uint64("index", to))
	return l.s.logdb.cut(to)
}

func (l *loop) publish() {
	st := l.rn.BasicStatus()
	n := seen{
		term: st.GetTerm(), leader: st.Lead, commit: st.GetCommit(), applied: l.applied,
		leading: st.RaftState == raft.StateLeader, members: l.members,
	}
	// A leader that has not applied an entry of its own term is not yet one to
	// its users: its state may lack what was acknowledged before.
	n.leading = n.leading && l.appliedTerm == n.term
	l.s.show(n)
}

// on runs fn in the loop and waits for it.
func (s *Store) on(ctx context.Context, fn func(*loop)) error {
	ran := make(chan struct{})
	select {
	case s.calls <- func(l *loop) { fn(l); close(ran) }:
		<-ran
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
}

// receive takes messages from the transport.
func (l *loop) receive(ctx context.Context) func(uint64, []*raftpb.Message) {
	return func(from uint64, msgs []*raftpb.Message) {
		_ = l.s.on(ctx, func(l *loop) { // fails only when the store stops
			l.lastHeard[from] = time.Now()
			for _, m := range msgs {
				l.step(m)
			}
		})
	}
}

func (l *loop) step(m *raftpb.Message) {
	last, err := l.s.logdb.LastIndex()
	if err != nil {
		l.fatal = err
		return
	}
	switch m.GetType() {
	case raftpb.MessageType_MsgHeartbeat:
		// The leader commits here only what this node once acknowledged.
		if m.GetCommit() > last && m.GetTerm() >= l.rn.BasicStatus().GetTerm() {
			l.fatal = fmt.Errorf("the log ends at entry %d, but this node once acknowledged entry %d: the disk was set back, or lost what it had synced; start with an empty directory, and the node comes back as a new member", last, m.GetCommit())
			return
		}
	case raftpb.MessageType_MsgSnap:
		return // these come as streams alone
	case raftpb.MessageType_MsgTransferLeader, raftpb.MessageType_MsgForgetLeader, raftpb.MessageType_MsgHup, raftpb.MessageType_MsgBeat,
		raftpb.MessageType_MsgUnreachable, raftpb.MessageType_MsgSnapStatus, raftpb.MessageType_MsgCheckQuorum:
		return // local matters; no peer has a say in them
	}
	if err := l.rn.Step(m); err != nil && m.GetType() != raftpb.MessageType_MsgProp {
		l.s.log.Debug("message not taken", zap.Stringer("type", m.GetType()), zap.Uint64("from", m.GetFrom()), zap.Error(err))
	}
}

// unreachable hears of peers that are gone. When it is the leader, this node
// does not wait for the election timeout: it asks whether a quorum agrees
// (PreVote), which harms nothing if it is wrong. The jitter keeps followers
// from splitting the vote.
func (l *loop) unreachable(ctx context.Context) func(uint64, error) {
	return func(peer uint64, _ error) {
		leads := false
		if l.s.on(ctx, func(l *loop) {
			l.rn.ReportUnreachable(peer)
			leads = l.rn.BasicStatus().Lead == peer
		}) != nil || !leads {
			return
		}
		time.AfterFunc(2*time.Millisecond+rand.N(20*time.Millisecond), func() {
			_ = l.s.on(ctx, func(l *loop) { // fails only when the store stops
				if l.rn.BasicStatus().Lead != peer {
					return
				}
				// Both may refuse, as when this node is a learner.
				_ = l.rn.ForgetLeader()
				if !l.isLearner(l.self) {
					_ = l.rn.Campaign()
				}
			})
		})
	}
}

func (l *loop) isLearner(id uint64) bool {
	m, ok := l.members[id]
	return !ok || m.Learner
}

func (l *loop) setPeers() {
	s := l.s
	for _, m := range l.members {
		if m.ID != l.self {
			s.cfg.Transport.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
		}
	}
	if len(l.members) == 0 { // joined, and heard nothing yet
		for _, m := range s.node.Peers {
			if m.ID != l.self {
				s.cfg.Transport.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
			}
		}
	}
}
