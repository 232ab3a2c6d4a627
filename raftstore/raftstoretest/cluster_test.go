package raftstoretest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/raftstoretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// set keeps commands as keys.
type set struct{}

var setBucket = []byte("set")

func (set) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists(setBucket)
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, c := range cmds {
		if b.Get(c) != nil {
			results[i] = errors.New("it is there already")
			continue
		}
		if err := b.Put(c, []byte{1}); err != nil {
			return nil, err
		}
	}
	return results, nil
}
func (set) Committed(uint64)         {}
func (set) Restored(*bbolt.Tx) error { return nil }

func machines(string) map[string]raftstore.StateMachine {
	return map[string]raftstore.StateMachine{"set": set{}}
}

func TestContract(t *testing.T) {
	var commands [][]byte
	for i := range 20 {
		commands = append(commands, fmt.Appendf(nil, "c%d", i%15))
	}
	raftstoretest.Contract(t, "set", func() raftstore.StateMachine { return set{} }, commands)
}

func lacks(s *raftstore.Store, keys []string) (missing string) {
	err := s.ReadStale(func(tx *bbolt.Tx) error {
		b := tx.Bucket(setBucket)
		for _, k := range keys {
			if b == nil || b.Get([]byte(k)) == nil {
				missing = k
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return missing
}

// INV-1, INV-2: writers on all nodes, while messages get lost, late and double,
// nodes lose power and are cut off: nothing acknowledged is lost, on any node.
func TestFaults(t *testing.T) {
	c := raftstoretest.New(t, raftstoretest.Options{StateMachines: machines, Configure: func(c *raftstore.Config) {
		c.SnapshotEntries, c.TrailingEntries = 100, 10
	}})
	c.Leader()
	c.Network.SetFaults(raftstoretest.Faults{Drop: 0.02, Duplicate: 0.02, Delay: 3 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex // guards acked
	var acked []string
	var writers sync.WaitGroup
	for w := range 6 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				s := c.Nodes()[w%3].Store()
				if s == nil {
					continue
				}
				key := fmt.Sprintf("w%d.%d", w, i)
				once, stop := context.WithTimeout(ctx, time.Second)
				result, _, err := s.Machine("set").Propose(once, []byte(key))
				stop()
				if err == nil && result == nil {
					mu.Lock()
					acked = append(acked, key)
					mu.Unlock()
				} else if err == nil {
					t.Errorf("%s was applied twice", key)
				}
			}
		})
	}
	written := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 8 {
		n := c.Nodes()[rng.IntN(3)]
		before := written()
		switch round % 4 {
		case 0, 2:
			n.Crash()
		case 1:
			c.Network.Partition(n.Name)
		case 3:
			n.SlowDisk(5 * time.Millisecond)
		}
		c.Until("the others go on", func() bool { return written() > before+20 })
		c.Network.Heal()
		n.SlowDisk(0)
		n.Start()
	}
	cancel()
	writers.Wait()
	c.Network.SetFaults(raftstoretest.Faults{})
	for _, n := range c.Nodes() {
		c.Until(n.Name+" has everything that was acknowledged", func() bool { return lacks(n.Store(), acked) == "" })
	}
	t.Logf("%d writes acknowledged", len(acked))
}

// A node whose disk fails stops and says why; the others go on.
func TestFailingDisk(t *testing.T) {
	c := raftstoretest.New(t, raftstoretest.Options{StateMachines: machines})
	leader := c.Leader()
	leader.FailDisk(syscall.ENOSPC)
	_, _, err := leader.Store().Machine("set").Propose(t.Context(), []byte("x"))
	if err == nil {
		t.Error("a write was acknowledged by a node whose disk is full")
	}
	c.Until("the reason is told", func() bool { return errors.Is(leader.Store().Err(), syscall.ENOSPC) })
	var others []*raftstoretest.Node
	for _, n := range c.Nodes() {
		if n != leader {
			others = append(others, n)
		}
	}
	c.Until("the others go on", func() bool {
		_, _, err := others[0].Store().Machine("set").Propose(t.Context(), []byte("y"))
		return err == nil
	})
}

// A fourth node is taken in, and catches up with a log that was cut.
func TestAdd(t *testing.T) {
	c := raftstoretest.New(t, raftstoretest.Options{StateMachines: machines})
	leader := c.Leader()
	var keys []string
	for i := range 50 {
		keys = append(keys, fmt.Sprint("k", i))
		if _, _, err := leader.Store().Machine("set").Propose(t.Context(), []byte(keys[i])); err != nil {
			t.Fatal(err)
		}
	}
	if err := leader.Store().Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := c.Add()
	id := n.Store().Identity()
	m, err := leader.Store().AddMember(t.Context(), raftstore.Member{Name: id.Name, RaftAddr: id.RaftAddr, HTTPAddr: id.HTTPAddr, Incarnation: id.Incarnation})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Store().Join(m); err != nil {
		t.Fatal(err)
	}
	c.Until("the new node votes and has everything", func() bool {
		return n.Store().Status().Role == "follower" && lacks(n.Store(), keys) == ""
	})
}
