// Command worker is a process of the health-check benchmark: the engine, the
// targets that it checks, or a busy loop. It takes one job as JSON in its
// argument, and ends with its standard input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: worker JOB")
	}
	var j job.Job
	if err := json.Unmarshal([]byte(os.Args[1]), &j); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	switch j.Task {
	case "serve":
		return serve(in)
	case "busy":
		var over atomic.Bool
		go func() {
			for in.Scan() {
			}
			over.Store(true)
		}()
		for !over.Load() {
		}
		return nil
	case "check":
		return check(j, in)
	case "idle":
		return idle(j)
	}
	return fmt.Errorf("no task %q", j.Task)
}

// tell writes one line of JSON.
func tell(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
