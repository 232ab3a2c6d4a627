package peer

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// queue holds what waits for one lane. It takes messages while it is open, up
// to its bounds; a message larger than the bounds is taken when it is alone.
type queue struct {
	maxMessages, maxBytes int
	ready                 chan struct{} // holds a token while there may be messages

	mu    sync.Mutex // guards the fields below
	open  bool
	msgs  []*raftpb.Message
	bytes int
}

func newQueue(maxMessages, maxBytes int) *queue {
	return &queue{maxMessages: maxMessages, maxBytes: maxBytes, ready: make(chan struct{}, 1)}
}

// push returns nil, ErrNotConnected or ErrQueueFull.
func (q *queue) push(m *raftpb.Message) error {
	size := messageSize(m)
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.open {
		return ErrNotConnected
	}
	if n := len(q.msgs); n > 0 {
		if supersedes(m, q.msgs[n-1]) {
			q.msgs[n-1] = m
			return nil
		}
		if n >= q.maxMessages || q.bytes+size > q.maxBytes {
			return ErrQueueFull
		}
	}
	q.msgs = append(q.msgs, m)
	q.bytes += size
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return nil
}

// supersedes reports whether the leader learns nothing from old once it has m:
// an acknowledgement of entries covers all those before it.
func supersedes(m, old *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && old.GetType() == raftpb.MsgAppResp &&
		!m.GetReject() && !old.GetReject() &&
		m.GetTerm() == old.GetTerm() && m.GetFrom() == old.GetFrom() &&
		m.GetIndex() >= old.GetIndex() && m.GetCommit() >= old.GetCommit() &&
		m.Context == nil && old.Context == nil
}

// take empties the queue. into becomes the queue's next backing array; it must
// hold no messages that are still needed.
func (q *queue) take(into []*raftpb.Message) []*raftpb.Message {
	clear(into)
	q.mu.Lock()
	defer q.mu.Unlock()
	msgs := q.msgs
	q.msgs, q.bytes = into[:0], 0
	return msgs
}

func (q *queue) start() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = true
}

// stop drops what waits, refuses what comes, and returns how many were dropped.
func (q *queue) stop() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.msgs)
	q.open, q.msgs, q.bytes = false, nil, 0
	return n
}

func (q *queue) len() (messages, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.msgs), q.bytes
}
