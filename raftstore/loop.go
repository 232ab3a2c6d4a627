package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// loop owns raft. Everything that touches it runs in one goroutine: a turn
// takes what has come in, lets raft think, and hands what that gives to the
// stages. It waits for no disk but for work that is small.
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
	rest     rest
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
	recorded   uint64    // tick at which a record of this program was last proposed
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
		if l.applied.accepted, err = o.accepted(); err != nil {
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
	s.state.behind.Store(false)
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
		due: func() { wake(l.keep.due) }, toTell: make(chan struct{}, 1), told: l.applied.index,
	}
	s.state.onFailure(s.inbox.fail)
	return l, nil
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
	l.changed(in.changes)
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
	if err := l.ready(); err != nil {
		return err
	}
	l.propose()
	l.ask()
	if err := l.ready(); err != nil {
		return err
	}
	l.release()
	l.gather()
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
	l.apply.tell()
	l.applied = l.apply.progress
	l.apply.mu.Unlock()
	if err != nil {
		return err
	}
	l.respond(m.Responses)
	if l.s.state.write.full.Load() {
		l.applies++ // what comes is applied after it: the loop is not to wait for a commit
		l.apply.queue.push(applyTask{})
	}
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
	l.record()
	l.restUp()
	l.s.cfg.Metrics.Queued(len(l.queued), int(l.s.pendingCommands.Load()))
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

// publish shows what has changed to Status, Leadership and Changed.
func (l *loop) publish() {
	st := l.rn.BasicStatus()
	n := seen{
		term: st.GetTerm(), leader: st.Lead, commit: st.GetCommit(), applied: l.applied.index,
		leading: st.RaftState == raft.StateLeader, members: l.applied.members, accepted: l.applied.accepted, replaced: l.applied.replaced,
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
	l.s.reads.end()
	l.round.fail(err)
	if l.incoming != nil {
		l.incoming.done <- err
	}
}
