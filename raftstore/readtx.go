package raftstore

import (
	"sync"

	"go.etcd.io/bbolt"
)

// readTxs are read transactions that no one uses at the moment. To begin one and to
// end it costs bbolt more than to look something up, under a lock that all share; a
// read transaction remembers nothing of what was done in it. So as long as nothing
// is written, one reader after the other uses the same.
type readTxs struct {
	mu    sync.Mutex // guards the fields below
	idle  []*bbolt.Tx
	age   uint64
	ended bool // none is kept any more
}

// maxIdleTxs is more than there are processors to use them, mostly.
const maxIdleTxs = 64

// take returns a transaction that shows what is committed, nil where there is none,
// and the age with which to give back this or a new one.
func (r *readTxs) take() (*bbolt.Tx, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.idle) - 1
	if last < 0 {
		return nil, r.age
	}
	tx := r.idle[last]
	r.idle[last] = nil
	r.idle = r.idle[:last]
	return tx, r.age
}

// give takes a transaction back, and ends it if it may show what is past.
func (r *readTxs) give(tx *bbolt.Tx, age uint64) {
	r.mu.Lock()
	keep := age == r.age && !r.ended && len(r.idle) < maxIdleTxs && tx.DB() != nil // nil where fn has ended it
	if keep {
		r.idle = append(r.idle, tx)
	}
	r.mu.Unlock()
	if !keep {
		_ = tx.Rollback() // of a read transaction that is open it has no error
	}
}

// renew ends those that no one uses; those in use end when they are given back. It
// is called before something is written, which is not to keep pages for them, and
// after that, when they would show what was before.
func (r *readTxs) renew() {
	r.mu.Lock()
	idle := r.idle
	r.idle, r.age = nil, r.age+1
	r.mu.Unlock()
	for _, tx := range idle {
		_ = tx.Rollback()
	}
}

// end ends those that no one uses, for good: closing a file waits for them.
func (r *readTxs) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.renew()
}
