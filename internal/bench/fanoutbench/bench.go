package fanoutbench

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/ipvskit/ipvskit/internal/bench/child"
	"github.com/ipvskit/ipvskit/internal/bench/figures"
)

// Run measures both kinds and prints a table and ratios.
func Run(ctx context.Context, o figures.Options) error {
	sizes := []int{1000, 10000}
	if o.Quick {
		sizes = sizes[:1]
	}
	// Each agent is a connection, and some files for all else.
	if err := allowFiles(sizes[len(sizes)-1] + 1000); err != nil {
		return err
	}
	fmt.Printf("three servers in one process, %d services of %d backends, a change is one weight of one backend;\n"+
		"agents in another process, each with a TLS connection to one server, which the storm kills\n", services, backends)
	for _, n := range sizes {
		rounds := 3
		if o.Quick || n > 1000 {
			rounds = 1
		}
		results := map[string][]result{}
		for range rounds {
			for _, kind := range kindsNow() {
				r, err := once(ctx, kind, n, o)
				if err != nil {
					return fmt.Errorf("%s with %d agents: %w", kind, n, err)
				}
				results[kind] = append(results[kind], r)
			}
		}
		print(n, results)
	}
	return nil
}

// allowFiles raises the limit of open files for this process and its children.
func allowFiles(want int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Cur >= uint64(want) {
		return nil
	}
	l.Cur, l.Max = uint64(want), max(l.Max, uint64(want)) // root may raise both
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("%d open files are needed: raise the limit, as by ulimit -Hn %d: %w", want, want, err)
	}
	return nil
}

func once(ctx context.Context, kind string, n int, o figures.Options) (result, error) {
	var r result
	dir, err := os.MkdirTemp("", "fanoutbench")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	changes := 50
	if o.Quick || n > 1000 {
		changes = 20
	}
	err = child.Result(ctx, childEnv, job{Role: "servers", Kind: kind, Dir: dir, Agents: n, Changes: changes, Storm: true}, &r)
	return r, err
}

func print(n int, results map[string][]result) {
	median := func(kind string, of func(result) float64) float64 {
		var vs []float64
		for _, r := range results[kind] {
			vs = append(vs, of(r))
		}
		return figures.Median(vs)
	}
	fmt.Printf("\n%d agents %44s %12s\n", n, oursKind, etcdKind)
	for _, f := range []struct {
		name, what string // what is empty: no ratio
		of         func(result) float64
	}{
		{"ms to p50 of agents", "p50", func(r result) float64 { return figures.Quantile(r.Latency, 0.5) }},
		{"ms to p99 of agents", "p99", func(r result) float64 { return figures.Quantile(r.Latency, 0.99) }},
		{"bytes on the wire a change and agent", "wire", func(r result) float64 { return r.Wire }},
		{"bytes of the full list", "", func(r result) float64 { return float64(r.List) }},
		{"ms of the servers' CPU a change", "cpu", func(r result) float64 { return r.CPU }},
		{"KiB of memory an agent", "memory", func(r result) float64 { return r.PerAgent / 1024 }},
		{"s until all are connected", "connect", func(r result) float64 { return r.Connect }},
		{"s of a storm", "storm", func(r result) float64 { return r.Storm }},
		{"MiB more at the storm's peak", "storm-memory", func(r result) float64 { return r.Peak / (1 << 20) }},
	} {
		fmt.Printf("  %-42s %12.2f %12.2f\n", f.name, median(oursKind, f.of), median(etcdKind, f.of))
		if f.what != "" {
			defer figures.Less(os.Stdout, fmt.Sprintf("fanout/%s/%d/%s", f.what, n, etcdKind), median(oursKind, f.of), median(etcdKind, f.of))
		}
	}
	poll := median(oursKind, func(r result) float64 { return float64(r.List) })
	defer figures.Less(os.Stdout, fmt.Sprintf("fanout/wire/%d/polled-list", n), median(oursKind, func(r result) float64 { return r.Wire }), poll)
	fmt.Println()
}

func kindsNow() []string {
	if os.Getenv("FANOUT_OURS") != "" {
		return []string{oursKind}
	}
	return []string{oursKind, etcdKind}
}
