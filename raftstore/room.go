package raftstore

import (
	"fmt"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// bbolt uses a page again, while a reader stays, that was written and replaced
// since the reader began; but only one that came from its free list, for of those
// by which the file grew it does not know when that was. The checkpoint is such a
// reader, and a user's may stay for long. Without free pages a file would grow by
// everything that is written meanwhile. So it is given as many as the contents take
// that a user's reader sees, those that the last checkpoint and the next see, where
// these are not the same, and those that one transaction replaces. The file stays
// below five times its contents and 2 MiB; a large one below twice these and 194 MiB.
const (
	firstRoom  = 128 << 10 // bytes
	turnover   = 64 << 20  // bytes of pages that are replaced between two checkpoints
	moreRoom   = 2 << 20   // bytes for what is small
	roomPiece  = 1 << 20   // bytes in one transaction, which updates wait for
	roomStep   = 8 << 20   // bytes at one checkpoint
	roomGrowth = 128 << 20 // bytes by which the file may grow until the next checkpoint, or twice its size if that is more
)

// roomBucket holds pages for the moment between their allocation and their release.
var roomBucket = []byte(ownBucketName + "\x00room")

var zeros [roomPiece]byte

// keepRoom sees to it that enough pages are free, if the file has grown by an
// eighth since that was last looked at, or its contents may have. While a reader
// stays nothing can be done: what is added would not be free before it ends.
// checkpoints is held.
func (s *stateDB) keepRoom() error {
	size, applied := s.highWater(), s.write.applied.Load()
	if max(size-s.roomed, (applied-s.roomedAt)*usualCommand) <= s.roomed/8 || s.readersStay() {
		return nil
	}
	db, _ := s.current()
	var used int64
	if err := db.View(func(tx *bbolt.Tx) error { used = contentBytes(tx); return nil }); err != nil {
		return err
	}
	lacking := used + 3*min(used, turnover) + s.moreRoom - (size - used)
	// Little by little, for the checkpoint syncs it; the rest comes with the next.
	if err := s.makeRoom(min(lacking, roomStep)); err != nil {
		return err
	}
	if lacking <= roomStep {
		s.roomed, s.roomedAt = s.highWater(), applied
	}
	return nil
}

// contentBytes is what the pages of the state take that are not free.
func contentBytes(tx *bbolt.Tx) int64 {
	pages := 2
	_ = tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { // it has no error of its own
		st := b.Stats()
		pages += st.BranchPageN + st.BranchOverflowN + st.LeafPageN + st.LeafOverflowN
		return nil
	})
	return int64(pages) * int64(tx.DB().Info().PageSize)
}

// makeRoom adds free pages, of so many bytes. checkpoints is held, and no update
// is open.
func (s *stateDB) makeRoom(bytes int64) error {
	for ; bytes > 0; bytes -= roomPiece {
		if err := s.addPages(min(bytes, roomPiece)); err != nil {
			return err
		}
	}
	return nil
}

// addPages lets the file grow by pages that are then released. No reader begins
// before they are, so none sees them.
func (s *stateDB) addPages(bytes int64) (err error) {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	if s.write.tx != nil {
		if err := s.commit(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads.renew()
	defer s.reads.renew()
	defer damaged(s.dir, s.name, debug.SetPanicOnFault(true), &err)
	for _, step := range []func(*bbolt.Tx) error{
		func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(roomBucket)
			if err != nil {
				return err
			}
			return b.Put(roomBucket, zeros[:bytes])
		},
		func(tx *bbolt.Tx) error { return tx.DeleteBucket(roomBucket) },
		func(*bbolt.Tx) error { return nil }, // a reader from here on does not need them
	} {
		if err := s.db.Update(step); err != nil {
			return fmt.Errorf("%s: add free pages: %w", s.name, err)
		}
	}
	return nil
}

// highWater is how large the file has become, of what is committed.
func (s *stateDB) highWater() (size int64) {
	db, _ := s.current()
	_ = db.View(func(tx *bbolt.Tx) error { size = tx.Size(); return nil }) // 0 of a file that is closed
	return size
}

// readersStay says whether a reader that began before the last checkpoint is still
// there.
func (s *stateDB) readersStay() bool {
	return s.readers[(s.epoch.Load()+1)%2].Load() > 0
}

// nextEpoch is called at each checkpoint: readers that begin from now on are told
// from those before.
func (s *stateDB) nextEpoch() {
	if !s.readersStay() {
		s.epoch.Add(1)
	}
}
