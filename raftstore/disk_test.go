package raftstore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

// alone runs a cluster of one on a simulated disk.
func alone(t *testing.T, before func(op string, n int) error) (*Store, chan error) {
	t.Helper()
	dir := t.TempDir()
	fs := simdisk.New(dir, 1)
	s, err := Open(Config{
		Dir: dir, StateMachines: map[string]StateMachine{"sim": simMachine{}},
		TickInterval: 5 * time.Millisecond, ElectionTicks: 4, files: fs,
	})
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	t.Cleanup(func() { _ = s.Close() })
	awaitLeading(t, s, true)
	fs.SetBefore(before)
	return s, done
}

func awaitLeading(t *testing.T, s *Store, want bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		leading, _, changed := s.Leadership()
		if leading == want {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("leading: %v, want %v", leading, want)
		}
	}
}

// INV-9: a full disk, or a sync that fails, stops the node with the reason, and
// the caller hears that the outcome is unknown.
func TestFailingDisk(t *testing.T) {
	for op, fault := range map[string]error{"write ": syscall.ENOSPC, "sync ": syscall.EIO} {
		var on atomic.Bool
		s, done := alone(t, func(what string, _ int) error {
			if on.Load() && strings.HasPrefix(what, op) {
				return fault
			}
			return nil
		})
		if _, _, err := s.Machine("sim").Propose(t.Context(), []byte("a=1")); err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		_, _, err := s.Machine("sim").Propose(t.Context(), []byte("a=2"))
		var known interface{ NotApplied() bool }
		if !errors.As(err, &known) || known.NotApplied() {
			t.Errorf("a write to a disk that fails: %v", err)
		}
		if err := <-done; !errors.Is(err, fault) || !strings.Contains(err.Error(), ".seg") {
			t.Errorf("Run ended with %v, want %v and the file", err, fault)
		}
		if !errors.Is(s.Err(), fault) {
			t.Errorf("Err is %v", s.Err())
		}
	}
}

// A leader whose disk stalls says that it does not lead, and leads again when
// the disk answers.
func TestStalledDisk(t *testing.T) {
	release := make(chan struct{})
	var stall atomic.Bool
	s, _ := alone(t, func(what string, _ int) error {
		if stall.Load() && strings.HasPrefix(what, "sync ") {
			<-release
		}
		return nil
	})
	stall.Store(true)
	answered := make(chan error, 1)
	go func() {
		_, _, err := s.Machine("sim").Propose(context.Background(), []byte("a=1"))
		answered <- err
	}()
	awaitLeading(t, s, false)
	stall.Store(false)
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("the write that waited for the disk: %v", err)
	}
	awaitLeading(t, s, true)
}
