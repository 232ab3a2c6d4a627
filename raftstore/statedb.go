package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// stateDB is the replicated state, a bbolt file: the state machines' buckets,
// and one of our own. Updates are not synced; see checkpoint.
type stateDB struct {
	files disk.FS
	dir   string

	mu   sync.RWMutex // guards the fields below; held to begin a transaction, not while it runs
	db   *bbolt.DB
	name string // of the file

	write writeTx // what is applied and not committed yet
	reads readTxs // of what is committed

	checkpoints sync.Mutex // one at a time; guards the fields below
	last        checkpoint
	pin         *bbolt.Tx // shows the last checkpoint, and keeps its pages
	roomed      int64     // size of the file when its free pages were last looked at
	roomedAt    int64     // commands that were applied by then
	moreRoom    int64     // moreRoom; less in the simulation, whose disk copies the file

	durable atomic.Uint64 // last.Index
	behind  atomic.Bool   // a snapshot is in place of which the log has not heard

	grown atomic.Int64 // size of the file at which a checkpoint is due

	epoch   atomic.Uint64   // of readers
	readers [2]atomic.Int64 // by the epoch in which they began, and the one before

	retired sync.WaitGroup // files that a snapshot replaced, while they have readers
}

// stateMapBytes is how much of the address space a state file is given at once.
// Growing beyond it would wait for all readers, of which the checkpoint is one,
// so it is not allowed to: see update. (On Windows a map makes the file as
// large.)
func stateMapBytes() int {
	if runtime.GOOS == "windows" || strconv.IntSize < 64 {
		return 1 << 30
	}
	return 1 << (strconv.IntSize - 26) // 256 GiB
}

func stateName(generation uint64) string { return fmt.Sprintf("state-%d.db", generation) }

func stateGeneration(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, "state-")
	digits, ok2 := strings.CutSuffix(digits, ".db")
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && ok2 && err == nil
}

