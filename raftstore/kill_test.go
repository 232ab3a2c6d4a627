//go:build unix

package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

// killedDir in the environment makes this test binary a process that is to be
// killed: see TestKilled.
const killedDir = "RAFTSTORE_KILLED_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// writeUntilKilled writes numbers from several callers and prints each that was
// acknowledged.
func writeUntilKilled(dir string) error {
	s, err := Open(Config{Dir: dir, StateMachines: map[string]StateMachine{"sim": simMachine{}}, SnapshotEntries: 200, TrailingEntries: 20})
	if err != nil {
		return err
	}
	boot := s.node.Boot
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d.%d.%d", boot, w, i)
				if _, _, err := s.Machine("sim").Propose(context.Background(), []byte(key+"=x")); err == nil {
					fmt.Println("acked", key)
				}
			}
		}()
	}
	return s.Run(context.Background())
}

// INV-1: a real process on real files, killed at random under load: nothing that
// was acknowledged is lost, and nothing is applied twice. RAFTSTORE_KILLS says
// how often.
func TestKilled(t *testing.T) {
	kills := 5
	if text := os.Getenv("RAFTSTORE_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	var acked []string
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedDir+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		after := 50 + rand.IntN(300)
		for n := 0; lines.Scan(); n++ {
			key, ok := strings.CutPrefix(lines.Text(), "acked ")
			if !ok {
				t.Fatalf("the process says %q", lines.Text())
			}
			acked = append(acked, key)
			if n == after {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // it was killed
	}
	began := time.Now()
	s, err := Open(Config{Dir: dir, StateMachines: map[string]StateMachine{"sim": simMachine{}}})
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	awaitLeading(t, s, true)
	must(t, s.Read(t.Context(), func(tx *bbolt.Tx) error {
		for _, key := range acked {
			if got := string(tx.Bucket(simBucket).Get([]byte(key))); got != "x#1" {
				return fmt.Errorf("%s was acknowledged and is %q, want \"x#1\"", key, got)
			}
		}
		return nil
	}))
	t.Logf("%d kills, %d writes acknowledged, all there once; last start %v", kills, len(acked), time.Since(began))
	must(t, s.Close())
	must(t, <-done)
	if _, err := Check(dir); err != nil {
		t.Error(err)
	}
}
