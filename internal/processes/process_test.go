//go:build linux

package processes

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// process is one node, and the pipes to it.
type process struct {
	cfg  nodeConfig
	wrap []string // command that runs it, as `ip netns exec`
	errs string   // file of its standard error

	mu      sync.Mutex // guards the fields below
	cmd     *exec.Cmd  // nil: it is down
	in      io.WriteCloser
	asked   map[int]chan string // by request; closed without a value when the process ends
	last    int
	told    chan string // the first line
	stopped chan struct{}
}

var errDown = errors.New("the process is down")

func (p *process) start(t *testing.T) {
	t.Helper()
	cfg, err := json.Marshal(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{}, p.wrap...), os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(cfg))
	// `ip netns exec` becomes the program, so the process is the node itself.
	stderr, err := os.OpenFile(p.errs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.in, p.asked = cmd, in, map[int]chan string{}
	p.told, p.stopped = make(chan string, 1), make(chan struct{})
	go p.listen(cmd, out, p.asked, p.told, p.stopped)
}

func (p *process) listen(cmd *exec.Cmd, out io.Reader, asked map[int]chan string, told chan<- string, stopped chan<- struct{}) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	if lines.Scan() {
		told <- lines.Text()
	}
	close(told)
	for lines.Scan() {
		id, text, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.Atoi(id) // there is no request 0
		p.mu.Lock()
		if c := asked[n]; c != nil {
			c <- text
			delete(asked, n)
		}
		p.mu.Unlock()
	}
	_ = cmd.Wait() // it was killed
	p.mu.Lock()
	if p.cmd == cmd {
		p.cmd = nil
	}
	for _, c := range asked {
		close(c)
	}
	clear(asked)
	p.mu.Unlock()
	close(stopped)
}

// send writes a line without an answer.
func (p *process) send(line string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errDown
	}
	_, err := io.WriteString(p.in, line+"\n")
	return err
}

// ask sends a request and returns the answer: "unknown" if the process ends
// first, errDown if it was never asked.
func (p *process) ask(verb string, args ...string) (string, error) {
	p.mu.Lock()
	if p.cmd == nil {
		p.mu.Unlock()
		return "", errDown
	}
	p.last++
	answer := make(chan string, 1)
	p.asked[p.last] = answer
	in, line := p.in, strings.Join(append([]string{verb, strconv.Itoa(p.last)}, args...), " ")+"\n"
	p.mu.Unlock()
	// Not under the lock: the pipe of a paused process may be full. One short line
	// is written whole. A broken pipe shows in the answer too.
	_, _ = io.WriteString(in, line)
	text, ok := <-answer
	if !ok {
		return "unknown", nil
	}
	return text, nil
}

func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(sig) // one that has ended is gone anyway
	}
}

// kill ends the process and waits until it is gone.
func (p *process) kill() {
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	p.signal(syscall.SIGKILL)
	if stopped != nil {
		<-stopped
	}
}

// incarnation is what a node says first.
func (p *process) incarnation() (uint64, error) {
	line := <-p.told
	text, ok := strings.CutPrefix(line, "incarnation ")
	if !ok {
		said, _ := os.ReadFile(p.errs)
		return 0, fmt.Errorf("%s did not start: %q %s", p.cfg.Name, line, said)
	}
	return strconv.ParseUint(text, 10, 64)
}
