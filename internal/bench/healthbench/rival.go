package healthbench

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

//go:embed preload/ipvs.c
var preload string

// packages are Debian's keepalived and what it loads that a small system may
// not have.
var packages = []string{
	"keepalived", "libsnmp40", "libsensors5", "libpci3", "libwrap0", "libnsl2",
	"libnl-3-200", "libnl-genl-3-200", "libnftnl11", "libmnl0",
}

// rival is a keepalived that can be run.
type rival struct {
	dir     string
	program string
	env     []string
}

func newRival(ctx context.Context, dir string) (*rival, error) {
	r := &rival{dir: dir}
	source, library := filepath.Join(dir, "ipvs.c"), filepath.Join(dir, "ipvs.so")
	if err := os.WriteFile(source, []byte(preload), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-fPIC", "-shared", "-o", library, source, "-ldl").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the preloaded library: %w\n%s", err, out)
	}
	r.env = append(os.Environ(), "LD_PRELOAD="+library)
	if path, err := exec.LookPath("keepalived"); err == nil {
		r.program = path
		return r, nil
	}
	root := filepath.Join(dir, "root")
	fetch := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-q"}, packages...)...)
	fetch.Dir = dir
	if out, err := fetch.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("keepalived is not installed, and cannot be downloaded (apt-get update may help): %w\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	var libs []string
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", deb, root).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w\n%s", deb, err, out)
		}
	}
	for _, pattern := range []string{"lib/*-linux-gnu", "usr/lib/*-linux-gnu"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		libs = append(libs, found...)
	}
	r.program = filepath.Join(root, "usr/sbin/keepalived")
	r.env = append(r.env, "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
	return r, nil
}

// config checks the same targets in the same way, each in one of some virtual
// services.
func config(j job.Job) string {
	const each = 100 // real servers a virtual one
	var b strings.Builder
	for first := 0; first < j.Targets; first += each {
		fmt.Fprintf(&b, "virtual_server 192.0.2.1 %d {\n delay_loop %d\n lb_algo rr\n lb_kind NAT\n protocol TCP\n", 1+first/each, job.Interval/time.Second)
		for i := first; i < min(first+each, j.Targets); i++ {
			fmt.Fprintf(&b, " real_server %v %d {\n", job.Address(i), j.Ports.Of(j.Kind))
			switch j.Kind {
			case "tcp":
				fmt.Fprintf(&b, "  TCP_CHECK {\n   connect_timeout %d\n  }\n", job.Timeout/time.Second)
			case "http", "https":
				kind := map[string]string{"http": "HTTP_GET", "https": "SSL_GET"}[j.Kind]
				fmt.Fprintf(&b, "  %s {\n   url {\n    path /\n    status_code 200\n   }\n   connect_timeout %d\n  }\n", kind, job.Timeout/time.Second)
			}
			b.WriteString(" }\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// run measures keepalived, and calls begin and end around the window. It also
// counts the failures that it told of, all of targets that answer.
func (r *rival) run(ctx context.Context, cpu int, j job.Job, warm, window time.Duration, begin, end func() error) (u usage, failures int, err error) {
	conf := filepath.Join(r.dir, "keepalived.conf")
	if err := os.WriteFile(conf, []byte(config(j)), 0o600); err != nil {
		return u, 0, err
	}
	cmd := pinned(ctx, cpu, r.program, "-C", "-n", "-l", "-D", "-f", conf,
		"-p", filepath.Join(r.dir, "k.pid"), "-c", filepath.Join(r.dir, "c.pid"))
	cmd.Env = r.env
	// It ends its child when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return u, 0, err
	}
	cmd.Stderr = cmd.Stdout
	var (
		mu   sync.Mutex // guards what follows
		good = map[string]bool{}
		bad  int
		last string
	)
	if err := cmd.Start(); err != nil {
		return u, 0, err
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			line := in.Text()
			mu.Lock()
			last = line
			if address, ok := checked(line); ok && strings.Contains(line, "succe") {
				good[address] = true
			}
			if strings.Contains(line, "Removing service") {
				bad++
			}
			mu.Unlock()
		}
	})
	stop := func() error {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		reading.Wait()
		return cmd.Wait()
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		n, line := len(good), last
		mu.Unlock()
		took := time.Since(began)
		if n == j.Targets || n > j.Targets*9/10 && took > 10*time.Second {
			break // it calls some of them down
		}
		if ctx.Err() != nil || took > time.Minute {
			stop() //nolint:errcheck // the reason is another
			return u, 0, fmt.Errorf("keepalived has found %d of %d targets up; its last line: %s", n, j.Targets, line)
		}
	}
	time.Sleep(warm)
	u, err = measure(ctx, cmd.Process.Pid, window, begin, end)
	if e := stop(); err == nil && e != nil {
		err = fmt.Errorf("keepalived: %w; its last line: %s", e, last)
	}
	return u, bad, err
}

// checked is the address of a target in a line of keepalived's.
func checked(line string) (string, bool) {
	_, after, ok := strings.Cut(line, "[127.")
	if !ok {
		return "", false
	}
	address, _, ok := strings.Cut(after, "]")
	return address, ok
}
