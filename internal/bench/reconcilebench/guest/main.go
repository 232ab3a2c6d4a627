// Command guest is the part of the benchmark that runs in user-mode Linux.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/ipvskit/ipvskit/internal/bench/reconcilebench"
)

func main() {
	rounds := flag.Int("rounds", 3, "how many rounds to take the median of")
	flag.Parse()
	if err := reconcilebench.Guest(context.Background(), *rounds, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
