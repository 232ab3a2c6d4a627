package raftbench

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/child"
	"github.com/ipvskit/ipvskit/internal/bench/figures"
)

// order is what a process that runs one node is asked to do.
type order struct {
	Do      string // look | load | put | get | settle
	Keys    int
	Callers int
	For     time.Duration
}

// report is what it answers.
type report struct {
	Err     string // why it could not; empty: it did
	Leading bool
	Term    uint64
	CPU     time.Duration // that this process has used
	Rate    rate          // of put and get, without CPU
	Memory  uint64        // of settle: bytes got from the system
}

// serve runs one node and does what standard input asks for, until that ends.
func (j job) serve(k kind) error {
	n, err := k.open(j.Place)
	if err != nil {
		return err
	}
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return n.Close()
		} else if err != nil {
			return err
		}
		r, err := o.carryOut(n)
		if err != nil {
			r.Err = err.Error()
		}
		r.Leading, r.Term, r.CPU = n.Leading(), n.Term(), cpuTime()
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

func (o order) carryOut(n node) (r report, err error) {
	value := make([]byte, valueSize)
	switch o.Do {
	case "look":
	case "load":
		err = load(n, o.Keys)
	case "put":
		r.Rate, err = drive(o.Callers, o.For, func(ctx context.Context, r *rand.Rand) error {
			return n.Put(ctx, keyOf(r.IntN(o.Keys)), value)
		})
	case "get":
		r.Rate, err = drive(o.Callers, o.For, func(ctx context.Context, r *rand.Rand) error {
			return n.Get(ctx, keyOf(r.IntN(o.Keys)))
		})
	case "settle":
		_, r.Memory = figures.Settled()
	default:
		err = fmt.Errorf("no such order: %q", o.Do)
	}
	return r, err
}

// cluster is three processes with a node each; the callers are in that of the node
// that they call, as in a program that embeds it.
type cluster struct {
	members []*child.Process // the leader first
	keys    int
	during  time.Duration // of each measurement
}

func openCluster(ctx context.Context, k kind, dir string) (*cluster, error) {
	ps, err := places(dir, 3)
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	for _, p := range ps {
		m, err := child.Start(ctx, childEnv, job{Kind: k.name, Task: "serve", Place: p})
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.members = append(c.members, m)
	}
	if err := c.findLeader(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// findLeader waits for one and puts it first.
func (c *cluster) findLeader() (err error) {
	waited := await("a leader", func() bool {
		for i := range c.members {
			var r report
			if r, err = c.ask(i, order{Do: "look"}); err != nil {
				return true
			}
			if r.Leading {
				c.members[0], c.members[i] = c.members[i], c.members[0]
				return true
			}
		}
		return false
	})
	return errors.Join(err, waited)
}

func (c *cluster) close() error {
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.Finish())
	}
	return errors.Join(errs...)
}

func (c *cluster) ask(member int, o order) (report, error) {
	o.Keys, o.For = c.keys, cmp.Or(o.For, c.during)
	var r report
	if err := c.members[member].Ask(o, &r); err != nil {
		return r, fmt.Errorf("node %d: %w", member, err)
	}
	if r.Err != "" {
		return r, fmt.Errorf("node %d: %s", member, r.Err)
	}
	return r, nil
}

// cpu is what all members have used.
func (c *cluster) cpu() (sum time.Duration, err error) {
	for i := range c.members {
		r, err := c.ask(i, order{Do: "look"})
		if err != nil {
			return 0, err
		}
		sum += r.CPU
	}
	return sum, nil
}

// rate has a member do something from many callers.
func (c *cluster) rate(member int, o order) (rate, error) {
	before, err := c.cpu()
	if err != nil {
		return rate{}, err
	}
	r, err := c.ask(member, o)
	if err != nil {
		return rate{}, err
	}
	after, err := c.cpu()
	if err != nil {
		return rate{}, err
	}
	r.Rate.CPU = float64((after - before).Microseconds()) / float64(max(1, r.Rate.Done))
	return r.Rate, nil
}

// result is what one cluster gave.
type result struct {
	Writes       map[int]rate // by callers
	ReadLeader   rate
	ReadFollower rate
	Memory       uint64 // bytes at rest, all three processes
	Elections    uint64 // while 512 callers and two busy loops had the machine
}

// writes measures the writes of a cluster that has all keys.
func (c *cluster) writes(callers []int) (map[int]rate, error) {
	if _, err := c.ask(0, order{Do: "load"}); err != nil {
		return nil, err
	}
	rates := map[int]rate{}
	for _, n := range callers {
		if _, err := c.ask(0, order{Do: "put", Callers: n, For: c.during / 4}); err != nil { // warm
			return nil, err
		}
		r, err := c.rate(0, order{Do: "put", Callers: n})
		if err != nil {
			return nil, err
		}
		rates[n] = r
	}
	return rates, nil
}

// all measures everything.
func (c *cluster) all(k kind, callers []int) (r result, err error) {
	if r.Writes, err = c.writes(callers); err != nil {
		return r, err
	}
	if r.Elections, err = c.elections(); err != nil {
		return r, err
	}
	if r.ReadLeader, err = c.rate(0, order{Do: "get", Callers: readers}); err != nil {
		return r, err
	}
	if k.followerReads {
		if r.ReadFollower, err = c.rate(1, order{Do: "get", Callers: readers}); err != nil {
			return r, err
		}
	}
	for i := range c.members {
		m, err := c.ask(i, order{Do: "settle"})
		if err != nil {
			return r, err
		}
		r.Memory += m.Memory
	}
	return r, nil
}

// elections counts those that are held because the machine has much to do: none
// should be.
func (c *cluster) elections() (uint64, error) {
	before, err := c.ask(0, order{Do: "look"})
	if err != nil {
		return 0, err
	}
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			for n := uint64(1); !stop.Load(); n = n*2862933555777941757 + 1 {
			}
		})
	}
	after, err := c.ask(0, order{Do: "put", Callers: 512})
	stop.Store(true)
	busy.Wait()
	return after.Term - before.Term, err
}
