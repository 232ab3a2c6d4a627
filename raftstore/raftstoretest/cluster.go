package raftstoretest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

// Options says what a Cluster is. StateMachines is required.
type Options struct {
	Nodes int // that found it; default 3

	// StateMachines makes the state machines of a node. It is called at each start:
	// what a machine kept in memory must not survive a crash.
	StateMachines func(node string) map[string]raftstore.StateMachine

	Seed         uint64        // of the faults; default 1
	TickInterval time.Duration // default 10ms
	Logger       *zap.Logger   // nil: silent

	// Configure, where given, changes the Config of a node before it is opened.
	Configure func(*raftstore.Config)
}

// Cluster is a cluster in one process. It ends with its test.
type Cluster struct {
	Network *Network

	t     testing.TB
	o     Options
	dir   string
	nodes []*Node
}

// New makes a cluster of Options.Nodes nodes, named n0, n1 and so on, and starts
// them. The test fails if a node ends with an error that it was not made to have.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.TickInterval == 0 {
		o.TickInterval = 10 * time.Millisecond
	}
	c := &Cluster{Network: newNetwork(o.Seed), t: t, o: o, dir: t.TempDir()}
	founding := raftstore.Founding{Cluster: o.Seed}
	for i := range o.Nodes {
		n := c.Add()
		founding.Founders = append(founding.Founders, raftstore.Founder{
			Member: uint64(i + 1), Incarnation: n.Store().Identity().Incarnation, Name: n.Name, RaftAddr: n.Name + ":1", HTTPAddr: n.Name + ":2",
			Versions: n.Store().Identity().Versions,
		})
	}
	for _, n := range c.nodes {
		if err := n.Store().Found(founding); err != nil {
			t.Fatalf("%s: %v", n.Name, err)
		}
	}
	return c
}

// Add starts one more node, which belongs to no cluster yet: take it in by
// AddMember and Join.
func (c *Cluster) Add() *Node {
	c.t.Helper()
	name := fmt.Sprint("n", len(c.nodes))
	dir := filepath.Join(c.dir, name)
	n := &Node{Name: name, c: c, dir: dir, disk: simdisk.New(dir, c.o.Seed^uint64(len(c.nodes)))}
	c.nodes = append(c.nodes, n)
	n.Start()
	c.t.Cleanup(n.Stop)
	return n
}

// Nodes are all nodes that were ever started.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Leader waits until some node leads, and returns it.
func (c *Cluster) Leader() *Node {
	c.t.Helper()
	var leader *Node
	c.Until("a leader", func() bool {
		for _, n := range c.nodes {
			if s := n.Store(); s != nil {
				if leading, _, _ := s.Leadership(); leading {
					leader = n
					return true
				}
			}
		}
		return false
	})
	return leader
}

// Until waits for a condition, and fails the test after a minute.
func (c *Cluster) Until(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Node is one node of a Cluster.
type Node struct {
	Name string

	c    *Cluster
	dir  string
	disk *simdisk.FS

	mu    sync.Mutex // guards the fields below
	store *raftstore.Store
	done  chan error
	dead  bool // its disk was made to fail
}

// Store is the node's store, nil while the node is down.
func (n *Node) Store() *raftstore.Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.store
}

// Start starts a node that is down.
func (n *Node) Start() {
	n.c.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.store != nil {
		return
	}
	cfg := raftstore.Config{
		Dir: n.dir, Name: n.Name, RaftAddr: n.Name + ":1", HTTPAddr: n.Name + ":2",
		StateMachines: n.c.o.StateMachines(n.Name), TickInterval: n.c.o.TickInterval, Logger: n.c.o.Logger,
		Transport: &end{n: n.c.Network, name: n.Name, wake: make(chan struct{}, 1)},
	}
	if n.c.o.Configure != nil {
		n.c.o.Configure(&cfg)
	}
	s, err := raftstore.Open(cfg.OnDisk(n.disk))
	if err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	n.store, n.done, n.dead = s, make(chan error, 1), false
	go func() { n.done <- s.Run(context.Background()) }()
}

// Stop ends a node in order.
func (n *Node) Stop() { n.end(false) }

// Crash cuts the power of a node: what it has not synced may be lost, page by
// page. Start brings it back.
func (n *Node) Crash() { n.end(true) }

func (n *Node) end(crash bool) {
	n.c.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.store == nil {
		return
	}
	if crash {
		n.disk.Cut()
	}
	closed := n.store.Close()
	ran := <-n.done
	for _, err := range []error{closed, ran} {
		if err != nil && !crash && !n.dead && !errors.Is(err, raftstore.ErrRemoved) {
			n.c.t.Errorf("%s: %v", n.Name, err)
		}
	}
	n.store = nil
	n.disk.SetBefore(nil)
	if crash {
		if err := n.disk.Restart(); err != nil {
			n.c.t.Fatalf("%s: %v", n.Name, err)
		}
	}
}

// SlowDisk makes everything that becomes durable take that long in addition,
// until it is called with 0 or the node goes down.
func (n *Node) SlowDisk(by time.Duration) {
	n.disk.SetBefore(func(string, int) error {
		if by > 0 {
			timer := time.NewTimer(by)
			defer timer.Stop()
			<-timer.C
		}
		return nil
	})
}

// FailDisk makes everything that is to become durable fail with err; the node
// stops.
func (n *Node) FailDisk(err error) {
	n.mu.Lock()
	n.dead = true
	n.mu.Unlock()
	n.disk.SetBefore(func(string, int) error { return err })
}

// LyingDisk makes syncs answer and do nothing: with a crash that loses what was
// acknowledged. It shows whether a test would notice.
func (n *Node) LyingDisk(on bool) {
	if on {
		n.disk.Lie(func(string) bool { return true })
	} else {
		n.disk.Lie(nil)
	}
}
