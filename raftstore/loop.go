package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// loop owns raft. Everything that touches it runs in one goroutine: a turn
// takes what has come in, lets raft think, and hands what that gives to the
// stages. It waits for no disk.
type loop struct {
	s    *Store
	rn   *raft.RawNode
	log  *logStore
	self uint64
	boot uint64

	append *appender
	apply  *applier
	keep   *keeper

	applied  progress
	next     uint64 // sequence number of the next command
	ticks    uint64
	queued   []*proposal
	changing membershipChange
	round    round

	appends    int               // tasks that the append stage has not done yet
	applies    int               // tasks that the apply stage has not done yet
	installs   bool              // one of appends has a snapshot, which goes through the apply stage
	incoming   *incomingSnapshot // verified, waiting for raft to take it
	lastHeard  map[uint64]time.Time
	leadsIn    uint64    // the last term in which this node leads or has led
	leadsSince time.Time // since when, in that term
	promoted   uint64    // tick at which a promotion was last proposed
	stalled    uint64    // tick at which a stalled disk was first seen; 0: it is not
	muted      bool      // the disk has stalled for too long: others get no sign of life

	now   func() time.Time
	spawn func(func()) // runs a copy of the state in the background
	after func(time.Duration, func())

	background sync.WaitGroup
}

// foundingIndex is the entry that a founding record stands for, in term 1.
const foundingIndex = 1

func (s *Store) newLoop() (*loop, error) {
	l := &loop{
		s: s, log: s.logs, next: 1, lastHeard: map[uint64]time.Time{}, now: time.Now,
		after: func(d time.Duration, fn func()) { time.AfterFunc(d, fn) },
	}
	l.spawn = l.background.Go
	s.mu.Lock()
	node := s.node
	s.mu.Unlock()
	l.self, l.boot = node.Member, node.Boot
	if err := s.foundState(node); err != nil {
		return nil, err
	}
	var conf *raftpb.ConfState
	err := s.state.view(func(tx *bbolt.Tx) (err error) {
		o := ownIn(tx)
		l.applied.index, l.applied.term = o.applied()
		if l.applied.members, err = o.members(); err != nil {
			return err
		}
		if c, err := o.cluster(); err != nil || c.ID != 0 && c.ID != node.Cluster {
			return errors.Join(err, fmt.Errorf("the state is that of cluster %016x, this node belongs to %016x: if it was being recovered, do that again", c.ID, node.Cluster))
		}
		if conf, err = o.conf(); err != nil {
			return err
		}
		if err := s.forgetRemoved(o); err != nil {
			return err
		}
		return s.restored(tx)
	})
	if err != nil {
		return nil, err
	}
	l.log.current = s.metadata
	if err := l.log.load(s.state.lastCheckpoint(), conf); err != nil {
		return nil, err
	}
	hard, _, err := l.log.InitialState()
	if err != nil {
		return nil, err
	}
	cfg := &raft.Config{
		ID: l.self, ElectionTick: s.cfg.ElectionTicks, HeartbeatTick: 1,
		Storage: l.log, Applied: l.applied.index, AsyncStorageWrites: true,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256, MaxInflightBytes: 16 << 20,
		MaxUncommittedEntriesSize: 64 << 20, MaxCommittedSizePerReady: 8 << 20,
		CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
		Logger: zapRaft{s.log.WithOptions(zap.IncreaseLevel(zap.WarnLevel)).Sugar()},
	}
	if s.cfg.weaken != nil {
		s.cfg.weaken(cfg)
	}
	if l.rn, err = raft.NewRawNode(cfg); err != nil {
		return nil, err
	}
	l.keep = &keeper{s: s, log: l.log, due: make(chan struct{}, 1)}
	l.append = &appender{
		s: s, self: l.self, log: l.log, queue: newQueue[appendTask](),
		hard: wal.HardState{Term: hard.GetTerm(), Vote: hard.GetVote(), Commit: hard.GetCommit()},
	}
	l.apply = &applier{
		s: s, self: l.self, boot: l.boot, queue: newQueue[applyTask](), progress: l.applied,
		due: func() { wake(l.keep.due) }, committed: make(chan struct{}, 1), told: l.applied.index,
	}
	s.state.write.done = func(err error) {
		if err != nil {
			s.inbox.fail(err)
		}
		wake(l.apply.committed)
	}
	return l, nil
}

