package fanoutbench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
	text := os.Getenv(childEnv)
	if text == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var j job
	err := json.Unmarshal([]byte(text), &j)
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

// process is a child, which answers one line of JSON to each line that it is
// sent.
type process struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

func start(ctx context.Context, j job) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}, nil
}

// ask sends a line and reads the answer.
func (p *process) ask(question, answer any) error {
	if err := p.in.Encode(question); err != nil {
		return err
	}
	return p.out.Decode(answer)
}

func (p *process) end() error {
	err := p.cmd.Process.Kill()
	var exit *exec.ExitError
	if e := p.cmd.Wait(); e != nil && !errors.As(e, &exit) {
		err = errors.Join(err, e)
	}
	return err
}
