package raftstore

import (
	crand "crypto/rand"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

var (
	simSeed = flag.Uint64("seed", 0, "run this seed of the simulation alone (0: several)")
	soak    = flag.Duration("soak", 0, "how long to simulate, one seed after the other")
)

// simulate runs one seed and returns the hash of everything that happened.
func simulate(seed uint64, broken breakage, ops, faults int) (s *sim, err error) {
	dir, err := os.MkdirTemp("", "raftstore-sim")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	reader := crand.Reader
	defer func() { crand.Reader = reader }()
	if s, err = newSim(dir, seed, broken); err != nil {
		return nil, err
	}
	defer s.close() // the run is judged by what comes before
	if err := s.run(ops, faults); err != nil {
		return s, err
	}
	return s, s.history.check()
}

func (s *sim) summary() string {
	return fmt.Sprintf("seed %d: %d steps, %d operations, %d faults, %d crashes, %d terms, %d snapshots installed, %d membership changes, trace %016x",
		s.seed, s.step, s.history.len(), s.faults, s.crashes, len(s.leaders), s.snapshots, s.changes, s.trace.Sum64())
}

// INV-1 to INV-6: whole clusters with faults between any two steps, histories
// checked for linearizability. A failure names its seed: -seed runs it again.
func TestSimulation(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	if *simSeed != 0 {
		seeds = []uint64{*simSeed}
	}
	for _, seed := range seeds {
		s, err := simulate(seed, intact, 500, 10)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		t.Log(s.summary())
	}
}

// The same seed gives the same run.
func TestSimulationRepeats(t *testing.T) {
	var hashes []uint64
	for range 2 {
		s, err := simulate(7, intact, 300, 8)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, s.trace.Sum64())
	}
	if hashes[0] != hashes[1] {
		t.Errorf("the same seed gave the traces %016x and %016x", hashes[0], hashes[1])
	}
}

// TestSimulationSoak runs seed after seed for as long as -soak or
// RAFTSTORE_SOAK says.
func TestSimulationSoak(t *testing.T) {
	d := *soak
	if text := os.Getenv("RAFTSTORE_SOAK"); d == 0 && text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	first := uint64(1000)
	if text := os.Getenv("RAFTSTORE_SEED"); text != "" {
		var err error
		if first, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	runs, ops, faults := 0, 0, 0
	for end := time.Now().Add(d); time.Now().Before(end); runs++ {
		seed := first + uint64(runs)
		s, err := simulate(seed, intact, 2000, 20)
		if err != nil {
			t.Fatalf("after %d runs, seed %d: %v", runs, seed, err)
		}
		ops += s.history.len()
		faults += s.faults
	}
	t.Logf("%d runs, %d faults, %d operations checked", runs, faults, ops)
}

// The simulation notices what it is there for: each breakage within 100 seeds.
func TestSimulationNoticesBreakage(t *testing.T) {
	for name, broken := range map[string]breakage{
		"acknowledge before the sync":          lyingDisk,
		"forget what is applied":               forgetsApplied,
		"answer reads without asking a quorum": skipsReadQuorum,
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				if _, err := simulate(seed+1, broken, 500, 20); err != nil {
					t.Logf("seed %d: %v", seed+1, err)
					return
				}
			}
			t.Error("not noticed within 100 seeds")
		})
	}
}