// foundState gives a founder the state that the founding record says: entry 1
// of term 1, applied, with the founders as voters. It is the same on each. The
// one node of a cluster that was restored or recovered gets its name here.
func (s *Store) foundState(node nodeFile) error {
	made := false
	err := s.state.update(1, func(tx *bbolt.Tx) error {
		unnamed, err := ownIn(tx).unnamed(node.Member)
		if err != nil {
			return err
		}
		if unnamed {
			made = true
			f := s.founder(node.Member)
			return ownIn(tx).putMember(Member{ID: f.Member, Incarnation: f.Incarnation, Name: f.Name, RaftAddr: f.RaftAddr, HTTPAddr: f.HTTPAddr})
		}
		if index, _ := ownIn(tx).applied(); index > 0 || node.Founding == nil {
			return nil
		}
		made = true
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		return o.found(node.Founding)
	})
	if err != nil || !made {
		return err
	}
	_, err = s.state.checkpoint()
	return err
}

func (o own) found(founding *Founding) error {
	conf := &raftpb.ConfState{}
	for _, f := range founding.Founders {
		conf.Voters = append(conf.Voters, f.Member)
		m := Member{ID: f.Member, Incarnation: f.Incarnation, Name: f.Name, RaftAddr: f.RaftAddr, HTTPAddr: f.HTTPAddr}
		if err := o.putMember(m); err != nil {
			return err
		}
	}
	if err := o.setConf(conf); err != nil {
		return err
	}
	if err := o.setCluster(clusterInfo{ID: founding.Cluster, Predecessor: founding.Predecessor}); err != nil {
		return err
	}
	return o.setApplied(foundingIndex, 1)
}

// metadata is that of the state as it is.
func (s *Store) metadata() (meta *raftpb.SnapshotMetadata, err error) {
	err = s.state.view(func(tx *bbolt.Tx) (err error) {
		meta, err = ownIn(tx).metadata()
		return err
	})
	return meta, err
}

// run takes part in the cluster until ctx ends.
func (l *loop) run(ctx context.Context) error {
	stop := make(chan struct{})
	var stages sync.WaitGroup
	defer stages.Wait()
	defer close(stop)
	l.connect(stop)
	stages.Go(func() { l.append.run(stop) })
	stages.Go(func() { l.apply.run(stop) })
	stages.Go(func() { l.keep.run(stop) })
	stages.Go(func() { l.watch(stop) })

	tick := time.NewTicker(l.s.cfg.TickInterval)
	defer tick.Stop()
	if err := l.begin(); err != nil {
		return err
	}
	for {
		if err := l.turn(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.tick()
		case <-l.s.inbox.ready:
		}
	}
}

// connect lets the stages call each other across goroutines.
func (l *loop) connect(stop <-chan struct{}) {
	l.append.install = func(in *incomingSnapshot) error {
		done := make(chan error, 1)
		l.apply.queue.push(applyTask{snapshot: in, done: done})
		select {
		case err := <-done:
			return err
		case <-stop:
			return ErrStopped
		}
	}
	l.apply.confChange = func(cc *raftpb.ConfChangeV2) (*raftpb.ConfState, error) {
		done := make(chan *raftpb.ConfState, 1)
		l.s.inbox.call(func(l *loop) { done <- l.rn.ApplyConfChange(cc) })
		select {
		case conf := <-done:
			return conf, nil
		case <-stop:
			return nil, ErrStopped
		}
	}
}

// begin lets a cluster of one elect itself: there is no one to wait for.
func (l *loop) begin() error {
	voters := l.rn.Status().Config.Voters.IDs()
	if _, votes := voters[l.self]; votes && len(voters) == 1 {
		return l.rn.Campaign()
	}
	return nil
}

