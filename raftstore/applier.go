package raftstore

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// applier is the stage that applies committed entries: whole batches in one
// transaction, whose callers are answered together. It alone calls the state
// machines.
type applier struct {
	s     *Store
	self  uint64
	boot  uint64
	queue *queue[applyTask]
	// confChange hands a membership change to raft, which the loop owns.
	confChange func(*raftpb.ConfChangeV2) (*raftpb.ConfState, error)
	due        func()        // asks for a checkpoint
	toTell     chan struct{} // holds a token when the state machines may be told again

	mu sync.Mutex // guards the fields below, and calls of the state machines
	progress
	told     uint64 // index that the state machines know to be committed
	toldAt   time.Time
	telling  bool     // toTell gets a token
	commits  uint64   // of the state, when a checkpoint was last asked for
	since    work     // done since the last checkpoint was asked for
	envelope envelope // scratch
	cmds     [][]byte // scratch
	own      bool     // a command of the Store itself was applied in this entry
}

// progress is how far the state is.
type progress struct {
	index, term uint64
	members     map[uint64]Member // never changed, only replaced
	accepted    Versions          // never changed, only replaced
	replaced    uint64            // how often these two were
	removed     bool              // this node is no member any more
}

// work is what a checkpoint would make durable.
type work struct {
	entries, bytes uint64
}

// maxCheckpointTransactions bounds the transactions between two checkpoints:
// bbolt goes over all of them at the beginning of each.
const maxCheckpointTransactions = 1024

// applyTask is entries to apply, or a snapshot to install. An empty one is there
// for what is done after every task.
type applyTask struct {
	msg      *raftpb.Message
	snapshot *incomingSnapshot
	done     chan error // of a snapshot
}

// maxApplyBytes bounds one transaction, beyond its first task.
const maxApplyBytes = 4 << 20

func (a *applier) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-a.toTell:
			a.mu.Lock()
			a.telling = false
			a.tell()
			a.mu.Unlock()
		case <-a.queue.ready:
			if err := a.work(); err != nil {
				a.s.inbox.fail(err)
				return
			}
		}
	}
}

// work does everything that waits.
func (a *applier) work() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	tasks := a.queue.take()
	for len(tasks) > 0 {
		if t := tasks[0]; t.snapshot != nil {
			err := a.install(t.snapshot)
			t.done <- err
			if err != nil {
				return err
			}
			tasks = tasks[1:]
			continue
		}
		var entries []*raftpb.Entry
		var back []*raftpb.Message
		n, size := 0, int64(0)
		for n < len(tasks) && tasks[n].snapshot == nil && (n == 0 || size < maxApplyBytes) {
			if m := tasks[n].msg; m != nil {
				size += entryBytes(m.Entries)
				entries = append(entries, m.Entries...)
				back = append(back, m.Responses...)
			}
			n++
		}
		tasks = tasks[n:]
		changes, err := a.apply(entries)
		if err != nil {
			return err
		}
		a.tell()
		a.report(n, back, changes)
		if err := a.s.state.commitFull(); err != nil {
			return err
		}
	}
	return nil
}

// report tells the loop how far the state is.
func (a *applier) report(tasks int, back []*raftpb.Message, changes []changeDone) {
	p := a.progress
	a.s.inbox.put(func() {
		a.s.inbox.applies += tasks
		a.s.inbox.responses = append(a.s.inbox.responses, back...)
		a.s.inbox.changes = append(a.s.inbox.changes, changes...)
		a.s.inbox.applied = &p
	})
}

// apply applies entries; a membership change gets a transaction of its own, for
// raft must have taken it before anything that follows. It returns what became of
// the changes.
func (a *applier) apply(entries []*raftpb.Entry) ([]changeDone, error) {
	var changes []changeDone
	for len(entries) > 0 {
		n := 0
		for n < len(entries) && entries[n].GetType() == raftpb.EntryNormal {
			n++
		}
		var err error
		if n == 0 {
			n = 1
			var done changeDone
			if done, err = a.applyChange(entries[0]); done.nonce != 0 {
				changes = append(changes, done)
			}
		} else {
			err = a.applyNormal(entries[:n])
		}
		if err != nil {
			return nil, fmt.Errorf("apply: %w", err)
		}
		entries = entries[n:]
	}
	return changes, nil
}

// answer is what the callers of one batch get.
type answer struct {
	index   uint64
	batch   *batch
	results []any // one each; nil if none was applied
}

