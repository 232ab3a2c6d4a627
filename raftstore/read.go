package raftstore

import (
	"context"
	"encoding/binary"
	"slices"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
)

// readers are all reads that wait for one answer to ReadIndex. They cost no
// memory each: one channel wakes them all.
type readers struct {
	index uint64
	err   error         // set before done is closed
	done  chan struct{} // closed when index is applied here, or it failed
}

func (r *readers) end(err error) {
	r.err = err
	close(r.done)
}

// round is one ReadIndex: one is outstanding at a time, for all reads that came
// before it was asked. Each has a context of its own, since an answer to an
// earlier question would be stale.
type round struct {
	queued  []*readers // came since asking
	asked   []*readers
	number  uint64
	asking  uint64     // tick at which it was asked
	granted []*readers // wait for their index
}

// retryTicks is when a round that was lost, as at a change of leader, is asked
// again.
const retryTicks = 3

// Read calls fn with a transaction that sees every write that was acknowledged
// anywhere before Read was called. fn may run on any node, the leader or not.
func (s *Store) Read(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := s.Barrier(ctx); err != nil {
		return err
	}
	return s.state.view(fn)
}

// ReadStale calls fn with what this node has applied, which may lag.
func (s *Store) ReadStale(fn func(*bbolt.Tx) error) error { return s.state.view(fn) }

// Barrier waits until this node has applied every write that was acknowledged
// anywhere before it was called.
func (s *Store) Barrier(ctx context.Context) error {
	select {
	case <-s.formed:
	default:
		return ErrNoLeader
	}
	r := s.joinReaders()
	if r == nil {
		return ErrStopped
	}
	select {
	case <-r.done: // also where the store stops: a channel less to wait on is much with many readers
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joinReaders returns the readers that are asked for next, nil where the store has
// stopped.
func (s *Store) joinReaders() *readers {
	s.inbox.mu.Lock()
	if s.inbox.ended {
		s.inbox.mu.Unlock()
		return nil
	}
	r := s.inbox.reads
	first := r == nil
	if first {
		r = &readers{done: make(chan struct{})}
		s.inbox.reads = r
	}
	s.inbox.mu.Unlock()
	if first {
		wake(s.inbox.ready)
	}
	return r
}

// endReads ends those that wait for a loop which will not take them, and lets none
// begin any more.
func (s *Store) endReads() {
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	s.inbox.ended = true
	if r := s.inbox.reads; r != nil {
		s.inbox.reads = nil
		r.end(ErrStopped)
	}
}

// ask begins a round if there is something to ask and none is outstanding, or
// the outstanding one seems lost.
func (l *loop) ask() {
	r := &l.round
	if l.behind() {
		return // until its entry is applied
	}
	if len(r.asked) > 0 {
		if l.ticks-r.asking < retryTicks {
			return
		}
	} else if len(r.queued) == 0 {
		return
	}
	r.asked, r.queued = append(r.asked, r.queued...), nil
	r.number++
	r.asking = l.ticks
	l.rn.ReadIndex(l.roundContext())
}

// behind says whether this node leads without having applied an entry of its
// own term. What it knows to be committed may then be less than what was
// acknowledged, which raft minds (thesis, 6.4) except where there is one voter:
// a node that starts again would answer from before its last writes.
func (l *loop) behind() bool {
	st := l.rn.BasicStatus()
	return st.RaftState == raft.StateLeader && l.applied.term != st.GetTerm()
}

func (l *loop) roundContext() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), l.self)
	b = binary.BigEndian.AppendUint64(b, l.boot)
	return binary.BigEndian.AppendUint64(b, l.round.number)
}

func (l *loop) answered(states []raft.ReadState) {
	for _, st := range states {
		if len(l.round.asked) == 0 || string(st.RequestCtx) != string(l.roundContext()) {
			continue
		}
		for _, r := range l.round.asked {
			r.index = st.Index
		}
		l.round.granted = append(l.round.granted, l.round.asked...)
		l.round.asked = nil
	}
}

// release lets the reads go whose index is applied.
func (l *loop) release() {
	rest := l.round.granted[:0]
	for _, r := range l.round.granted {
		if r.index <= l.applied.index {
			r.end(nil)
		} else {
			rest = append(rest, r)
		}
	}
	clear(l.round.granted[len(rest):])
	l.round.granted = rest
}

func (r *round) fail(err error) {
	for _, w := range slices.Concat(r.asked, r.granted, r.queued) {
		w.end(err)
	}
	*r = round{number: r.number}
}