// turn handles what has come in, and everything that follows from it.
func (l *loop) turn() error {
	in := l.s.inbox.take()
	if in.fatal != nil {
		return in.fatal
	}
	l.respond(in.responses)
	l.appends -= in.appends
	l.applies -= in.applies
	l.installs = l.installs && l.appends > 0
	if in.applied != nil {
		l.applied = *in.applied
	}
	l.changed(in.nonces)
	for _, r := range in.messages {
		l.lastHeard[r.from] = r.at
		for _, m := range r.msgs {
			if err := l.step(m); err != nil {
				return err
			}
		}
	}
	for _, call := range in.calls {
		call(l)
	}
	l.queued = append(l.queued, in.proposals...)
	if in.reads != nil {
		l.round.queued = append(l.round.queued, in.reads)
	}
	if err := l.ready(); err != nil {
		return err
	}
	l.propose()
	l.ask()
	if err := l.ready(); err != nil {
		return err
	}
	l.release()
	l.publish()
	if l.applied.removed {
		return ErrRemoved
	}
	return nil
}

// ready hands what raft has ready to the stages and to the transport.
func (l *loop) ready() error {
	for l.rn.HasReady() {
		rd := l.rn.Ready()
		var out []*raftpb.Message
		var toAppend, toApply *raftpb.Message
		for _, m := range rd.Messages {
			switch {
			case m.GetTo() == raft.LocalAppendThread:
				toAppend = m
			case m.GetTo() == raft.LocalApplyThread:
				toApply = m
			case m.GetTo() == l.self:
			case m.GetType() == raftpb.MessageType_MsgSnap:
				l.sendSnapshot(m)
			default:
				out = append(out, m)
			}
		}
		l.send(out) // before this node syncs: the others do the same meanwhile
		l.answered(rd.ReadStates)
		if toApply != nil {
			if err := l.toApply(toApply); err != nil {
				return err
			}
		}
		if toAppend != nil {
			if err := l.toAppend(toAppend); err != nil {
				return err
			}
		}
		l.ask()
	}
	return nil
}

func (l *loop) send(msgs []*raftpb.Message) {
	if t := l.s.cfg.Transport; t != nil && len(msgs) > 0 && !l.muted {
		t.Send(msgs)
	}
}

// What is small, while a stage is idle, the loop does itself: it saves waking
// the stage and being woken by it, which for one caller is most of the time.
const (
	inlineEntries = 2
	inlineBytes   = 4 << 10
)

func small(entries []*raftpb.Entry) bool {
	return len(entries) <= inlineEntries && entryBytes(entries) <= inlineBytes
}

// toAppend gives a task to the append stage, or does it.
func (l *loop) toAppend(m *raftpb.Message) error {
	t := appendTask{msg: m}
	if m.Snapshot != nil {
		t.snapshot = l.incoming
		l.incoming = nil
		if index := m.GetSnapshot().GetMetadata().GetIndex(); t.snapshot == nil || t.snapshot.index != index {
			return fmt.Errorf("raft takes a snapshot of entry %d that was not received", index)
		}
		l.installs = true
	}
	if l.appends > 0 || t.snapshot != nil || !small(m.Entries) {
		l.appends++
		l.append.queue.push(t)
		return nil
	}
	out, back, err := l.append.do([]appendTask{t})
	if err != nil {
		return err
	}
	l.send(out)
	l.respond(back)
	return nil
}

// toApply gives a task to the apply stage, or does it.
func (l *loop) toApply(m *raftpb.Message) error {
	if l.applies > 0 || l.installs || !small(m.Entries) || !normal(m.Entries) {
		l.applies++
		l.apply.queue.push(applyTask{msg: m})
		return nil
	}
	l.apply.mu.Lock()
	_, err := l.apply.apply(m.Entries)
	l.applied = l.apply.progress
	l.apply.mu.Unlock()
	if err != nil {
		return err
	}
	l.respond(m.Responses)
	return nil
}

func normal(entries []*raftpb.Entry) bool {
	for _, e := range entries {
		if e.GetType() != raftpb.EntryNormal {
			return false
		}
	}
	return true
}

