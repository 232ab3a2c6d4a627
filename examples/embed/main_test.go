package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// printed is what a run has printed so far.
type printed struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Write(b)
}

func (p *printed) until(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		got := p.buf.String()
		p.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within 20 s: %q in\n%s", text, got)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestFilesReachTheKernel(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start := func() (*printed, func()) {
		out := &printed{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- run(ctx, dir, data, true, out) }()
		return out, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}

	out, stop := start()
	write("web.yaml", "{vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1, weight: 3}]}")
	out.until(t, "-A -t 192.0.2.10:80 -s wlc\n-a -t 192.0.2.10:80 -r 10.1.0.1:80 -m -w 3\n")
	write("web.yaml", "{vip: 192.0.2.10, port: 80, scheduler: rr, backends: [{address: 10.1.0.1, weight: 4}]}")
	out.until(t, "-A -t 192.0.2.10:80 -s rr\n-a -t 192.0.2.10:80 -r 10.1.0.1:80 -m -w 4\n")
	write("bad.yaml", "{vip: 192.0.2.11, port: 80000}")
	out.until(t, "bad.yaml: invalid: port")
	stop()

	// What was accepted is there again, and a file that went meanwhile is noticed.
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	write("dns.yaml", "{vip: 192.0.2.12, port: 53, protocol: udp, backends: [{address: 10.1.0.2}]}")
	out, stop = start()
	out.until(t, "-A -u 192.0.2.12:53 -s wlc\n-a -u 192.0.2.12:53 -r 10.1.0.2:53 -m -w 100\n")
	out.until(t, "revision 4: 1 services")
	stop()
}
