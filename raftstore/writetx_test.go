package raftstore

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/bbolt"
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
	var last uint64
	for i := range 100 {
		if _, last, err = s.Machine("sim").Propose(t.Context(), fmt.Appendf(nil, "k=%d", i)); err != nil {
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
	if _, last, err = s.Machine("sim").Propose(t.Context(), []byte("k=last")); err != nil {
		t.Fatal(err)
	}
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
