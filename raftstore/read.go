package raftstore

import (
	"context"
	"encoding/binary"
	"runtime"
	"sync"

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

// readQueue is where readers wait to be asked for. One group gathers while the
// loop asks for another, and does not wake it: it looks here when it has an answer.
type readQueue struct {
	mu     sync.Mutex // guards the fields below
	next   *readers   // nil while there are none
	asking bool       // a round is outstanding
	ended  bool       // reads are not taken any more
}

// join returns the readers that are asked for next, nil where the queue has ended.
// wake says that the loop does not know of them.
func (q *readQueue) join() (r *readers, wake bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return nil, false
	}
	if q.next == nil {
		q.next = &readers{done: make(chan struct{})}
		wake = !q.asking
	}
	return q.next, wake
}

// take returns those that wait, and from then on a round is outstanding, if there
// are any.
func (q *readQueue) take() *readers {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.next
	q.next, q.asking = nil, r != nil
	return r
}

// rest says that no round is outstanding, and returns whether someone waits for the
// next.
func (q *readQueue) rest() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asking = false
	return q.next != nil
}

// end ends those that wait for a loop which will not take them, and lets none begin
// any more.
func (q *readQueue) end() {
	q.mu.Lock()
	q.ended = true
	q.mu.Unlock()
	if r := q.take(); r != nil {
		r.end(ErrStopped)
	}
}

// round is one ReadIndex: one is outstanding at a time, for all reads that came
// before it was asked. Each has a context of its own, since an answer to an
// earlier question would be stale.
type round struct {
	asked    *readers // nil while none is outstanding
	answered bool     // in this turn
	number   uint64
	asking   uint64     // tick at which it was asked
	granted  []*readers // wait for their index
}

// retryTicks is when a round that was lost, as at a change of leader, is asked
// again.
const retryTicks = 3

// Read calls fn with a transaction that sees every write that was acknowledged
// anywhere before Read was called. fn may run on any node, the leader or not. What
// the transaction gives is of use until fn returns; it must not be kept.
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
	r, first := s.reads.join()
	if first {
		runtime.Gosched() // who is about to read as well comes along
		wake(s.inbox.ready)
	}
	return r
}

// ask begins a round if there is something to ask and none is outstanding, or
// the outstanding one seems lost.
func (l *loop) ask() {
	r := &l.round
	if r.answered {
		return // see gather
	}
	if l.behind() {
		return // until its entry is applied
	}
	if r.asked == nil {
		if r.asked = l.s.reads.take(); r.asked == nil {
			return
		}
	} else if l.ticks-r.asking < retryTicks {
		return
	}
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
		if l.round.asked == nil || string(st.RequestCtx) != string(l.roundContext()) {
			continue
		}
		l.round.asked.index = st.Index
		l.round.granted = append(l.round.granted, l.round.asked)
		l.round.asked, l.round.answered = nil, true
	}
}

// gather lets those who have had their answer ask again together with those who came
// meanwhile: a round costs much more than a reader. Where processors are free it
// takes no time.
func (l *loop) gather() {
	if !l.round.answered {
		return
	}
	l.round.answered = false
	if l.s.reads.rest() {
		go func() {
			runtime.Gosched()
			wake(l.s.inbox.ready)
		}()
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
	if r.asked != nil {
		r.asked.end(err)
	}
	for _, w := range r.granted {
		w.end(err)
	}
	*r = round{number: r.number}
}
