package raftstore

import (
	"context"
	"encoding/binary"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
)

// read waits until this node has applied what was committed when it came.
type read struct {
	index uint64
	ready chan error // capacity 1
}

// round is one ReadIndex: one is outstanding at a time, for all reads that came
// before it was asked. Each has a context of its own, since an answer to an
// earlier question would be stale.
type round struct {
	queue   []*read // came since asking
	asked   []*read
	number  uint64
	ticks   int // since asking
	granted []*read
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
	r := &read{ready: make(chan error, 1)}
	select {
	case s.reads <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
	select {
	case err := <-r.ready:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
}

// ask begins a round if there is something to ask and none is outstanding, or
// the outstanding one seems lost.
func (l *loop) ask() {
	r := &l.round
	if len(r.asked) > 0 {
		if r.ticks < retryTicks {
			return
		}
	} else if len(r.queue) == 0 {
		return
	}
	r.asked, r.queue = append(r.asked, r.queue...), nil
	r.number++
	r.ticks = 0
	l.rn.ReadIndex(l.roundContext())
}

func (l *loop) roundContext() []byte {
	b := binary.BigEndian.AppendUint64(nil, l.self)
	b = binary.BigEndian.AppendUint64(b, l.s.node.Boot)
	return binary.BigEndian.AppendUint64(b, l.round.number)
}

func (l *loop) answered(states []raft.ReadState) {
	for _, st := range states {
		if string(st.RequestCtx) != string(l.roundContext()) {
			continue
		}
		for _, r := range l.round.asked {
			r.index = st.Index
		}
		l.round.granted = append(l.round.granted, l.round.asked...)
		l.round.asked = nil
		l.ask()
	}
}

// release lets the reads go whose index is applied.
func (l *loop) release() {
	rest := l.round.granted[:0]
	for _, r := range l.round.granted {
		if r.index <= l.applied {
			r.ready <- nil
		} else {
			rest = append(rest, r)
		}
	}
	clear(l.round.granted[len(rest):])
	l.round.granted = rest
}

func (r *round) fail(err error) {
	for _, reads := range [][]*read{r.queue, r.asked, r.granted} {
		for _, w := range reads {
			w.ready <- err
		}
	}
	*r = round{}
}
