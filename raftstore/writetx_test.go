package raftstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// told is a machine that passes on what it is told is committed.
type told struct {
	simMachine
	index chan uint64
}

func (m told) Committed(index uint64) {
	select {
	case m.index <- index:
	default:
	}
}

// What was answered is seen by every read from then on, and the machines are told
// of it though no one reads.
func TestAppliedIsSeen(t *testing.T) {
	m := told{index: make(chan uint64, 1<<12)}
	s, err := Open(Config{Dir: t.TempDir(), StateMachines: map[string]StateMachine{"sim": m}, TickInterval: 5 * time.Millisecond})
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	awaitLeading(t, s, true)
	for i := range 100 {
		if _, _, err := s.Machine("sim").Propose(t.Context(), fmt.Appendf(nil, "k=%d", i)); err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 {
			continue // several in one transaction
		}
		must(t, s.ReadStale(func(tx *bbolt.Tx) error {
			if got, want := string(tx.Bucket(simBucket).Get([]byte("k"))), fmt.Sprintf("%d#%d", i, i+1); got != want {
				return fmt.Errorf("read %q after %q was answered", got, want)
			}
			return nil
		}))
	}
	_, last, err := s.Machine("sim").Propose(t.Context(), []byte("k=last"))
	must(t, err)
	for timeout := time.After(20 * time.Second); ; {
		select {
		case index := <-m.index:
			if index < last {
				continue
			}
		case <-timeout:
			t.Fatalf("the machine was not told that entry %d is committed", last)
		}
		break
	}
	must(t, s.Close())
	must(t, <-done)
}

// Where the transaction fails no one reads without what was answered before.
func TestNoReadBesideAFailure(t *testing.T) {
	s, err := Open(Config{Dir: t.TempDir(), StateMachines: map[string]StateMachine{"sim": simMachine{}}})
	must(t, err)
	defer s.Close()
	must(t, s.state.update(1, func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists([]byte("answered"))
		return err
	}))
	broken := errors.New("broken")
	if err := s.state.update(1, func(*bbolt.Tx) error { return broken }); !errors.Is(err, broken) {
		t.Fatalf("update: %v", err)
	}
	for range 2 {
		if err := s.ReadStale(func(*bbolt.Tx) error { return nil }); !errors.Is(err, broken) {
			t.Errorf("a read beside the failure: %v", err)
		}
	}
}

// The time of a transaction that was committed early does not end the next one.
func TestTransactionHasItsOwnTime(t *testing.T) {
	s, err := openStateDB(disk.OS{}, t.TempDir(), true)
	must(t, err)
	var due []func()
	s.write.later = func(d time.Duration, fn func()) {
		if d <= 0 || d > holdFor {
			t.Errorf("a transaction is held for %v", d)
		}
		due = append(due, fn)
	}
	must(t, count(s, 1))
	_, _, err = counted(s) // commits it
	must(t, err)
	must(t, count(s, 2))
	before := s.write.commits.Load()
	due[0]()
	if s.write.commits.Load() != before || !s.write.open.Load() {
		t.Fatal("a transaction was committed when the time of the one before was over")
	}
	due[1]()
	if s.write.commits.Load() != before+1 || s.write.open.Load() {
		t.Fatal("a transaction stays open when its time is over")
	}
	must(t, s.close())
}

// A commit is small where many callers would wait for it, and large where few do.
func TestTransactionSizeByCallers(t *testing.T) {
	for _, c := range []struct{ waiting, most int64 }{{0, holdNodesMost}, {fewCallers, holdNodesMost}, {fewCallers + 1, holdNodes}} {
		s, err := openStateDB(disk.OS{}, t.TempDir(), true)
		must(t, err)
		s.write.waiting = func() int64 { return c.waiting }
		s.write.stagger = func() int64 { return 0 }
		s.write.later = func(time.Duration, func()) {}
		began := time.Now()
		s.write.now = func() time.Time { return began }
		put := func(commands, from, to int) {
			must(t, s.update(commands, func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists([]byte("many"))
				for i := from; i < to && err == nil; i++ {
					err = b.Put(fmt.Appendf(nil, "%08d", i), make([]byte, 2<<10)) // two in a page
				}
				return err
			}))
		}
		put(1, 0, 10_000)
		must(t, s.flush())
		taken := int64(0)
		for key := 0; !s.write.full.Load(); key++ {
			must(t, s.inTx(func(tx *bbolt.Tx) error { taken = dirtyNodes(tx); return nil }))
			put(1, key, key+1)
		}
		if taken >= c.most || taken < c.most*9/10 {
			t.Errorf("with %d callers a transaction is full after %d pages, want %d", c.waiting, taken, c.most)
		}
		must(t, s.flush())
		put(holdCommands-1, 0, 1)
		if s.write.full.Load() {
			t.Errorf("with %d callers a transaction is full after %d commands", c.waiting, holdCommands-1)
		}
		if put(1, 0, 1); !s.write.full.Load() {
			t.Errorf("with %d callers a transaction is not full after %d commands", c.waiting, holdCommands)
		}
		must(t, s.close())
	}
}
