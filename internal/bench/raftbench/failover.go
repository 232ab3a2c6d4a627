package raftbench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/child"
)

// node runs one member of a cluster until it is killed, writes without pause,
// and prints "ok <unix nanoseconds>" for each write, and "leading" while it
// leads.
func (j job) node(k kind) error {
	n, err := k.open(j.Place)
	if err != nil {
		return err
	}
	value := make([]byte, valueSize)
	var mu sync.Mutex // guards standard output
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	slots := make(chan struct{}, 64)
	for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
		if n.Leading() {
			say("leading")
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				if n.Put(ctx, keyOf(rand.IntN(keySpace)), value) == nil {
					say("ok %d", time.Now().UnixNano())
				}
			}()
		default: // all wait; those that come back make room
		}
	}
}

// member is a process that runs one node.
type member struct {
	cmd  *exec.Cmd
	line chan string
}

// failover kills the leader's process and returns how long the others took to
// their next committed write.
func failover(ctx context.Context, k kind, dir string) (time.Duration, error) {
	ps, err := places(dir, 3)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	members := make([]*member, len(ps))
	for i, p := range ps {
		cmd, err := child.Command(ctx, childEnv, job{Kind: k.name, Task: "node", Place: p})
		if err != nil {
			return 0, err
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return 0, err
		}
		m := &member{cmd: cmd, line: make(chan string, 1<<16)}
		go m.read(out)
		members[i] = m
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
	}
	leader, err := settled(ctx, members)
	if err != nil {
		return 0, err
	}
	if err := members[leader].cmd.Process.Kill(); err != nil {
		return 0, err
	}
	died := time.Now().UnixNano()
	first := make(chan int64, len(members))
	for i, m := range members {
		if i == leader {
			continue
		}
		go func() {
			for line := range m.line {
				// A write that the dead leader had committed may still come in.
				if at, ok := okAt(line); ok && at > died+int64(2*time.Millisecond) {
					first <- at
					return
				}
			}
		}()
	}
	select {
	case at := <-first:
		return time.Duration(at - died), nil
	case <-ctx.Done():
		return 0, errors.New("no write was committed after the leader was killed")
	}
}

func (m *member) read(out io.Reader) {
	defer close(m.line)
	for s := bufio.NewScanner(out); s.Scan(); {
		select {
		case m.line <- s.Text():
		default: // no one reads: what is late is of no use
		}
	}
}

func okAt(line string) (int64, bool) {
	digits, ok := strings.CutPrefix(line, "ok ")
	at, err := strconv.ParseInt(digits, 10, 64)
	return at, ok && err == nil
}

// settled waits until there is a leader and writes flow, and drops what was said
// until then.
func settled(ctx context.Context, members []*member) (leader int, err error) {
	leader, writes := -1, 0
	for writes < 500 || leader < 0 {
		for i, m := range members {
			select {
			case line, ok := <-m.line:
				if !ok {
					return 0, errors.New("a node has ended")
				}
				if line == "leading" {
					leader = i
				} else if _, ok := okAt(line); ok {
					writes++
				}
			case <-ctx.Done():
				return 0, errors.New("no leader, or no writes")
			default:
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	return leader, nil
}
