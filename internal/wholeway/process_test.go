//go:build kernel && linux

package wholeway

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is one program in a namespace. What it prints goes to a file, whose
// end is shown when the test fails.
type process struct {
	t    *testing.T
	name string
	ns   string
	args []string
	env  []string
	log  string
	cmd  *exec.Cmd
	dead chan struct{}
}

func newProcess(t *testing.T, ns, name string, args ...string) *process {
	p := &process{t: t, name: name, ns: ns, args: args, log: filepath.Join(t.TempDir(), name+".log")}
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		if !t.Failed() {
			return
		}
		if b, err := os.ReadFile(p.log); err == nil {
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			t.Logf("---- %s, its last lines of %d:\n%s", name, len(lines), strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	p.cmd = exec.Command("ip", append([]string{"netns", "exec", p.ns}, p.args...)...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Env = append(os.Environ(), p.env...)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	p.dead = make(chan struct{})
	go func(cmd *exec.Cmd, dead chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(dead)
	}(p.cmd, p.dead)
}

func (p *process) signal(sig syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig) // it may be gone already
	select {
	case <-p.dead:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.dead
		p.t.Errorf("%s did not end within 20 s of %v", p.name, sig)
	}
	p.cmd = nil
}

func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.dead:
		return false
	default:
		return true
	}
}

// TestMain makes the test binary its own backend.
func TestMain(m *testing.M) {
	if name := os.Getenv("WHOLEWAY_BACKEND"); name != "" {
		fmt.Println(backend(name))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// backend serves HTTP on 8080, answering its name, and on 7000 an echo, until
// it is killed.
func backend(name string) error {
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends with the client
			}()
		}
	}()
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, name)
	}))
}

func startBackend(t *testing.T, ns string) *process {
	t.Helper()
	p := newProcess(t, ns, "backend-"+ns, "/proc/self/exe")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.args = []string{self}
	p.env = []string{"WHOLEWAY_BACKEND=" + ns}
	p.start()
	return p
}

// eventually waits until ok says true, and fails the test with what it said
// last when that takes longer than the limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() (bool, string)) time.Duration {
	t.Helper()
	start := time.Now()
	last := ""
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		done, said := ok()
		if done {
			tick.Stop()
			return time.Since(start)
		}
		if said != "" {
			last = said
		}
		if time.Since(start) > limit {
			tick.Stop()
			t.Fatalf("%s: not within %v; last seen: %s", what, limit, last)
		}
	}
}

// lines returns those lines of text that contain part.
func lines(text, part string) string {
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}
