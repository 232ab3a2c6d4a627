package raftstore

import "sync"

// queue is what waits for a stage. raft bounds it: it hands out no more than
// MaxInflightBytes, MaxUncommittedEntriesSize and MaxCommittedSizePerReady.
type queue[T any] struct {
	ready chan struct{} // holds a token while there may be items

	mu    sync.Mutex // guards items
	items []T
}

func newQueue[T any]() *queue[T] { return &queue[T]{ready: make(chan struct{}, 1)} }

func (q *queue[T]) push(item T) {
	q.mu.Lock()
	q.items = append(q.items, item)
	q.mu.Unlock()
	wake(q.ready)
}

// take returns everything that waits.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
