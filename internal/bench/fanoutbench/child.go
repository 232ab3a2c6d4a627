package fanoutbench

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/ipvskit/ipvskit/internal/bench/child"
)

// childEnv carries a job to a child process.
const childEnv = "IPVSKIT_FANOUT_CHILD"

// job is what a child process does.
type job struct {
	Role    string // servers or agents
	Kind    string
	Dir     string // of the data and the key
	Agents  int
	Changes int
	Storm   bool // at the end one server dies
	Cluster uint64
}

// Child does the work of a child process, if this is one, and does not return
// then. A program that calls Run calls it first.
func Child() {
	var j job
	is, err := child.Job(childEnv, &j)
	if !is {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err == nil {
		switch j.Role {
		case "servers":
			err = j.servers(ctx)
		case "agents":
			err = j.agents(ctx)
		default:
			err = fmt.Errorf("no such role: %q", j.Role)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fanout %s of %s: %v\n", j.Role, j.Kind, err)
		os.Exit(1)
	}
	os.Exit(0)
}
