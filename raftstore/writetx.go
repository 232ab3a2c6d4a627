package raftstore

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// writeTx is the transaction that entries are applied in. Committing costs bbolt
// more than applying one command, so it stays open for a while and takes what
// comes: until someone reads, who must see all of it, or for holdFor. What is in
// it is acknowledged already: the log has it, and a start applies it again.
type writeTx struct {
	mu       sync.Mutex // guards the fields below but the atomic ones and now and later, and the transaction
	tx       *bbolt.Tx
	opened   time.Time
	commands int
	limit    int64 // of the file's size
	failed   error // a commit that failed: the node ends

	open    atomic.Bool   // there is a transaction
	commits atomic.Uint64 // how many there were
	size    atomic.Int64  // of the file, about
	applied atomic.Int64  // commands ever, as they were counted for update

	now   func() time.Time
	later func(time.Duration, func())
	done  func(error) // hears of commits that were not made within update; nil until the loop is there
}

const (
	// holdFor bounds how late watchers hear of a change when no one reads.
	holdFor = 3 * time.Millisecond
	// holdCommands bounds the memory of the transaction, and how long a reader
	// may have to wait for it.
	holdCommands = 2048
	// usualCommand is the bytes by which commands are counted where they are larger.
	usualCommand = 256
)

func newStateDB(files disk.FS, dir string) *stateDB {
	s := &stateDB{files: files, dir: dir, moreRoom: moreRoom}
	s.write.now = time.Now
	s.write.later = func(d time.Duration, fn func()) { time.AfterFunc(d, fn) }
	return s
}

// update applies so many commands. What fn does is seen by the next view; an
// error undoes everything that is not committed, and the state is of no use then.
func (s *stateDB) update(commands int, fn func(*bbolt.Tx) error) error {
	w := &s.write
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	if err := s.inTx(fn); err != nil {
		s.drop(err)
		return err
	}
	w.commands += commands
	w.applied.Add(int64(commands))
	if w.commands >= holdCommands || w.now().Sub(w.opened) >= holdFor {
		return s.commit()
	}
	return nil
}

// inTx runs fn in the open transaction; mu is held.
func (s *stateDB) inTx(fn func(*bbolt.Tx) error) (err error) {
	w := &s.write
	defer damaged(s.dir, s.name, debug.SetPanicOnFault(true), &err)
	if w.tx == nil {
		if w.tx, err = s.db.Begin(true); err != nil {
			return err
		}
		w.opened, w.commands = w.now(), 0
		w.open.Store(true)
		done := w.done
		w.later(holdFor, func() {
			if err := s.flush(); err != nil && done != nil {
				done(err)
			}
		})
	}
	if size := w.tx.Size(); size > w.limit {
		// bbolt would wait for the checkpoint's reader, for ever.
		return fmt.Errorf("%s has %d bytes, more than half of the address space that it was given; restart this node", s.name, size)
	}
	return fn(w.tx)
}

// drop undoes the open transaction; mu is held.
func (s *stateDB) drop(err error) {
	w := &s.write
	w.failed = err
	if w.tx != nil {
		_ = w.tx.Rollback() // what it could say is less than err
		w.tx = nil
		w.open.Store(false)
	}
}

// commit commits the open transaction; mu is held.
func (s *stateDB) commit() (err error) {
	w := &s.write
	defer func() {
		if err != nil {
			s.drop(err)
		}
	}()
	defer damaged(s.dir, s.name, debug.SetPanicOnFault(true), &err)
	tx := w.tx
	w.size.Store(tx.Size())
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	w.tx = nil
	w.open.Store(false)
	w.commits.Add(1)
	return nil
}

// flush commits what is applied, so that a view sees it.
func (s *stateDB) flush() error {
	w := &s.write
	if !w.open.Load() {
		return nil
	}
	w.mu.Lock()
	if w.tx == nil {
		defer w.mu.Unlock()
		return w.failed
	}
	err, done := s.commit(), w.done
	w.mu.Unlock()
	if done != nil {
		done(err)
	}
	return err
}

// onCommit sets who hears of commits. Readers may have begun already, and what the
// founding left may be open.
func (s *stateDB) onCommit(done func(error)) {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	s.write.done = done
}

// abandon drops what is not committed: the state is closed, or replaced.
func (s *stateDB) abandon() error {
	w := &s.write
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tx == nil {
		return nil
	}
	err := w.tx.Rollback()
	w.tx = nil
	w.open.Store(false)
	return err
}
