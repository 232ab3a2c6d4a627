// Command bench measures ipvskit beside its rivals, both in one run:
//
//	go run . [-quick] SUBJECT
//	go run . [-quick] [-keys N] [-only KINDS] [-callers N,N] raft
//
// Each subject prints a table, and for each figure a line
// `ratio <subject>/<what> <number>`; above 1 means that ours is better, for
// times and memory too. Machines are noisy: figures are medians of interleaved
// rounds, and the ratio is what to quote.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"github.com/ipvskit/ipvskit/internal/bench/fanoutbench"
	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/internal/bench/healthbench"
	"github.com/ipvskit/ipvskit/internal/bench/raftbench"
	"github.com/ipvskit/ipvskit/internal/bench/reconcilebench"
	"github.com/ipvskit/ipvskit/internal/bench/statebench"
)

// subjects maps a word on the command line to what it runs.
var subjects = map[string]func(context.Context, figures.Options) error{
	"fanout":    fanoutbench.Run,
	"health":    healthbench.Run,
	"raft":      raftbench.Run,
	"reconcile": func(ctx context.Context, o figures.Options) error { return reconcilebench.Run(ctx, o.Quick, os.Stdout) },
	"state":     statebench.Run,
}

func main() {
	raftbench.Child()
	fanoutbench.Child()
	quick := flag.Bool("quick", false, "a short run, of one to two minutes")
	keys := flag.Int("keys", 0, "raft: measure writes and reads alone, with so many keys")
	only := flag.String("only", "", "raft: measure these alone, as in raftstore,etcd")
	var callers []int
	flag.Func("callers", "raft: so many write at once, as in 1,128", func(text string) error {
		for _, one := range strings.Split(text, ",") {
			n, err := strconv.Atoi(one)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is not a number of callers", one)
			}
			callers = append(callers, n)
		}
		return nil
	})
	flag.Usage = usage
	flag.Parse()
	run := subjects[flag.Arg(0)]
	if flag.NArg() != 1 || run == nil {
		usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o := figures.Options{Quick: *quick, Keys: *keys, Callers: callers}
	o.Only = strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	var names []string
	for name := range subjects {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(os.Stderr, "usage: go run . [-quick] [-keys N] [-only KINDS] [-callers N,N] %s\n", strings.Join(names, "|"))
}
