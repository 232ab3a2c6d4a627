package raftstore_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Close at any moment, before and while Run begins too, with everything going on:
// it returns, everyone who waits gets an answer, and the directory starts again.
func TestCloseAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	for round := range 40 {
		s, err := raftstore.Open(config(nil, dir, "a", counter{}))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var all sync.WaitGroup
		if round%8 > 0 {
			all.Go(func() {
				if err := s.Run(context.Background()); err != nil {
					t.Errorf("round %d: Run: %v", round, err)
				}
			})
		}
		// What they return does not matter, but that they do.
		for i := range 4 {
			all.Go(func() {
				for n := range 1000 {
					if _, _, err := s.Machine("counter").Propose(t.Context(), fmt.Appendf(nil, "%d.%d.%d", round, i, n)); err != nil {
						return
					}
				}
			})
			all.Go(func() {
				for s.Read(t.Context(), func(*bbolt.Tx) error { return nil }) == nil {
				}
			})
		}
		all.Go(func() { _ = s.WaitReady(t.Context()) })
		all.Go(func() { _ = s.Snapshot(t.Context()) })
		all.Go(func() { _, _ = s.Backup(io.Discard) })
		all.Go(func() { s.Status() })
		timer := time.NewTimer(rand.N(20 * time.Millisecond))
		<-timer.C
		for range 2 {
			all.Go(func() {
				if err := s.Close(); err != nil {
					t.Errorf("round %d: Close: %v", round, err)
				}
			})
		}
		all.Wait()
	}
	if _, err := raftstore.Check(dir); err != nil {
		t.Error(err)
	}
}

// A disk that was set back to an older copy, log and state alike, is noticed when
// the leader says what this node once acknowledged; a new disk takes its place.
func TestDiskSetBack(t *testing.T) {
	w, dirs, nodes := three(t)
	victim := "a"
	if leaderOf(t, nodes).Identity().Name == "a" {
		victim = "b"
	}
	write(t, leaderOf(t, nodes), "before")
	until(t, "it has the write", func() bool { return has(nodes[victim], "before") })
	nodes[victim].stop()
	old := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(old, os.DirFS(dirs[victim])); err != nil {
		t.Fatal(err)
	}
	nodes[victim] = start(t, w, dirs[victim], victim)
	for i := range 30 {
		write(t, leaderOf(t, nodes), fmt.Sprint("w", i))
	}
	until(t, "it has acknowledged them", func() bool { return has(nodes[victim], "w29") })
	nodes[victim].stop()
	delete(nodes, victim)

	back, err := raftstore.Open(config(w, old, victim, counter{}))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	ended := make(chan error, 1)
	go func() { ended <- back.Run(context.Background()) }()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the disk was set back") || !strings.Contains(err.Error(), "start with an empty directory") {
		t.Errorf("Run on an older copy: %v", err)
	}
	write(t, leaderOf(t, nodes), "the others go on")
	fresh := start(t, w, t.TempDir(), victim)
	until(t, "it is taken in again as a new member", func() bool {
		m, err := leaderOf(t, nodes).AddMember(t.Context(), raftstore.Member{Name: victim, RaftAddr: victim + ":1", Incarnation: fresh.Identity().Incarnation})
		return err == nil && fresh.Join(m) == nil
	})
	until(t, "it has everything and votes", func() bool { return has(fresh, "w29") && fresh.Status().Role == "follower" })
}

// A cluster of one grows to three and to five, and loses the first.
func TestGrowsToFive(t *testing.T) {
	w := &wire{at: map[uint64]*port{}, cut: map[uint64]bool{}}
	first := start(t, w, t.TempDir(), "a")
	if err := first.Found(raftstore.Founding{Cluster: 9, Founders: []raftstore.Founder{{Member: 1, Incarnation: first.Identity().Incarnation, Name: "a", RaftAddr: "a:1"}}}); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]node{"a": first}
	for i := range 100 { // beyond a cut of the log
		write(t, first, fmt.Sprint("alone", i))
	}
	for i, name := range []string{"b", "c", "d", "e"} {
		n := start(t, w, t.TempDir(), name)
		until(t, name+" is taken in", func() bool {
			m, err := leaderOf(t, nodes).AddMember(t.Context(), raftstore.Member{Name: name, RaftAddr: name + ":1", Incarnation: n.Identity().Incarnation})
			return err == nil && n.Join(m) == nil
		})
		nodes[name] = n
		until(t, name+" votes and has everything", func() bool { return n.Status().Role == "follower" && has(n, "alone99") })
		write(t, n, fmt.Sprint("with", i+2))
	}
	first.stop()
	delete(nodes, "a")
	write(t, nodes["b"], "without the first")
	for name, n := range nodes {
		if got := len(n.Members()); got != 5 {
			t.Errorf("%s knows %d members", name, got)
		}
		until(t, name+" has it", func() bool { return has(n, "without the first") && has(n, "with5") })
	}
}
