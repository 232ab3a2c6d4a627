package raftbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/child"
)

// job is what a child process is told to do.
type job struct {
	Kind    string
	Task    string // serve | restart | node
	Dir     string // of restart
	Entries int    // of restart
	Place   place  // of serve and node
}

// childEnv carries a job to a child process.
const childEnv = "IPVSKIT_BENCH_JOB"

// profileEnv names a directory that gets a CPU profile of each child.
const profileEnv = "IPVSKIT_BENCH_PROFILES"

// Child does the work of a child process, if this is one, and does not return
// then. A program that calls Run calls it first.
func Child() {
	var j job
	is, err := child.Job(childEnv, &j)
	if !is {
		return
	}
	if err == nil {
		err = j.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s of %s: %v\n", j.Task, j.Kind, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (j job) run() error {
	k, err := kindNamed(j.Kind)
	if err != nil {
		return err
	}
	if dir := os.Getenv(profileEnv); dir != "" {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%s%d.cpu", j.Kind, j.Task, j.Place.Self)))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch j.Task {
	case "serve":
		return j.serve(k)
	case "restart":
		seconds, err := j.restart(k)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(seconds)
	case "node":
		return j.node(k)
	default:
		return fmt.Errorf("no such task: %q", j.Task)
	}
}

// places picks free ports below those that systems give to outgoing connections:
// a node that starts again needs its own.
func places(dir string, n int) ([]place, error) {
	var addrs []string
	for tries := 0; len(addrs) < 2*n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 15_000+rand.IntN(15_000)))
		if err != nil {
			if tries > 100 {
				return nil, err
			}
			continue
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	ps := make([]place, n)
	for i := range ps {
		ps[i] = place{Dir: dir, Self: i, Peers: addrs[:n], Client: addrs[n:]}
	}
	return ps, nil
}

// await polls: what is measured is not to be disturbed by more than that.
func await(what string, ok func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return nil
		}
	}
	return fmt.Errorf("not within 30 s: %s", what)
}

// restart measures the time from opening a cluster of one to having applied
// all that its log holds.
func (j job) restart(k kind) (float64, error) {
	p, err := places(j.Dir, 1)
	if err != nil {
		return 0, err
	}
	n, err := k.open(p[0])
	if err != nil {
		return 0, err
	}
	if err := await("a leader", n.Leading); err != nil {
		return 0, err
	}
	if err := fill(n, keySpace, j.Entries); err != nil {
		return 0, err
	}
	last := []byte("key/the-last-one")
	if err := n.Put(context.Background(), last, []byte("written")); err != nil {
		return 0, err
	}
	if err := n.Close(); err != nil {
		return 0, err
	}
	start := time.Now()
	if n, err = k.open(p[0]); err != nil {
		return 0, err
	}
	defer n.Close()
	for time.Since(start) < time.Minute {
		if v, err := n.GetLocal(last); err == nil && string(v) == "written" {
			return time.Since(start).Seconds(), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, errors.New("the last write was not there a minute after the restart")
}
