package raftbench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/child"
	"github.com/ipvskit/ipvskit/internal/bench/figures"
)

// usualCallers is how many write at once where nothing else is asked for.
var usualCallers = []int{1, 16, 128, 512}

// readers is how many callers read at once.
const readers = 128

// Run measures all kinds and prints tables and ratios.
func Run(ctx context.Context, o figures.Options) error {
	whole := o.Keys == 0
	o.Keys = cmp.Or(o.Keys, keySpace)
	if len(o.Callers) == 0 {
		o.Callers = usualCallers
	}
	measured := slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool {
		return k.name != ours.name && len(o.Only) > 0 && !slices.Contains(o.Only, k.name)
	})
	dir, err := os.MkdirTemp("", "raftbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	raw, err := rawSync(dir)
	if err != nil {
		return err
	}
	fmt.Printf("three nodes in processes of their own, 256-byte commands to keys uniform over %d, loopback TCP\nraw disk: %.0f writes of 4 KiB, each synced, a second\n\n", o.Keys, raw)
	for _, k := range measured {
		fmt.Printf("%-18s %s\n", k.name, k.settings)
	}
	b := &bench{dir: dir, o: o, kinds: measured, whole: whole, results: map[string][]result{}, failovers: map[string][]float64{}, restarts: map[string][]float64{}}
	for round := range 3 {
		for _, k := range measured {
			fmt.Fprintf(os.Stderr, "round %d of 3: %s\n", round+1, k.name)
			if err := b.measure(ctx, k, round); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
		}
	}
	b.print()
	if !o.Quick && whole {
		return b.sizes(ctx)
	}
	return nil
}

type bench struct {
	dir       string
	o         figures.Options
	kinds     []kind // that are measured, ours first
	whole     bool   // failover and restart too
	n         int
	results   map[string][]result // by kind, of each round
	failovers map[string][]float64
	restarts  map[string][]float64
}

func (b *bench) fresh() string {
	b.n++
	d := filepath.Join(b.dir, fmt.Sprint(b.n))
	_ = os.MkdirAll(d, 0o700) // whoever uses it says that it is missing
	return d
}

func (b *bench) duration() time.Duration {
	if b.o.Quick {
		return 300 * time.Millisecond
	}
	return 3 * time.Second
}

func (b *bench) measure(ctx context.Context, k kind, round int) error {
	dir := b.fresh()
	defer os.RemoveAll(dir)
	c, err := b.cluster(ctx, k, dir, b.o.Keys)
	if err != nil {
		return err
	}
	r, err := c.all(k, b.o.Callers)
	if err := errors.Join(err, c.close()); err != nil {
		return err
	}
	b.results[k.name] = append(b.results[k.name], r)
	if !b.whole || b.o.Quick && round > 0 {
		return nil
	}
	d, err := failover(ctx, k, b.fresh())
	if err != nil {
		// On a busy machine a port that was free may be taken, or a process starved.
		fmt.Fprintf(os.Stderr, "%s: failover is tried again: %v\n", k.name, err)
		if d, err = failover(ctx, k, b.fresh()); err != nil {
			return err
		}
	}
	b.failovers[k.name] = append(b.failovers[k.name], d.Seconds()*1e3)
	if k.name == etcdClient.name {
		return nil // the same server
	}
	var seconds float64
	err = child.Result(ctx, childEnv, job{Kind: k.name, Task: "restart", Dir: b.fresh(), Entries: 100_000}, &seconds)
	b.restarts[k.name] = append(b.restarts[k.name], seconds)
	return err
}

func (b *bench) cluster(ctx context.Context, k kind, dir string, keys int) (*cluster, error) {
	c, err := openCluster(ctx, k, dir)
	if err != nil {
		return nil, err
	}
	c.keys, c.during = keys, b.duration()
	return c, nil
}

func (b *bench) median(kind string, of func(result) float64) float64 {
	var vs []float64
	for _, r := range b.results[kind] {
		vs = append(vs, of(r))
	}
	return figures.Median(vs)
}

