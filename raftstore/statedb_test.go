package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

var testBucket = []byte("test")

// put applies entry index: it writes some keys, each with the index.
func putEntry(s *stateDB, index uint64, rng *rand.Rand) error {
	return s.update(1, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		b, err := tx.CreateBucketIfNotExists(testBucket)
		if err != nil {
			return err
		}
		for range 1 + rng.IntN(20) {
			key := fmt.Appendf(nil, "key %d", rng.IntN(500))
			if err := b.Put(key, bytes.Repeat(fmt.Appendf(nil, "%d ", index), 1+rng.IntN(40))); err != nil {
				return err
			}
		}
		return o.setApplied(index, 1)
	})
}

// contents is everything that the state machines hold.
func contents(s *stateDB) (index uint64, all string, err error) {
	var b bytes.Buffer
	err = s.view(func(tx *bbolt.Tx) error {
		index, _ = ownIn(tx).applied()
		for e := range tx.Check() {
			return e
		}
		if bucket := tx.Bucket(testBucket); bucket != nil {
			return bucket.ForEach(func(k, v []byte) error { fmt.Fprintf(&b, "%s=%s\n", k, v); return nil })
		}
		return nil
	})
	return index, b.String(), err
}

// INV-6: a power cut that leaves any mixture of old and new pages brings back
// the state of the last checkpoint, whole.
func TestStatePowerCuts(t *testing.T) {
	for seed := range uint64(10) {
		dir := t.TempDir()
		rng := rand.New(rand.NewPCG(seed, 2))
		fs := simdisk.New(dir, seed)
		durable := map[uint64]string{0: ""} // by index; what a start may show
		cutAt := 0
		fs.Before = func(_ string, n int) error {
			if n == cutAt {
				fs.Cut()
			}
			return nil
		}
		index := uint64(0)
		for life := range 5 {
			cutAt = fs.Steps() + 1 + rng.IntN(30)
			s, err := openStateDB(fs, dir, len(durable) == 1 && index == 0)
			if err == nil {
				got, all, e := contents(s)
				want, known := durable[got]
				if e != nil || !known || all != want {
					t.Fatalf("seed %d, life %d: the state is that of entry %d, %d bytes, want one of %d checkpoints: %v", seed, life, got, len(all), len(durable), e)
				}
				index = got
			}
			for i := 0; err == nil && i < 200; i++ {
				index++
				if err = putEntry(s, index, rng); err != nil {
					break
				}
				if rng.IntN(10) > 0 {
					continue
				}
				_, all, e := contents(s)
				if e != nil {
					t.Fatal(e)
				}
				before := durable
				durable = map[uint64]string{index: all}
				for k, v := range before {
					durable[k] = v // until it is known that the new one is there
				}
				if _, err = s.checkpoint(); err == nil {
					durable = map[uint64]string{index: all}
				}
			}
			if err != nil && !errors.Is(err, simdisk.ErrPowerCut) {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			if s != nil {
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := fs.Restart(); err != nil {
				t.Fatal(err)
			}
			if len(durable) > 1 && index == 0 {
				index = 1 // it is not fresh any more
			}
		}
	}
}

// INV-5: a snapshot that is being installed when the power is cut leaves the
// former state or the new one.
func TestInstallPowerCuts(t *testing.T) {
	for step := range 16 {
		dir := t.TempDir()
		fs := simdisk.New(dir, uint64(step))
		rng := rand.New(rand.NewPCG(uint64(step), 3))
		s, err := openStateDB(fs, dir, true)
		must(t, err)
		must(t, putEntry(s, 5, rng))
		_, err = s.checkpoint()
		must(t, err)
		_, old, err := contents(s)
		must(t, err)

		other, err := openStateDB(disk.OS{}, t.TempDir(), true)
		must(t, err)
		for i := uint64(1); i <= 90; i++ {
			must(t, putEntry(other, i, rng))
		}
		_, fresh, err := contents(other)
		must(t, err)
		in := filepath.Join(dir, "snapshot-in-1.tmp")
		f, err := fs.Open(in, true)
		must(t, err)
		must(t, other.view(func(tx *bbolt.Tx) error {
			_, err := tx.WriteTo(&offsetWriter{f: f})
			return err
		}))
		must(t, other.close())
		must(t, f.Sync())
		must(t, f.Close())

		cutAt := fs.Steps() + step
		fs.Before = func(_ string, n int) error {
			if n >= cutAt {
				fs.Cut()
			}
			return nil
		}
		err = s.install(in)
		if err == nil {
			fs.Cut()
		}
		must(t, s.close())
		must(t, fs.Restart())
		fs.Before = nil
		if s, err = openStateDB(fs, dir, false); err != nil {
			t.Fatalf("cut at step %d: %v", step, err)
		}
		index, all, err := contents(s)
		must(t, err)
		if all != map[uint64]string{5: old, 90: fresh}[index] {
			t.Errorf("cut at step %d: the state is that of entry %d, and not whole", step, index)
		}
		if installed := s.lastCheckpoint().Installed; installed != (index == 90) {
			t.Errorf("cut at step %d: the checkpoint says installed: %v", step, installed)
		}
		must(t, s.close())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A checkpoint runs beside updates, and a reader that stays does not hold them
// up, nor the installation of a snapshot.
func TestReaderThatStays(t *testing.T) {
	dir := t.TempDir()
	s, err := openStateDB(disk.OS{}, dir, true)
	must(t, err)
	rng := rand.New(rand.NewPCG(1, 1))
	must(t, putEntry(s, 1, rng))
	reading, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.view(func(*bbolt.Tx) error { <-reading; return nil }) // it has no error
	}()
	for i := uint64(2); i < 300; i++ {
		must(t, putEntry(s, i, rng))
		if i%100 == 0 {
			_, err := s.checkpoint()
			must(t, err)
		}
	}
	must(t, replaceWithCopy(s))
	must(t, putEntry(s, 300, rng))
	close(reading)
	<-done
	must(t, s.close())
}

// replaceWithCopy installs a snapshot of the state in its place.
func replaceWithCopy(s *stateDB) error {
	in := filepath.Join(s.dir, "snapshot-in-2.tmp")
	f, err := os.Create(in)
	if err != nil {
		return err
	}
	err = s.view(func(tx *bbolt.Tx) error { _, err := tx.WriteTo(f); return err })
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.install(in)
}