func (a *applier) applyNormal(entries []*raftpb.Entry) error {
	began := time.Now()
	last := entries[len(entries)-1]
	commands := 0
	var answers []answer
	var overtaken []*batch
	now := a.progress
	// How many commands there are shows only when they are decoded; their bytes say
	// as much for what update is to bound.
	size := max(len(entries), int(entryBytes(entries)/usualCommand))
	err := a.s.state.update(size, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.GetData()) == 0 {
				continue // a new leader's first entry
			}
			results, err := a.applyEntry(tx, o, e)
			if err != nil {
				return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
			}
			commands += len(a.envelope.commands)
			if a.own {
				a.own = false
				if now, err = a.agreed(o, now); err != nil {
					return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
				}
			}
			if a.envelope.proposer != a.self || a.envelope.boot != a.boot {
				continue
			}
			b, before := a.s.pending.arrived(a.envelope.first)
			overtaken = append(overtaken, before...)
			if b != nil {
				answers = append(answers, answer{e.GetIndex(), b, results})
			}
		}
		return o.setApplied(last.GetIndex(), last.GetTerm())
	})
	if err != nil {
		// They were taken from those that wait: their outcome is what a restart
		// makes of it.
		for _, an := range answers {
			overtaken = append(overtaken, an.batch)
		}
		a.s.finishAll(overtaken, unknown(ErrStopped))
		return err
	}
	a.members, a.accepted, a.replaced = now.members, now.accepted, now.replaced
	a.advance(last, uint64(len(entries)), uint64(entryBytes(entries)))
	a.s.finishAll(overtaken, notApplied(errOutOfOrder))
	for _, an := range answers {
		an.finish(a.s)
	}
	a.s.cfg.Metrics.Applied(len(entries), commands, time.Since(began))
	return nil
}

func (an *answer) finish(s *Store) {
	oldest := an.batch.proposals[0].came
	for i, p := range an.batch.proposals {
		if an.results == nil {
			s.finish(p, outcome{err: notApplied(errOutOfOrder)})
		} else {
			s.finish(p, outcome{result: an.results[i], index: an.index})
		}
	}
	s.cfg.Metrics.Answered(len(an.batch.proposals), time.Since(oldest))
}

// advance is called when entries are applied.
func (a *applier) advance(last *raftpb.Entry, entries, bytes uint64) {
	a.index, a.term = last.GetIndex(), last.GetTerm()
	a.since.entries += entries
	a.since.bytes += bytes
	commits := a.s.state.write.commits.Load()
	if c := a.s.cfg; commits-a.commits >= maxCheckpointTransactions || a.since.entries >= c.SnapshotEntries || a.since.bytes >= c.SnapshotBytes || a.s.state.write.size.Load() > a.s.state.grown.Load() {
		a.since, a.commits = work{}, commits
		a.due()
	}
	// What was handed to a former leader and is not in the log by now was
	// probably lost with it. Probably: the outcome is unknown.
	lost := a.s.pending.takeIf(func(b *batch) bool { return b.term < a.term })
	a.s.finishAll(lost, unknown(errLeaderChanged))
}

// tellEvery is how often the state machines are told what is committed: watchers
// read then, which ends the transaction that would take more.
const tellEvery = 3 * time.Millisecond

// tell says to the state machines what is committed since they last heard, now or
// when they may be told again; mu is held.
func (a *applier) tell() {
	if a.told == a.index || a.telling {
		return
	}
	now := a.s.state.write.now()
	if wait := tellEvery - now.Sub(a.toldAt); wait > 0 {
		a.telling = true
		a.s.state.write.later(wait, func() { wake(a.toTell) })
		return
	}
	a.told, a.toldAt = a.index, now
	for _, name := range a.s.names {
		a.s.cfg.StateMachines[name].Committed(a.index)
	}
}

// applyEntry returns one result for each command, or nil if the entry is not
// the next of its proposer. a.envelope is the entry's.
func (a *applier) applyEntry(tx *bbolt.Tx, o own, e *raftpb.Entry) ([]any, error) {
	env := &a.envelope
	if err := env.decode(e.GetData()); err != nil {
		return nil, err
	}
	if fresh, err := o.fresh(env); err != nil || !fresh {
		return nil, err
	}
	var all []any
	for rest := env.commands; len(rest) > 0; {
		name := rest[0].machine
		a.cmds = a.cmds[:0]
		for len(rest) > 0 && rest[0].machine == name {
			a.cmds = append(a.cmds, rest[0].command)
			rest = rest[1:]
		}
		var results []any
		var err error
		machine, known := a.s.cfg.StateMachines[name]
		switch {
		case known:
			results, err = machine.Apply(tx, e.GetTerm(), e.GetIndex(), a.cmds)
		case name == ownBucketName:
			a.own = true
			results, err = o.applyOwn(a.cmds)
		default:
			return nil, fmt.Errorf("a command for state machine %q, which this node does not have: is it older than the others?", name)
		}
		if err != nil {
			return nil, fmt.Errorf("state machine %s: %w", name, err)
		}
		if len(results) != len(a.cmds) {
			return nil, fmt.Errorf("state machine %s gave %d results for %d commands", name, len(results), len(a.cmds))
		}
		if len(results) == len(env.commands) {
			return results, nil
		}
		all = append(all, results...)
	}
	return all, nil
}

