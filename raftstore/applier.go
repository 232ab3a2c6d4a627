package raftstore

import (
	"encoding/json"
	"fmt"
	"maps"
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
	committed  chan struct{} // holds a token when someone else has committed

	mu sync.Mutex // guards the fields below, and calls of the state machines
	progress
	told     uint64   // index that the state machines know to be committed
	commits  uint64   // of the state, when a checkpoint was last asked for
	since    work     // done since the last checkpoint was asked for
	envelope envelope // scratch
	cmds     [][]byte // scratch
}

// progress is how far the state is.
type progress struct {
	index, term uint64
	members     map[uint64]Member // never changed, only replaced
	removed     bool              // this node is no member any more
}

// work is what a checkpoint would make durable.
type work struct {
	entries, bytes uint64
}

// maxCheckpointTransactions bounds the transactions between two checkpoints:
// bbolt goes over all of them at the beginning of each.
const maxCheckpointTransactions = 1024

// applyTask is entries to apply, or a snapshot to install.
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
		case <-a.committed:
			a.mu.Lock()
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
			m := tasks[n].msg
			size += entryBytes(m.Entries)
			entries = append(entries, m.Entries...)
			back = append(back, m.Responses...)
			n++
		}
		tasks = tasks[n:]
		nonces, err := a.apply(entries)
		if err != nil {
			return err
		}
		a.report(n, back, nonces)
	}
	return nil
}

// report tells the loop how far the state is.
func (a *applier) report(tasks int, back []*raftpb.Message, nonces []uint64) {
	p := a.progress
	a.s.inbox.put(func() {
		a.s.inbox.applies += tasks
		a.s.inbox.responses = append(a.s.inbox.responses, back...)
		a.s.inbox.nonces = append(a.s.inbox.nonces, nonces...)
		a.s.inbox.applied = &p
	})
}

// apply applies entries; a membership change gets a transaction of its own, for
// raft must have taken it before anything that follows. It returns the nonces
// of the changes.
func (a *applier) apply(entries []*raftpb.Entry) ([]uint64, error) {
	var nonces []uint64
	for len(entries) > 0 {
		n := 0
		for n < len(entries) && entries[n].GetType() == raftpb.EntryNormal {
			n++
		}
		var err error
		if n == 0 {
			n = 1
			var nonce uint64
			if nonce, err = a.applyChange(entries[0]); nonce != 0 {
				nonces = append(nonces, nonce)
			}
		} else {
			err = a.applyNormal(entries[:n])
		}
		if err != nil {
			return nil, fmt.Errorf("apply: %w", err)
		}
		entries = entries[n:]
	}
	return nonces, nil
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
	// How many commands there are shows only when they are decoded; their bytes say
	// as much for what update is to bound.
	size := max(len(entries), int(entryBytes(entries)/256))
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

// advance is called when a transaction is committed.
func (a *applier) advance(last *raftpb.Entry, entries, bytes uint64) {
	a.index, a.term = last.GetIndex(), last.GetTerm()
	a.since.entries += entries
	a.since.bytes += bytes
	commits := a.s.state.write.commits.Load()
	if c := a.s.cfg; commits-a.commits >= maxCheckpointTransactions || a.since.entries >= c.SnapshotEntries || a.since.bytes >= c.SnapshotBytes {
		a.since, a.commits = work{}, commits
		a.due()
	}
	a.tell()
	// What was handed to a former leader and is not in the log by now was
	// probably lost with it. Probably: the outcome is unknown.
	lost := a.s.pending.takeIf(func(b *batch) bool { return b.term < a.term })
	a.s.finishAll(lost, unknown(errLeaderChanged))
}

// tell says to the state machines what is committed since they last heard; mu is
// held. While a transaction is open whoever commits it wakes the stage.
func (a *applier) tell() {
	if a.told == a.index || a.s.state.write.open.Load() {
		return
	}
	a.told = a.index
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
		machine, known := a.s.cfg.StateMachines[name]
		if !known {
			return nil, fmt.Errorf("a command for state machine %q, which this node does not have: is it older than the others?", name)
		}
		results, err := machine.Apply(tx, e.GetTerm(), e.GetIndex(), a.cmds)
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

// memberChange travels as the context of a configuration change.
type memberChange struct {
	Nonce  uint64  `json:"nonce"`
	Put    *Member `json:"put,omitempty"`
	Remove uint64  `json:"remove,omitempty"`
}

func (a *applier) applyChange(e *raftpb.Entry) (nonce uint64, err error) {
	if e.GetType() == raftpb.EntryConfChange {
		return 0, fmt.Errorf("entry %d: a configuration change of the old kind", e.GetIndex())
	}
	cc := &raftpb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return 0, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	var change memberChange
	if len(cc.GetContext()) > 0 {
		if err := json.Unmarshal(cc.GetContext(), &change); err != nil {
			return 0, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
	}
	conf, err := a.confChange(cc)
	if err != nil {
		return 0, err
	}
	members := maps.Clone(a.members)
	old, had := members[change.Remove]
	if err := a.s.state.update(1, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		if err := o.setConf(conf); err != nil {
			return err
		}
		if had {
			delete(members, old.ID)
			if err := o.removeMember(old); err != nil {
				return err
			}
		}
		if change.Put != nil {
			members[change.Put.ID] = *change.Put
			if err := o.putMember(*change.Put); err != nil {
				return err
			}
		}
		return o.setApplied(e.GetIndex(), e.GetTerm())
	}); err != nil {
		return 0, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	a.members = members
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
	return change.Nonce, nil
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
