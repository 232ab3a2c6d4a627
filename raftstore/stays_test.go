package raftstore_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// stays is how long something stays that is not to stall writes: a second, or a
// minute in a soak.
func stays() time.Duration {
	if os.Getenv("RAFTSTORE_SOAK") != "" {
		return time.Minute
	}
	return time.Second
}

// load writes from several callers to a thousand keys until stop is called, which
// returns how many writes there were and the longest time in which none was
// answered.
func load(t *testing.T, n node) (stop func() (writes int64, gap time.Duration)) {
	t.Helper()
	var all sync.WaitGroup
	var done atomic.Bool
	var mu sync.Mutex // guards the fields below
	var writes int64
	var gap time.Duration
	last := time.Now()
	for range 16 {
		all.Go(func() {
			for !done.Load() {
				_, _, err := n.Machine("counter").Propose(t.Context(), fmt.Appendf(nil, "%0256d", rand.IntN(1000)))
				now := time.Now()
				mu.Lock()
				if err == nil {
					writes++
				} else {
					t.Error(err)
				}
				gap, last = max(gap, now.Sub(last)), now
				mu.Unlock()
			}
		})
	}
	return func() (int64, time.Duration) {
		done.Store(true)
		all.Wait()
		return writes, gap
	}
}

// maxGap is how long no write may be answered. It leaves room for a machine that
// others use.
const maxGap = 2 * time.Second

// A reader that stays under load stalls no write, and the file does not bloat: bbolt
// uses the pages again that were written and replaced since the reader began.
func TestReaderUnderLoad(t *testing.T) {
	n := start(t, nil, t.TempDir(), "a")
	for i := range 1000 {
		write(t, n, fmt.Sprintf("%0256d", i))
	}
	const bound = 16 << 20 // of 1,000 keys, which take 0.5 MiB, whatever was written meanwhile
	stop := load(t, n)
	if err := n.ReadStale(func(*bbolt.Tx) error {
		timer := time.NewTimer(stays())
		defer timer.Stop()
		<-timer.C
		return nil
	}); err != nil {
		t.Error(err)
	}
	writes, gap := stop()
	size := n.Status().StateBytes
	if gap > maxGap || size > bound {
		t.Errorf("%d writes, none for %v (at most %v); the file has %d bytes (at most %d)", writes, gap, maxGap, size, bound)
	}
	t.Logf("a reader that stayed %v: %d writes, none for %v at most; the file has %d KiB", stays(), writes, gap, size>>10)
}

// A snapshot that a peer is slow to take stalls no write.
func TestSlowSnapshotUnderLoad(t *testing.T) {
	w, dirs, nodes := three(t)
	leader := leaderOf(t, nodes)
	away := "a"
	if leader.Identity().Name == "a" {
		away = "b"
	}
	nodes[away].stop()
	for i := range 120 { // the log is cut
		write(t, leader, fmt.Sprint("w", i))
	}
	held, release := make(chan struct{}), make(chan struct{})
	w.mu.Lock()
	w.held, w.release = sync.OnceFunc(func() { close(held) }), release
	w.mu.Unlock()
	back := start(t, w, dirs[away], away)
	<-held
	stop := load(t, leader)
	timer := time.NewTimer(stays())
	<-timer.C
	writes, gap := stop()
	if has(back, "w119") {
		t.Error("the snapshot was not held back")
	}
	close(release)
	if gap > maxGap {
		t.Errorf("%d writes, none for %v (at most %v)", writes, gap, maxGap)
	}
	until(t, "the peer has caught up", func() bool { return has(back, "w119") })
	t.Logf("a snapshot that took %v: %d writes, none for %v at most; the file has %d KiB", stays(), writes, gap, leader.Status().StateBytes>>10)
}