// agreed is progress with the members as they are now, and with what they accept
// of that. Where this program does not know all of it it must go no further: the
// commands that follow may be of these versions.
func (a *applier) agreed(o own, p progress) (progress, error) {
	var err error
	if p.members, err = o.members(); err != nil {
		return p, err
	}
	if p.accepted, err = o.agree(p.members); err != nil {
		return p, err
	}
	p.replaced++
	return p, a.knows(p)
}

// knows says whether this program knows what a state accepts. Of one that it has
// been removed from it need not.
func (a *applier) knows(p progress) error {
	if _, member := p.members[a.self]; !member {
		return nil
	}
	return p.accepted.Admits(a.s.cfg.programVersions())
}

// memberChange travels as the context of a configuration change.
type memberChange struct {
	Nonce  uint64  `json:"nonce"`
	Put    *Member `json:"put,omitempty"`
	Remove uint64  `json:"remove,omitempty"`
}

// changeDone is a membership change that has had its turn.
type changeDone struct {
	nonce   uint64
	refused error // it had no effect
}

func (a *applier) applyChange(e *raftpb.Entry) (done changeDone, err error) {
	if e.GetType() == raftpb.EntryConfChange {
		return done, fmt.Errorf("entry %d: a configuration change of the old kind", e.GetIndex())
	}
	cc := &raftpb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return done, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	var change memberChange
	if len(cc.GetContext()) > 0 {
		if err := json.Unmarshal(cc.GetContext(), &change); err != nil {
			return done, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
	}
	done.nonce = change.Nonce
	if m := change.Put; m != nil {
		if _, known := a.members[m.ID]; !known {
			done.refused = a.accepted.Admits(m.Versions)
		}
	}
	if done.refused != nil {
		// The members have agreed on more since it was proposed. To raft it is a change
		// of no one, as to all others, who see the same.
		change = memberChange{}
		cc.Changes = []*raftpb.ConfChangeSingle{single(raftpb.ConfChangeType_ConfChangeUpdateNode, 0)}
	}
	conf, err := a.confChange(cc)
	if err != nil {
		return done, err
	}
	old, had := a.members[change.Remove]
	var now progress
	if err := a.s.state.update(1, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		if err := o.setConf(conf); err != nil {
			return err
		}
		if had {
			if err := o.removeMember(old); err != nil {
				return err
			}
		}
		if change.Put != nil {
			if err := o.putMember(*change.Put); err != nil {
				return err
			}
		}
		if now, err = a.agreed(o, a.progress); err != nil {
			return err
		}
		return o.setApplied(e.GetIndex(), e.GetTerm())
	}); err != nil {
		return done, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	a.members, a.accepted, a.replaced = now.members, now.accepted, now.replaced
	a.removed = a.removed || change.Remove == a.self
	if t := a.s.cfg.Transport; t != nil {
		if had {
			t.RemovePeer(old.ID)
		}
		if m := change.Put; m != nil && m.ID != a.self {
			t.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
		}
	}
	a.advance(e, 1, uint64(len(e.GetData())))
	return done, nil
}

// install puts a snapshot in the place of the state.
func (a *applier) install(in *incomingSnapshot) error {
	s := a.s
	if err := s.state.install(in.path); err != nil {
		return err
	}
	before := a.members
	err := s.state.view(func(tx *bbolt.Tx) (err error) {
		o := ownIn(tx)
		a.index, a.term = o.applied()
		if a.members, err = o.members(); err != nil {
			return err
		}
		if a.accepted, err = o.accepted(); err != nil {
			return err
		}
		a.replaced++
		if err := a.knows(a.progress); err != nil {
			return err
		}
		if err := s.forgetRemoved(o); err != nil {
			return err
		}
		return s.restored(tx)
	})
	if err != nil {
		return err
	}
	if t := s.cfg.Transport; t != nil {
		for id := range before {
			if _, stays := a.members[id]; !stays && id != a.self {
				t.RemovePeer(id)
			}
		}
		s.setPeers(a.self, a.members)
	}
	a.since, a.told = work{}, a.index
	s.finishAll(s.pending.takeIf(func(*batch) bool { return true }), unknown(errSnapshot))
	a.report(0, nil, nil)
	return nil
}

// restored tells the state machines that the database is another.
func (s *Store) restored(tx *bbolt.Tx) error {
	for _, name := range s.names {
		if err := s.cfg.StateMachines[name].Restored(tx); err != nil {
			return fmt.Errorf("state machine %s: %w", name, err)
		}
	}
	return nil
}
