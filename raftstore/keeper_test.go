package raftstore

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A burst leaves no more in the log, and so in memory, than what is kept for
// followers, once nothing is applied any more; and that is bounded by bytes,
// however few entries it is.
func TestLogIsCutAtRest(t *testing.T) {
	const command = 2 << 10
	s, err := Open(Config{
		Dir: t.TempDir(), StateMachines: map[string]StateMachine{"sim": simMachine{}},
		TickInterval: 5 * time.Millisecond, SnapshotBytes: 64 * command,
	})
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	must(t, s.WaitReady(ctx))
	const kept = 64 * command / trailingShare
	most := int64(0)
	for i := range 40 { // less than makes a checkpoint due
		_, _, err := s.Machine("sim").Propose(ctx, []byte(fmt.Sprint(i, "=", strings.Repeat("x", command))))
		must(t, err)
		most = max(most, s.logs.bytes.Load())
	}
	if most <= kept {
		t.Errorf("the burst left %d bytes in the log: nothing was tried", most)
	}
	for end := time.Now().Add(20 * time.Second); s.logs.bytes.Load() > kept; {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of log are kept at rest; want at most %d", s.logs.bytes.Load(), kept)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if first, err := s.logs.FirstIndex(); err != nil || first > s.state.lastCheckpoint().Index+1 {
		t.Errorf("the log begins at %d, %v, and the state is durable up to %d", first, err, s.state.lastCheckpoint().Index)
	}
	stop()
	must(t, <-ended)
	must(t, s.Close())
}
