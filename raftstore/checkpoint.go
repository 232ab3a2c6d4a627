package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// checkpoint says which state a node returns to when it is opened, however it
// ended: the tree of pages below Head in File. They are synced before the
// checkpoint is written, and a read transaction keeps bbolt from using any of
// them again until the next one is. So the state is durable at the price of a
// sync now and then, off the path of acknowledgement, and what a power cut does
// to the pages written since does not matter: the log brings them back.
type checkpoint struct {
	Format    int    `json:"format"`
	File      string `json:"file"`
	Index     uint64 `json:"index"` // applied, as the state itself says
	Term      uint64 `json:"term"`
	Size      int64  `json:"size"`                // of the file, at least
	Head      []byte `json:"head"`                // the two meta pages
	Installed bool   `json:"installed,omitempty"` // a snapshot has come, and the log may not know of it yet
}

const (
	checkpointName   = "checkpoint"
	checkpointFormat = 1
)

func (c checkpoint) mark() wal.Mark { return wal.Mark{Index: c.Index, Term: c.Term} }

func (c checkpoint) save(files disk.FS, dir string) error {
	return saveSealed(files, filepath.Join(dir, checkpointName), c)
}

// restore makes the file show the state of the checkpoint.
func (c checkpoint) restore(files disk.FS, dir string) error {
	path := filepath.Join(dir, c.File)
	f, err := files.Open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size < c.Size || len(c.Head) == 0 {
		return fmt.Errorf("%s is damaged: it has %d bytes, the last checkpoint says %d", path, size, c.Size)
	}
	// Not synced: the checkpoint stays as it is, so this is done at each opening.
	_, err = f.WriteAt(c.Head, 0)
	return err
}

// lastCheckpoint is the one that the state would return to.
func (s *stateDB) lastCheckpoint() checkpoint {
	s.checkpoints.Lock()
	defer s.checkpoints.Unlock()
	return s.last
}

// lastIndex is the entry of the last checkpoint; it does not wait for one that
// is being made.
func (s *stateDB) lastIndex() uint64 { return s.durable.Load() }

// headWriter takes the first two pages of a copy, which are the meta pages of
// the transaction that is copied.
type headWriter struct {
	head []byte
	want int
}

var errHeadTaken = errors.New("the head is taken")

func (h *headWriter) Write(p []byte) (int, error) {
	if len(h.head) >= h.want {
		return 0, errHeadTaken
	}
	h.head = append(h.head, p...)
	return len(p), nil
}

func headOf(tx *bbolt.Tx) ([]byte, error) {
	h := headWriter{want: 2 * tx.DB().Info().PageSize}
	if _, err := tx.WriteTo(&h); err != nil && !errors.Is(err, errHeadTaken) {
		return nil, err
	}
	if len(h.head) != h.want {
		return nil, fmt.Errorf("the head of the state has %d bytes, want %d", len(h.head), h.want)
	}
	return h.head, nil
}

// writeBack sends to the disk what the next checkpoint would have to, without
// haste. It ends early when stop is closed.
func (s *stateDB) writeBack(stop <-chan struct{}) error {
	_, name := s.current()
	err := s.files.WriteBack(filepath.Join(s.dir, name), stop)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a snapshot has come
	}
	if err != nil {
		return fmt.Errorf("write back %s: %w", name, err)
	}
	return nil
}

// checkpoint makes the state as it is durable, and returns up to where it has
// applied. It runs beside updates and readers.
func (s *stateDB) checkpoint() (wal.Mark, error) {
	s.checkpoints.Lock()
	defer s.checkpoints.Unlock()
	return s.checkpointLocked(false)
}

func (s *stateDB) checkpointLocked(installed bool) (wal.Mark, error) {
	if err := s.flush(); err != nil {
		return wal.Mark{}, err
	}
	if err := s.keepRoom(); err != nil {
		return wal.Mark{}, err
	}
	s.nextEpoch()
	db, name := s.current()
	pin, err := db.Begin(false)
	if err != nil {
		return wal.Mark{}, err
	}
	if installed {
		s.behind.Store(true)
	}
	c := checkpoint{Format: checkpointFormat, File: name, Size: pin.Size(), Installed: s.behind.Load()}
	c.Index, c.Term = ownIn(pin).applied()
	c.Head, err = headOf(pin)
	if err == nil {
		err = s.files.SyncDB(filepath.Join(s.dir, name), db.Sync)
	}
	if err == nil {
		err = c.save(s.files, s.dir)
	}
	if err != nil {
		return wal.Mark{}, errors.Join(fmt.Errorf("checkpoint of %s: %w", name, err), pin.Rollback())
	}
	// The former one may still be needed up to here.
	if s.pin != nil {
		err = s.pin.Rollback()
	}
	s.pin, s.last = pin, c
	s.durable.Store(c.Index)
	s.grown.Store(c.Size + max(roomGrowth, 2*c.Size))
	return c.mark(), err
}

// openTimeout is how long the lock of a file is waited for.
const openTimeout = time.Second
