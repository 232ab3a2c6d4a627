// Package child runs the benchmarks' child processes: the same program, told by
// its environment what to do.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Job reads what the variable env tells this process to do into job; false where
// it is no child.
func Job(env string, job any) (bool, error) {
	text := os.Getenv(env)
	if text == "" {
		return false, nil
	}
	return true, json.Unmarshal([]byte(text), job)
}

// Command is a child that is not started yet. Its errors go to standard error; it
// is killed when ctx ends.
func Command(ctx context.Context, env string, job any) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// Process is a child that answers one line of JSON to each line that it is sent.
// One goroutine at a time may use it.
type Process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	in    *json.Encoder
	out   *json.Decoder
}

// Start starts one.
func Start(ctx context.Context, env string, job any) (*Process, error) {
	cmd, err := Command(ctx, env, job)
	if err != nil {
		return nil, err
	}
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
	return &Process{cmd, in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}, nil
}

// Result runs one to its end and decodes the one line that it prints.
func Result(ctx context.Context, env string, job, result any) error {
	p, err := Start(ctx, env, job)
	if err != nil {
		return err
	}
	if err := p.out.Decode(result); err != nil {
		return errors.Join(fmt.Errorf("no result: %w", err), p.End())
	}
	return p.Finish()
}

// Ask sends a line and reads the answer.
func (p *Process) Ask(question, answer any) error {
	if err := p.in.Encode(question); err != nil {
		return err
	}
	return p.out.Decode(answer)
}

// Finish ends its standard input and waits until it has ended by itself.
func (p *Process) Finish() error {
	return errors.Join(p.stdin.Close(), p.cmd.Wait())
}

// End kills it and waits until it is gone.
func (p *Process) End() error {
	err := p.cmd.Process.Kill()
	var exit *exec.ExitError
	if e := p.cmd.Wait(); e != nil && !errors.As(e, &exit) {
		err = errors.Join(err, e)
	}
	return err
}
