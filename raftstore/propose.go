package raftstore

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"
)

// proposal is one command on its way.
type proposal struct {
	ctx     context.Context
	routed  routed
	term    uint64 // in which it was handed to raft
	outcome chan outcome
}

type outcome struct {
	result any
	index  uint64
	err    error
}

// Machine is the typed end of one state machine: it proposes commands to it.
type Machine struct {
	s    *Store
	name string
}

// Machine returns the end of a state machine of Config.StateMachines. Proposals
// to another name are refused.
func (s *Store) Machine(name string) *Machine { return &Machine{s, name} }

// Read is Store.Read.
func (m *Machine) Read(ctx context.Context, fn func(*bbolt.Tx) error) error { return m.s.Read(ctx, fn) }

// ReadStale is Store.ReadStale.
func (m *Machine) ReadStale(fn func(*bbolt.Tx) error) error { return m.s.ReadStale(fn) }

// Propose replicates one command and returns what the state machine made of it
// on this node, and the index of its entry. cmd must not be changed afterwards.
// Every error is a *ProposalError: it says whether the command is known not to
// be applied.
func (m *Machine) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	s := m.s
	if _, known := s.cfg.StateMachines[m.name]; !known {
		return nil, 0, notApplied(fmt.Errorf("there is no state machine %q", m.name))
	}
	if len(cmd) > s.cfg.MaxCommandBytes {
		return nil, 0, notApplied(fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLarge, len(cmd), s.cfg.MaxCommandBytes))
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, notApplied(err)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.ProposalTimeout)
		defer cancel()
	}
	if s.pending.Add(1) > int64(s.cfg.MaxPending) {
		s.pending.Add(-1)
		return nil, 0, notApplied(ErrOverloaded)
	}
	select {
	case <-s.formed:
	default:
		s.pending.Add(-1)
		return nil, 0, notApplied(fmt.Errorf("%w: it is in no cluster yet", ErrNoLeader))
	}
	p := &proposal{ctx: ctx, routed: routed{m.name, cmd}, outcome: make(chan outcome, 1)}
	select {
	case s.proposals <- p: // the loop answers for it from here on, and counts it
	case <-s.stopped:
		s.pending.Add(-1)
		return nil, 0, notApplied(ErrStopped)
	}
	select {
	case o := <-p.outcome:
		return o.result, o.index, o.err
	case <-ctx.Done():
		return nil, 0, unknown(ctx.Err())
	case <-s.stopped:
		select {
		case o := <-p.outcome:
			return o.result, o.index, o.err
		default:
			return nil, 0, unknown(ErrStopped)
		}
	}
}

// propose takes p and everything else that is queued into one entry.
func (l *loop) propose(p *proposal) {
	batch := []*proposal{p}
	size := len(p.routed.command)
	for len(batch) < maxEnvelopeCount && size < maxEnvelopeBytes/4 {
		select {
		case q := <-l.s.proposals:
			batch = append(batch, q)
			size += len(q.routed.command)
			continue
		default:
		}
		break
	}
	e := envelope{proposer: l.self, boot: l.s.node.Boot, first: l.next}
	for _, q := range batch {
		e.commands = append(e.commands, q.routed)
	}
	l.next += uint64(len(batch))
	if err := l.rn.Propose(e.encode()); err != nil {
		for _, q := range batch {
			l.finish(q, outcome{err: notApplied(fmt.Errorf("%w: %w", ErrNoLeader, err))})
		}
		return
	}
	term := l.rn.BasicStatus().GetTerm()
	for i, q := range batch {
		q.term = term
		l.waiting[e.first+uint64(i)] = q
	}
}

func (l *loop) finish(p *proposal, o outcome) {
	l.s.pending.Add(-1)
	p.outcome <- o
}

// fail ends everything that waits.
func (l *loop) fail(err error) {
	for seq, p := range l.waiting {
		delete(l.waiting, seq)
		l.finish(p, outcome{err: err})
	}
	for nonce, c := range l.changes {
		delete(l.changes, nonce)
		c <- err
	}
	l.round.fail(ErrStopped)
}
