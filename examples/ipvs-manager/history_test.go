package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
)

// The history is pruned by the leader alone, now and then; a failure is said and
// does not end it.
func TestHistoryIsPruned(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	ctx, cancel := context.WithCancel(t.Context())
	tick, calls, done := make(chan time.Time), make(chan int), make(chan error, 1)
	n := 0
	go func() {
		done <- regularly(ctx, tick, func(context.Context) error {
			n++
			calls <- n
			if n == 1 {
				return errors.New("no leader")
			}
			return nil
		}, zap.New(core))
	}()
	for want := 1; want <= 3; want++ {
		tick <- time.Now()
		if got := <-calls; got != want {
			t.Errorf("call %d, want %d", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil || logs.Len() != 1 {
		t.Errorf("ended with %v and %d warnings", err, logs.Len())
	}

	// One that does not lead proposes nothing: here it would fail, for the store
	// does not run.
	state := lbstate.New(lbstate.Config{})
	store, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := &server{store: store, state: lbstate.NewStore(state, store.Machine(lbstate.Bucket))}
	if err := s.prune(t.Context()); err != nil {
		t.Error(err)
	}
}
