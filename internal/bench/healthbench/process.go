package healthbench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

// worker is a running process of ours.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// pinned is a command on one CPU.
func pinned(ctx context.Context, cpu int, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", strconv.Itoa(cpu), name}, args...)...)
	cmd.WaitDelay = time.Second
	return cmd
}

func (b *bench) work(ctx context.Context, cpu int, j job.Job) (*worker, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: pinned(ctx, cpu, b.exe, string(text))}
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	return w, w.cmd.Start()
}

// read waits for a line.
func (w *worker) read(v any) error {
	line, err := w.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("a worker ended early: %w", err)
	}
	return json.Unmarshal(line, v)
}

func (w *worker) say(line string) error {
	_, err := io.WriteString(w.in, line+"\n")
	return err
}

func (w *worker) end() error {
	w.in.Close()
	return w.cmd.Wait()
}

// family are a process and its descendants.
func family(pid int) []int {
	all := []int{pid}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return all
	}
	for _, path := range children {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(all, family(child)...)
			}
		}
	}
	return all
}

// cpu is the time that the threads of processes ran so far.
func cpu(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		for _, path := range tasks {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // a thread that ended
			}
			first, _, _ := strings.Cut(string(text), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			total += time.Duration(ns)
		}
	}
	return total, nil
}

// memory is what processes hold in RAM, shared pages by their share, in KiB.
func memory(pids []int) (total int, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				if err != nil {
					return 0, err
				}
				total += kib
			}
		}
	}
	return total, nil
}

// usage is what a checker took in a window.
type usage struct {
	cpu    float64 // of a core
	memory int     // KiB
}

// measure watches processes for a window, between two calls.
func measure(ctx context.Context, pid int, window time.Duration, before, after func() error) (usage, error) {
	pids := family(pid)
	if err := before(); err != nil {
		return usage{}, err
	}
	from, err := cpu(pids)
	if err != nil {
		return usage{}, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return usage{}, ctx.Err()
	case <-time.After(window):
	}
	to, err := cpu(pids)
	if err != nil {
		return usage{}, err
	}
	u := usage{cpu: float64(to-from) / float64(time.Since(began))}
	if u.memory, err = memory(pids); err != nil {
		return usage{}, err
	}
	return u, after()
}
