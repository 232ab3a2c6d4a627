package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

var countBucket = []byte("count")

// count puts a number where counted finds it.
func count(s *stateDB, n uint64) error {
	return s.update(1, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(countBucket)
		if err != nil {
			return err
		}
		return b.Put([]byte("n"), binary.BigEndian.AppendUint64(nil, n))
	})
}

func counted(s *stateDB) (n uint64, used *bbolt.Tx, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		used = tx
		if b := tx.Bucket(countBucket); b != nil {
			n = binary.BigEndian.Uint64(b.Get([]byte("n")))
		}
		return nil
	})
	return n, used, err
}

// One reader after the other uses the same transaction until something is written,
// whatever a reader does to it.
func TestReadersShareTransactions(t *testing.T) {
	s, err := openStateDB(disk.OS{}, t.TempDir(), true)
	must(t, err)
	read := func(want uint64) *bbolt.Tx {
		t.Helper()
		n, tx, err := counted(s)
		must(t, err)
		if n != want {
			t.Fatalf("read %d, want %d", n, want)
		}
		return tx
	}
	must(t, count(s, 1))
	first := read(1)
	if read(1) != first {
		t.Fatal("each reader began a transaction of its own though nothing was written")
	}
	must(t, count(s, 2))
	if read(2) == first {
		t.Fatal("a transaction was used again after something was written")
	}

	// Two at once have one each.
	must(t, s.view(func(tx *bbolt.Tx) error {
		if read(2) == tx {
			return errors.New("two readers at once have the same transaction")
		}
		return nil
	}))
	// One that is in use while something is written is not used again.
	var past *bbolt.Tx
	must(t, s.view(func(tx *bbolt.Tx) error { past = tx; return count(s, 3) }))
	if past.DB() != nil {
		t.Fatal("a transaction that shows what is past was kept")
	}
	read(3)
	// Nor is one whose reader ended it, or panicked.
	must(t, s.view(func(tx *bbolt.Tx) error { return tx.Rollback() }))
	read(3)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic of a reader was swallowed")
			}
		}()
		_ = s.view(func(tx *bbolt.Tx) error { past = tx; panic("of a reader") })
	}()
	if past.DB() != nil {
		t.Fatal("the transaction of a reader that panicked is open")
	}
	read(3)

	// Closing waits for no transaction that no one uses, and for those in use.
	closed := make(chan error, 1)
	reading, leave := make(chan struct{}), make(chan struct{})
	go func() { _ = s.view(func(*bbolt.Tx) error { close(reading); <-leave; return nil }) }()
	<-reading
	go func() { closed <- s.close() }()
	select {
	case err := <-closed:
		t.Fatalf("close does not wait for a reader: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	select {
	case err := <-closed:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("close waits for a transaction that no one uses")
	}
	if _, _, err := counted(s); err == nil {
		t.Fatal("a state that is closed can be read")
	}
}

// Readers at once with updates, checkpoints and snapshots that replace the file see
// everything that was applied before they began, and the file does not grow.
func TestReadersBesideUpdates(t *testing.T) {
	s, err := openStateDB(disk.OS{}, t.TempDir(), true)
	must(t, err)
	var applied atomic.Uint64
	var done atomic.Bool
	var reads atomic.Int64
	errs := make(chan error, 8)
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for !done.Load() {
				before := applied.Load()
				n, _, err := counted(s)
				if err == nil && n < before {
					err = fmt.Errorf("read %d after %d was applied", n, before)
				}
				if err != nil {
					errs <- err
					return
				}
				reads.Add(1)
			}
		})
	}
	const updates = 20_000
	for n := uint64(1); n <= updates && len(errs) == 0; n++ {
		must(t, count(s, n))
		applied.Store(n)
		switch {
		case n%5_000 == 0:
			must(t, replaceWithCopy(s))
		case n%1_000 == 0:
			_, err := s.checkpoint()
			must(t, err)
		}
	}
	done.Store(true)
	readers.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	if size := s.highWater(); size > 8<<20 {
		t.Errorf("a state of one number has a file of %d bytes", size)
	}
	t.Logf("%d reads beside %d updates in %d transactions", reads.Load(), updates, s.write.commits.Load())
	must(t, s.close())
}