// respond tells raft what its stages have done.
func (l *loop) respond(msgs []*raftpb.Message) {
	for _, m := range msgs {
		_ = l.rn.Step(m) // of a term that has passed it is refused
	}
}

// tick does what is due now and then.
func (l *loop) tick() {
	l.ticks++
	if !l.muted {
		l.rn.Tick()
	}
	l.watchDisk()
	l.expire(l.now())
	l.promote()
	l.s.cfg.Metrics.Queued(len(l.queued), int(l.s.pendingCommands.Load()))
}

// stallElections is how many election timeouts a sync may take: a disk that is
// merely busy, with others' data, say, has no better successor.
const stallElections = 5

func (l *loop) stallLimit() time.Duration {
	return stallElections * time.Duration(l.s.cfg.ElectionTicks) * l.s.cfg.TickInterval
}

// watchDisk makes a leader whose disk stalls hand over: the others can still
// commit, but nothing would be applied here, nor answered. Where no one takes
// over within an election timeout it falls silent, so that they elect another.
func (l *loop) watchDisk() {
	took := l.append.stalledFor(l.now())
	if took < l.stallLimit() {
		l.stalled, l.muted = 0, false
		return
	}
	if l.stalled == 0 {
		l.stalled = max(1, l.ticks)
		if to := l.successor(); l.leads() && to != 0 {
			l.rn.TransferLeader(to)
		}
	}
	l.muted = l.leads() && l.ticks-l.stalled >= uint64(l.s.cfg.ElectionTicks) && len(l.applied.members) > 1
}

// watch reports a disk that stalls, and that this node does not lead while it
// does: the loop itself may be in that sync, and so be silent to the others.
func (l *loop) watch(stop <-chan struct{}) {
	tick := time.NewTicker(l.s.cfg.TickInterval)
	defer tick.Stop()
	for stalled := false; ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		took := l.append.stalledFor(time.Now())
		switch now := took >= l.stallLimit(); {
		case now && !stalled:
			stalled = true
			l.s.cfg.Metrics.DiskStalled(took)
			l.s.log.Error("the disk stalls: a sync of the log does not return", zap.Duration("since", took))
			l.s.showStalled()
		case !now && stalled:
			stalled = false
			l.s.log.Info("the disk answers again")
		}
	}
}

// successor is the voter that is furthest, of those that were heard lately.
func (l *loop) successor() uint64 {
	best, match := uint64(0), uint64(0)
	l.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id != l.self && !p.IsLearner && p.RecentActive && (best == 0 || p.Match > match) {
			best, match = id, p.Match
		}
	})
	return best
}

// on runs fn in the loop and waits for it.
func (s *Store) on(ctx context.Context, fn func(*loop)) error {
	ran := make(chan struct{})
	s.inbox.call(func(l *loop) { fn(l); close(ran) })
	select {
	case <-ran:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		select {
		case <-ran:
			return nil
		default:
			return ErrStopped
		}
	}
}

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

// publish shows what has changed to Status, Leadership and Changed.
func (l *loop) publish() {
	st := l.rn.BasicStatus()
	n := seen{
		term: st.GetTerm(), leader: st.Lead, commit: st.GetCommit(), applied: l.applied.index,
		leading: st.RaftState == raft.StateLeader, members: l.applied.members,
	}
	if n.leading && l.leadsIn != n.term {
		l.leadsIn, l.leadsSince = n.term, l.now()
	}
	// A leader that has not applied an entry of its own term is not yet one to
	// its users: its state may lack what was acknowledged before.
	n.leading = n.leading && l.applied.term == n.term && !l.muted
	l.s.show(n)
}

// fail ends everything that waits.
func (l *loop) fail(err error) {
	l.s.finishAll(l.s.pending.takeIf(func(*batch) bool { return true }), unknown(err))
	in := l.s.inbox.take()
	for _, p := range append(l.queued, in.proposals...) {
		l.s.finish(p, outcome{err: notApplied(err)})
	}
	l.queued = nil
	l.changing.end(unknown(err))
	if in.reads != nil {
		in.reads.end(err)
	}
	l.round.fail(err)
	if l.incoming != nil {
		l.incoming.done <- err
	}
}