// openStateDB returns the state of the last checkpoint. A directory that has
// none gets an empty one, unless it belongs to a cluster.
func openStateDB(files disk.FS, dir string, fresh bool) (*stateDB, error) {
	s := newStateDB(files, dir)
	path := filepath.Join(dir, checkpointName)
	err := loadSealed(files, path, checkpointFormat, &s.last)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && !fresh:
		return nil, fmt.Errorf("%s is missing, but this node belongs to a cluster; start with an empty directory, and the node comes back as a new member", path)
	case missing:
		s.last.File = stateName(1)
	case err != nil:
		return nil, err
	}
	if g, ok := stateGeneration(s.last.File); !ok || g == 0 {
		return nil, fmt.Errorf("%s names the state file %q", path, s.last.File)
	}
	if err := s.clean(missing); err != nil {
		return nil, err
	}
	s.name = s.last.File
	if !missing {
		if err := s.last.restore(files, dir); err != nil {
			return nil, err
		}
		if err := checkPages(files, filepath.Join(dir, s.name), s.last.Head); err != nil {
			return nil, err
		}
	}
	if s.db, s.write.limit, err = openState(filepath.Join(dir, s.name), s.last.Size); err != nil {
		return nil, err
	}
	if missing {
		if err = s.makeRoom(firstRoom); err == nil {
			_, err = s.checkpointLocked(false)
		}
	} else {
		err = s.verify()
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// verify pins the checkpoint that was restored.
func (s *stateDB) verify() error {
	pin, err := s.db.Begin(false)
	if err != nil {
		return err
	}
	s.pin = pin
	s.durable.Store(s.last.Index)
	s.behind.Store(s.last.Installed)
	s.roomed = s.last.Size
	index, term := ownIn(pin).applied()
	if index != s.last.Index || term != s.last.Term {
		return fmt.Errorf("%s is damaged: it has applied entry %d of term %d, the last checkpoint says %d of %d", filepath.Join(s.dir, s.name), index, term, s.last.Index, s.last.Term)
	}
	return nil
}

// clean removes state files that are not the one of the checkpoint, or all, and
// what a crash left of snapshots.
func (s *stateDB) clean(all bool) error {
	names, err := s.files.List(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		_, state := stateGeneration(name)
		leftover := strings.HasPrefix(name, "snapshot-") && strings.HasSuffix(name, ".tmp")
		if leftover || state && (all || name != s.last.File) {
			if err := s.files.Remove(filepath.Join(s.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// openState opens a state file for updates, with room to grow.
func openState(path string, size int64) (*bbolt.DB, int64, error) {
	least := max(1<<26, 4*int(size))
	room := max(stateMapBytes(), least)
	db, err := openBolt(path, room, false)
	// Where the address space is small (39 bits with some kernels, ulimit -v) the
	// file gets what there is: for a moment there are two, when a snapshot comes.
	for errors.Is(err, syscall.ENOMEM) && room > least {
		room = max(room/2, least)
		db, err = openBolt(path, room, false)
	}
	return db, int64(room) / 2, err
}

// openBolt opens a bbolt file; mapBytes is how much address space it gets, at
// least. A tree that is damaged is an error.
func openBolt(path string, mapBytes int, readOnly bool) (db *bbolt.DB, err error) {
	var file *os.File
	defer func() {
		if err != nil && file != nil {
			file.Close() // bbolt does not where it panics, and keeps the lock
		}
	}()
	defer damaged("", path, debug.SetPanicOnFault(true), &err)
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		},
		Timeout: openTimeout, NoSync: true, NoGrowSync: true, NoFreelistSync: true,
		// As a map it takes 1.4 µs to find a free page where few of many are left.
		FreelistType: bbolt.FreelistArrayType, InitialMmapSize: mapBytes, ReadOnly: readOnly, NoStatistics: true,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return db, nil
}

// damaged turns a panic of bbolt, which it has where a page makes no sense, and
// an access beyond the file into an error. Other panics go on. faults is what
// debug.SetPanicOnFault was before.
func damaged(dir, name string, faults bool, err *error) {
	debug.SetPanicOnFault(faults)
	r := recover()
	if r == nil {
		return
	}
	_, fault := r.(interface{ Addr() uintptr })
	if !fault && !panicOf("go.etcd.io/bbolt", string(debug.Stack())) {
		panic(r)
	}
	*err = fmt.Errorf("%s is damaged: %v; start with an empty directory, and the node comes back as a new member", filepath.Join(dir, name), r)
}

// panicOf says whether what panicked is a function of a package: it stands first
// below the panic itself.
func panicOf(pkg, stack string) bool {
	_, below, _ := strings.Cut(stack, "panic(")
	lines := strings.SplitN(below, "\n", 4)
	return len(lines) > 2 && strings.HasPrefix(lines[2], pkg)
}

func (s *stateDB) current() (*bbolt.DB, string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db, s.name
}

// view calls fn with everything that is applied. It holds nothing that an update
// or the installation of a snapshot waits for.
func (s *stateDB) view(fn func(*bbolt.Tx) error) (err error) {
	if err := s.flush(); err != nil {
		return err
	}
	tx, name, age, err := s.readTx()
	if err != nil {
		return err
	}
	epoch := &s.readers[s.epoch.Load()%2]
	epoch.Add(1)
	defer epoch.Add(-1)
	defer damaged(s.dir, name, debug.SetPanicOnFault(true), &err)
	returned := false
	defer func() {
		if returned {
			s.reads.give(tx, age)
		} else {
			_ = tx.Rollback() // of a read transaction that is open it has no error
		}
	}()
	err = fn(tx)
	returned = true
	return err
}

// readTx returns a transaction that shows what is committed, with the name of its
// file, and the age with which to give it back.
func (s *stateDB) readTx() (tx *bbolt.Tx, name string, age uint64, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	tx, age = s.reads.take()
	if tx == nil {
		tx, err = s.db.Begin(false)
	}
	return tx, s.name, age, err
}

// close closes the files and waits for their readers. It makes no checkpoint.
func (s *stateDB) close() error {
	s.checkpoints.Lock()
	defer s.checkpoints.Unlock()
	err := s.abandon()
	if s.pin != nil {
		err = errors.Join(err, s.pin.Rollback())
		s.pin = nil
	}
	db, _ := s.current()
	s.reads.end()
	if db != nil {
		err = errors.Join(err, db.Close())
	}
	s.retired.Wait()
	return err
}

// install puts a verified and synced file in the place of the state. A crash
// leaves the former state or the new one, whichever the checkpoint names.
func (s *stateDB) install(path string) error {
	s.checkpoints.Lock()
	defer s.checkpoints.Unlock()
	if err := s.abandon(); err != nil {
		return err
	}
	old, oldName := s.current()
	generation, _ := stateGeneration(oldName)
	name := stateName(generation + 1)
	to := filepath.Join(s.dir, name)
	if err := s.files.Rename(path, to); err != nil {
		return err
	}
	if err := s.files.SyncDir(s.dir); err != nil {
		return err
	}
	f, err := s.files.Open(to, false)
	if err != nil {
		return err
	}
	size, err := f.Size()
	f.Close()
	if err != nil {
		return err
	}
	db, limit, err := openState(to, size)
	if err != nil {
		return err
	}
	s.write.limit = limit
	pin := s.pin
	s.pin = nil
	s.mu.Lock()
	s.db, s.name = db, name
	s.reads.renew()
	s.mu.Unlock()
	s.roomed = size
	_, err = s.checkpointLocked(true)
	if pin != nil {
		err = errors.Join(err, pin.Rollback())
	}
	s.retired.Go(func() { _ = old.Close() }) // waits for its readers; nothing of it is needed any more
	if err == nil {
		// Where it cannot be removed while it has readers, the next start does it.
		_ = s.files.Remove(filepath.Join(s.dir, oldName))
	}
	return err
}