func (b *bench) print() {
	for _, c := range b.o.Callers {
		fmt.Printf("\n%d callers %25s %10s %10s %14s\n", c, "writes/s", "p50 ms", "p99 ms", "CPU µs/write")
		for _, k := range b.kinds {
			fmt.Printf("  %-20s %12.0f %10.2f %10.2f %14.1f\n", k.name,
				b.median(k.name, func(r result) float64 { return r.Writes[c].PerSecond }),
				b.median(k.name, func(r result) float64 { return r.Writes[c].P50 })/1e3,
				b.median(k.name, func(r result) float64 { return r.Writes[c].P99 })/1e3,
				b.median(k.name, func(r result) float64 { return r.Writes[c].CPU }))
		}
	}
	fmt.Printf("\n%-18s %14s %16s %12s %12s %12s %16s\n", "", "leader reads/s", "follower reads/s", "failover ms", "restart s", "memory MiB", "false elections")
	for _, k := range b.kinds {
		fmt.Printf("%-18s %14.0f %16.0f %12.1f %12.3f %12.1f %16d\n", k.name, b.leader(k), b.follower(k),
			figures.Median(b.failovers[k.name]), figures.Median(b.restarts[k.name]), b.memory(k)/(1<<20), b.elections(k))
	}
	fmt.Println()
	for _, k := range b.kinds[1:] {
		for _, c := range b.o.Callers {
			of := func(name string, f func(rate) float64) float64 {
				return b.median(name, func(r result) float64 { return f(r.Writes[c]) })
			}
			perSecond, p99 := func(r rate) float64 { return r.PerSecond }, func(r rate) float64 { return r.P99 }
			figures.More(os.Stdout, fmt.Sprintf("raft/write/%d/%s", c, k.name), of(ours.name, perSecond), of(k.name, perSecond))
			figures.Less(os.Stdout, fmt.Sprintf("raft/write-p99/%d/%s", c, k.name), of(ours.name, p99), of(k.name, p99))
		}
		figures.More(os.Stdout, fmt.Sprintf("raft/read-linearizable/%d/%s", readers, k.name), b.leader(ours), b.leader(k))
		if b.whole {
			figures.Less(os.Stdout, "raft/failover/1/"+k.name, figures.Median(b.failovers[ours.name]), figures.Median(b.failovers[k.name]))
		}
		if len(b.restarts[k.name]) > 0 {
			figures.Less(os.Stdout, "raft/restart/1/"+k.name, figures.Median(b.restarts[ours.name]), figures.Median(b.restarts[k.name]))
		}
		figures.Less(os.Stdout, "raft/memory/1/"+k.name, b.memory(ours), b.memory(k))
		// One more of each: none is what is wanted.
		figures.Less(os.Stdout, "raft/false-elections/512/"+k.name, float64(b.elections(ours)+1), float64(b.elections(k)+1))
	}
}

func (b *bench) leader(k kind) float64 {
	return b.median(k.name, func(r result) float64 { return r.ReadLeader.PerSecond })
}

func (b *bench) follower(k kind) float64 {
	return b.median(k.name, func(r result) float64 { return r.ReadFollower.PerSecond })
}

func (b *bench) memory(k kind) float64 {
	return b.median(k.name, func(r result) float64 { return float64(r.Memory) })
}

// elections are those of all rounds.
func (b *bench) elections(k kind) (n uint64) {
	for _, r := range b.results[k.name] {
		n += r.Elections
	}
	return n
}

// sizes measures how the cost of a write grows with the size of the state.
func (b *bench) sizes(ctx context.Context) error {
	fmt.Printf("\nwrites/s by size of the state\n%-10s", "keys")
	for _, k := range []kind{ours, etcd} {
		fmt.Printf(" %14s/128 %14s/512", k.name, k.name)
	}
	fmt.Println()
	for _, keys := range []int{1_000, 100_000, 1_000_000} {
		fmt.Printf("%-10d", keys)
		for _, k := range []kind{ours, etcd} {
			c, err := b.cluster(ctx, k, b.fresh(), keys)
			if err != nil {
				return err
			}
			writes, err := c.writes([]int{128, 512})
			if err := errors.Join(err, c.close()); err != nil {
				return err
			}
			fmt.Printf(" %18.0f %18.0f", writes[128].PerSecond, writes[512].PerSecond)
		}
		fmt.Println()
	}
	return nil
}
