package raftstore

import (
	"encoding/json"
	"fmt"
	"maps"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// maxBehind bounds how many commands one transaction applies.
const maxBehind = 8192

// apply applies committed entries in one synced transaction, and then answers
// who proposed them here.
func (l *loop) apply(entries []*raftpb.Entry) error {
	for len(entries) > 0 {
		n := min(len(entries), maxBehind)
		if err := l.applyBatch(entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

type answer struct {
	p *proposal
	o outcome
}

func (l *loop) applyBatch(entries []*raftpb.Entry) error {
	last := entries[len(entries)-1]
	var answers []answer
	var done []func()
	members := maps.Clone(l.members)
	err := l.s.state.update(func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		for _, e := range entries {
			switch e.GetType() {
			case raftpb.EntryType_EntryNormal:
				a, err := l.applyEntry(tx, o, e)
				if err != nil {
					return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
				}
				answers = append(answers, a...)
			default:
				d, err := l.applyChange(o, e, members)
				if err != nil {
					return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
				}
				done = append(done, d)
			}
		}
		return o.setApplied(last.GetIndex(), last.GetTerm())
	})
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	l.applied, l.appliedTerm, l.members = last.GetIndex(), last.GetTerm(), members
	for _, d := range done {
		d()
	}
	for _, name := range l.s.names {
		l.s.cfg.StateMachines[name].Committed(l.applied)
	}
	l.publish()
	for _, a := range answers {
		l.finish(a.p, a.o)
	}
	// What was handed to a former leader and is not in the log by now was
	// probably lost with it. Probably: the outcome is unknown.
	for seq, p := range l.waiting {
		if p.term < l.appliedTerm {
			delete(l.waiting, seq)
			l.finish(p, outcome{err: unknown(errLeaderChanged)})
		}
	}
	return nil
}

func (l *loop) applyEntry(tx *bbolt.Tx, o own, e *raftpb.Entry) ([]answer, error) {
	if len(e.GetData()) == 0 {
		return nil, nil // a new leader's first entry
	}
	env, err := decodeEnvelope(e.GetData())
	if err != nil {
		return nil, err
	}
	mine := env.proposer == l.self && env.boot == l.s.node.Boot
	var answers []answer
	reply := func(i int, result any, err error) {
		seq := env.first + uint64(i)
		if p := l.waiting[seq]; mine && p != nil {
			delete(l.waiting, seq)
			answers = append(answers, answer{p, outcome{result, e.GetIndex(), err}})
		}
	}
	fresh, err := o.fresh(env)
	if err != nil {
		return nil, err
	}
	if !fresh {
		for i := range env.commands {
			reply(i, nil, notApplied(errOutOfOrder))
		}
		return answers, nil
	}
	for i := 0; i < len(env.commands); {
		j := i
		var cmds [][]byte
		name := env.commands[i].machine
		for ; j < len(env.commands) && env.commands[j].machine == name; j++ {
			cmds = append(cmds, env.commands[j].command)
		}
		machine, known := l.s.cfg.StateMachines[name]
		if !known {
			return nil, fmt.Errorf("a command for state machine %q, which this node does not have: is it older than the others?", name)
		}
		results, err := machine.Apply(tx, e.GetTerm(), e.GetIndex(), cmds)
		if err != nil {
			return nil, fmt.Errorf("state machine %s: %w", name, err)
		}
		if len(results) != len(cmds) {
			return nil, fmt.Errorf("state machine %s gave %d results for %d commands", name, len(results), len(cmds))
		}
		for k, r := range results {
			reply(i+k, r, nil)
		}
		i = j
	}
	return answers, nil
}

// memberChange travels as the context of a configuration change.
type memberChange struct {
	Nonce  uint64  `json:"nonce"`
	Put    *Member `json:"put,omitempty"`
	Remove uint64  `json:"remove,omitempty"`
}

// applyChange applies a configuration change, and returns what is to be done
// once it is durable.
func (l *loop) applyChange(o own, e *raftpb.Entry, members map[uint64]Member) (func(), error) {
	cc := &raftpb.ConfChangeV2{}
	if e.GetType() == raftpb.EntryType_EntryConfChange {
		return nil, fmt.Errorf("a configuration change of the old kind")
	}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, err
	}
	conf := l.rn.ApplyConfChange(cc)
	if err := o.setConf(conf); err != nil {
		return nil, err
	}
	if len(cc.GetContext()) == 0 {
		return func() {}, nil
	}
	var change memberChange
	if err := json.Unmarshal(cc.GetContext(), &change); err != nil {
		return nil, err
	}
	old, had := members[change.Remove]
	if had {
		delete(members, change.Remove)
		if err := o.removeMember(old); err != nil {
			return nil, err
		}
	}
	if change.Put != nil {
		members[change.Put.ID] = *change.Put
		if err := o.putMember(*change.Put); err != nil {
			return nil, err
		}
	}
	return func() {
		t := l.s.cfg.Transport
		if had && t != nil {
			t.RemovePeer(old.ID)
		}
		if m := change.Put; m != nil && t != nil && m.ID != l.self {
			t.SetPeer(m.ID, m.Incarnation, m.RaftAddr)
		}
		if change.Remove == l.self {
			l.removed = true
		}
		if c := l.changes[change.Nonce]; c != nil {
			delete(l.changes, change.Nonce)
			c <- nil
		}
	}, nil
}
