package raftstore

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// proposal is one command on its way.
type proposal struct {
	ctx     context.Context
	routed  routed
	came    time.Time
	state   atomic.Int32 // queued, then taken or abandoned
	outcome chan outcome // capacity 1
}

const (
	proposalQueued int32 = iota
	proposalTaken
	proposalAbandoned // its caller left before it was handed to raft
)

type outcome struct {
	result any
	index  uint64
	err    error
}

// batch is the commands of one entry that wait for their results.
type batch struct {
	first     uint64 // sequence number of its first command
	term      uint64 // in which it was handed to raft
	tick      uint64 // when it was
	deadline  time.Time
	proposals []*proposal
}

// pending is what was handed to raft and is not applied yet, in order of the
// sequence numbers. The loop adds, the apply stage takes.
type pending struct {
	mu      sync.Mutex // guards batches
	batches []*batch
}

func (p *pending) add(b *batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batches = append(p.batches, b)
}

// arrived takes the batch that begins with first, and those before it: the state
// machine refuses them from now on.
func (p *pending) arrived(first uint64) (b *batch, overtaken []*batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.batches) > 0 && p.batches[0].first <= first {
		if p.batches[0].first == first {
			b = p.batches[0]
		} else {
			overtaken = append(overtaken, p.batches[0])
		}
		p.batches[0] = nil
		p.batches = p.batches[1:]
	}
	return b, overtaken
}

// takeIf takes the batches for which is says so.
func (p *pending) takeIf(is func(*batch) bool) []*batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	var taken []*batch
	kept := p.batches[:0]
	for _, b := range p.batches {
		if is(b) {
			taken = append(taken, b)
		} else {
			kept = append(kept, b)
		}
	}
	clear(p.batches[len(kept):])
	p.batches = kept
	return taken
}

// inFlight counts the batches that were handed to raft in term, at tick since or
// later.
func (p *pending) inFlight(term, since uint64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, b := range p.batches {
		if b.term == term && b.tick >= since {
			n++
		}
	}
	return n
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
// be applied. Where too many commands wait the answer is ErrOverloaded, at once.
func (m *Machine) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	s := m.s
	if _, known := s.cfg.StateMachines[m.name]; !known {
		return nil, 0, notApplied(fmt.Errorf("there is no state machine %q", m.name))
	}
	if s.acceptedVersions().of(m.name) == 0 {
		return nil, 0, m.Accepts(1)
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
	select {
	case <-s.formed:
	default:
		return nil, 0, notApplied(fmt.Errorf("%w: it is in no cluster yet", ErrNoLeader))
	}
	select {
	case <-s.stopped:
		return nil, 0, notApplied(ErrStopped)
	default:
	}
	if !s.admit(len(cmd)) {
		return nil, 0, notApplied(ErrOverloaded)
	}
	// The loop counts it out again, whatever becomes of it.
	p := &proposal{ctx: ctx, routed: routed{m.name, cmd}, came: time.Now(), outcome: make(chan outcome, 1)}
	s.inbox.put(func() { s.inbox.proposals = append(s.inbox.proposals, p) })
	select {
	case o := <-p.outcome:
		return o.result, o.index, o.err
	case <-ctx.Done():
		return nil, 0, p.leave(ctx.Err())
	case <-s.stopped:
		select {
		case o := <-p.outcome:
			return o.result, o.index, o.err
		default:
			return nil, 0, p.leave(ErrStopped)
		}
	}
}

// leave is the error of a caller that does not wait any longer.
func (p *proposal) leave(err error) error {
	if p.state.CompareAndSwap(proposalQueued, proposalAbandoned) {
		return notApplied(err)
	}
	return unknown(err)
}

// admit counts a command in, if there is room for it.
func (s *Store) admit(size int) bool {
	if s.pendingCommands.Add(1) > int64(s.cfg.MaxPending) {
		s.pendingCommands.Add(-1)
		return false
	}
	if s.pendingBytes.Add(int64(size)) > int64(s.cfg.MaxPendingBytes) {
		s.pendingBytes.Add(-int64(size))
		s.pendingCommands.Add(-1)
		return false
	}
	return true
}

func (s *Store) finish(p *proposal, o outcome) {
	s.pendingCommands.Add(-1)
	s.pendingBytes.Add(-int64(len(p.routed.command)))
	p.outcome <- o
}

func (s *Store) finishAll(batches []*batch, err error) {
	for _, b := range batches {
		for _, p := range b.proposals {
			s.finish(p, outcome{err: err})
		}
	}
}

const (
	// maxInFlight is how many own entries are on their way at once. Fewer leave
	// the disks idle, more make the 99th percentile worse.
	maxInFlight = 4

	// fewCommands wait for what is on its way, and come together then: the log
	// would take them one after the other anyhow, at the price of a sync each.
	fewCommands = 32

	// lostTicks is after how many ticks an entry is taken for lost, as with the
	// connection to the leader, and does not count as on its way any more.
	lostTicks = 4
)

// propose hands what is queued to raft, many commands in one entry.
func (l *loop) propose() {
	for l.mayPropose() {
		b, commands := l.nextBatch()
		if len(b.proposals) == 0 {
			continue
		}
		e := envelope{proposer: l.self, boot: l.boot, first: b.first, commands: commands}
		l.next += uint64(len(commands))
		// It is there before raft has it: a cluster of one applies at once.
		l.s.pending.add(b)
		if err := l.rn.Propose(e.encode()); err != nil {
			refused := l.s.pending.takeIf(func(other *batch) bool { return other == b })
			l.s.finishAll(refused, notApplied(l.refusal(err)))
		}
	}
}

// mayPropose says whether what is queued is to be handed to raft now.
func (l *loop) mayPropose() bool {
	if len(l.queued) == 0 {
		return false
	}
	on := l.s.pending.inFlight(l.rn.BasicStatus().GetTerm(), l.ticks-min(l.ticks, lostTicks))
	return on == 0 || on < maxInFlight && len(l.queued) >= fewCommands
}

// nextBatch takes from the queue what goes into one entry.
func (l *loop) nextBatch() (*batch, []routed) {
	b := &batch{first: l.next, term: l.rn.BasicStatus().GetTerm(), tick: l.ticks}
	var commands []routed
	size, n := 0, 0
	for _, p := range l.queued {
		size += len(p.routed.command)
		if n == maxEnvelopeCount || n > 0 && size > maxEnvelopeBytes/4 {
			break
		}
		n++
		if err := p.ctx.Err(); err != nil || !p.state.CompareAndSwap(proposalQueued, proposalTaken) {
			l.s.finish(p, outcome{err: notApplied(cmp.Or(err, context.Canceled))})
			continue
		}
		b.proposals = append(b.proposals, p)
		commands = append(commands, p.routed)
		if d, ok := p.ctx.Deadline(); ok && d.After(b.deadline) {
			b.deadline = d
		}
	}
	clear(l.queued[:n])
	l.queued = l.queued[n:]
	if len(l.queued) == 0 {
		l.queued = nil
	}
	return b, commands
}

// refusal says why raft has not taken an entry.
func (l *loop) refusal(err error) error {
	switch st := l.rn.BasicStatus(); {
	case st.Lead == 0:
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	case st.LeadTransferee != 0:
		return fmt.Errorf("%w: leadership is being handed over", ErrNoLeader)
	default:
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
}

// expire gives up on entries whose callers have all left.
func (l *loop) expire(now time.Time) {
	late := l.s.pending.takeIf(func(b *batch) bool { return now.After(b.deadline) })
	l.s.finishAll(late, unknown(context.DeadlineExceeded))
}
