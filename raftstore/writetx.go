package raftstore

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// writeTx is the transaction that entries are applied in. Committing costs bbolt
// more than applying one command, so it stays open for a while and takes what
// comes: until someone reads, who must see all of it, until there is much in it, or
// for holdFor. What is in it is acknowledged already: the log has it, and a start
// applies it again.
type writeTx struct {
	mu       sync.Mutex // guards the fields below but the atomic ones and the functions, and the transaction
	tx       *bbolt.Tx
	opened   time.Time
	commands int
	early    int64 // per cent of what a transaction may hold by which it is committed earlier
	limit    int64 // of the file's size
	failed   error // a commit that failed: the node ends

	open    atomic.Bool   // there is a transaction, or there was one that failed
	full    atomic.Bool   // it is to be committed
	commits atomic.Uint64 // how many there were
	size    atomic.Int64  // of the file, about
	applied atomic.Int64  // commands ever, as they were counted for update

	waiting func() int64 // callers, whose commands are not applied yet
	now     func() time.Time
	stagger func() int64 // the next early: nodes that share a machine are not to commit in step
	later   func(time.Duration, func())
	fail    func(error) // hears of a commit that failed outside of update; nil until the loop is there
}

const (
	// holdFor bounds how long memory is taken for what no one reads.
	holdFor = time.Second
	// holdNodes bounds how long a commit takes, which costs by the page: a reader
	// waits for it, and so do those whose commands come meanwhile. Where few callers
	// wait, as where others lead, fewer than one command in a hundred meets a commit;
	// so there it is larger, and pages that several commands change are written once.
	holdNodes     = 256  // 3 ms
	holdNodesMost = 4096 // 30 ms
	fewCallers    = 8
	// holdCommands bounds the memory of what is in it, where the commands share pages.
	holdCommands = 16 << 10
	// usualCommand is the bytes by which commands are counted where they are larger.
	usualCommand = 256
)

func newStateDB(files disk.FS, dir string) *stateDB {
	s := &stateDB{files: files, dir: dir, moreRoom: moreRoom}
	s.write.waiting = func() int64 { return 0 }
	s.write.now = time.Now
	s.write.stagger = func() int64 { return rand.Int64N(50) }
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
	nodes := int64(holdNodesMost)
	if w.waiting() > fewCallers {
		nodes = holdNodes
	}
	w.full.Store(w.commands >= holdCommands || dirtyNodes(w.tx) >= nodes-nodes*w.early/100 || w.now().Sub(w.opened) >= w.hold())
	return nil
}

// hold is how long the open transaction stays open at most; mu is held.
func (w *writeTx) hold() time.Duration {
	return holdFor - holdFor*time.Duration(w.early)/100
}

// flushUnless returns what commits the open transaction unless it is another by
// then: there were more than so many commits.
func (s *stateDB) flushUnless(commits uint64) func() {
	return func() {
		if s.write.commits.Load() == commits {
			_ = s.flush() // the loop hears of an error
		}
	}
}

// commitFull commits what update has said is full. It is not part of update, so
// that the callers have their answers first.
func (s *stateDB) commitFull() error {
	if !s.write.full.Load() {
		return nil
	}
	return s.flush()
}

// dirtyNodes is how many pages of the tree a transaction has taken up to change.
func dirtyNodes(tx *bbolt.Tx) int64 {
	stats := tx.Stats()
	return stats.GetNodeCount()
}

// inTx runs fn in the open transaction; mu is held.
func (s *stateDB) inTx(fn func(*bbolt.Tx) error) (err error) {
	w := &s.write
	defer damaged(s.dir, s.name, debug.SetPanicOnFault(true), &err)
	if w.tx == nil {
		s.reads.renew()
		if w.tx, err = s.db.Begin(true); err != nil {
			return err
		}
		w.opened, w.commands, w.early = w.now(), 0, w.stagger()
		w.open.Store(true)
		w.later(w.hold(), s.flushUnless(w.commits.Load()))
	}
	if size := w.tx.Size(); size > w.limit {
		// bbolt would wait for the checkpoint's reader, for ever.
		return fmt.Errorf("%s has %d bytes, more than half of the address space that it was given; restart this node", s.name, size)
	}
	return fn(w.tx)
}

// drop undoes the open transaction; mu is held. What was in it is answered already,
// so that no one may read without it: to readers it stays open, and flush gives
// them err.
func (s *stateDB) drop(err error) {
	w := &s.write
	w.failed = err
	w.open.Store(true)
	if w.tx != nil {
		_ = w.tx.Rollback() // what it could say is less than err
		w.tx = nil
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
	s.reads.renew()
	w.open.Store(false)
	w.full.Store(false)
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
	err, fail := s.commit(), w.fail
	w.mu.Unlock()
	if err != nil && fail != nil {
		fail(err)
	}
	return err
}

// onFailure sets who hears of a commit that failed where someone read. Readers may
// have begun already.
func (s *stateDB) onFailure(fail func(error)) {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	s.write.fail = fail
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
	w.full.Store(false)
	return err
}
