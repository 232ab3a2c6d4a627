//go:build unix

package probe

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// script makes a program of a shell script.
func script(t testing.TB, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "check")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func newExec(t testing.TB, cfg ExecConfig) *Exec {
	t.Helper()
	cfg.Allowed = append(cfg.Allowed, cfg.Path)
	p, err := NewExec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExec(t *testing.T) {
	target := netip.MustParseAddrPort("192.0.2.1:80")
	for _, tt := range []struct {
		name string
		body string
		args []string
		env  []string
		want outcome
	}{
		{"well", "exit 0", nil, nil, fine},
		{"sees its target", `[ "$*" = "--host 192.0.2.1:80 {x}" ] && [ "$TARGET_ADDRESS $TARGET_PORT" = "192.0.2.1 80" ]`, []string{"--host", "{address}:{port}", "{x}"}, nil, fine},
		{"sees no more than it is given", `[ -z "$HOME$USER" ] && [ "$A" = b ] && [ "$PWD" = / ]`, nil, []string{"A=b"}, fine},
		{"no shell reads arguments", `[ "$1" = '; $(exit 1)' ]`, []string{"; $(exit 1)"}, nil, fine},
		{"fails", "echo; echo '  no  luck '; echo more; exit 3", nil, nil, outcome{class: healthcheck.BadStatus, phase: "program", expected: "exit code 0", found: "exit code 3: no  luck"}},
		{"fails silently", "exit 1", nil, nil, outcome{class: healthcheck.BadStatus, phase: "program", found: "exit code 1"}},
		{"complains", "echo help >&2; exit 2", nil, nil, outcome{class: healthcheck.BadStatus, phase: "program", found: "exit code 2: help"}},
		{"talks without end", "yes; exit 1", nil, nil, outcome{class: healthcheck.Timeout, phase: "program", found: "longer than the timeout"}},
		{"hangs", "sleep 1000", nil, nil, outcome{class: healthcheck.Timeout, phase: "program", advice: "raise the timeout"}},
		{"hangs with children", "sleep 1000 & sleep 1000 | sleep 1000", nil, nil, outcome{class: healthcheck.Timeout, phase: "program"}},
		{"ignores the signals that it can", "trap '' TERM INT HUP; while :; do sleep 1000; done", nil, nil, outcome{class: healthcheck.Timeout, phase: "program"}},
		{"leaves a child behind", "sleep 1000 & exit 0", nil, nil, fine},
		{"leaves a child behind and fails", "sleep 1000 & exit 4", nil, nil, outcome{class: healthcheck.BadStatus, phase: "program", found: "exit code 4"}},
		{"dies", "kill -SEGV $$", nil, nil, outcome{class: healthcheck.Local, phase: "program", found: "signal: segmentation fault"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Written before others run: a file is busy while a process that is being
			// started elsewhere has it open.
			p := newExec(t, ExecConfig{Path: script(t, tt.body), Args: tt.args, Env: tt.env})
			t.Parallel()
			began := time.Now()
			ask(t, p, target, tt.want)
			if took := time.Since(began); took > patience/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "missing")
	ask(t, newExec(t, ExecConfig{Path: missing}), target, outcome{class: healthcheck.Local, phase: "program", advice: "install"})
	ask(t, newExec(t, ExecConfig{Path: "/etc/passwd"}), target, outcome{class: healthcheck.Local, phase: "program", advice: "executable"})
}

// With the program ends what it started: nothing of its group is left.
func TestExecLeavesNothingRunning(t *testing.T) {
	pidfile := filepath.Join(t.TempDir(), "pid")
	p := newExec(t, ExecConfig{Path: script(t, "sleep 1000 & echo $! >"+pidfile+".new; mv "+pidfile+".new "+pidfile+"; wait")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan healthcheck.Result)
	go func() { done <- p.Probe(ctx, netip.AddrPort{}) }()
	var pid int
	for deadline := time.Now().Add(patience); pid == 0; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(pidfile); err == nil {
			if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				t.Fatal(err)
			}
		} else if time.Now().After(deadline) {
			t.Fatal("the program does not start")
		}
	}
	cancel()
	if res := <-done; res.Class != healthcheck.Local {
		t.Errorf("given up: %+v", res)
	}
	for deadline := time.Now().Add(patience); !gone(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives on", pid)
		}
	}
}

// gone says whether a process has ended, though perhaps nobody has taken note
// of it yet.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestExecIsOffUnlessAllowed(t *testing.T) {
	for _, cfg := range []ExecConfig{
		{Path: "/bin/true"},
		{Path: "/bin/true", Allowed: []string{"/bin/false", "/bin", "/bin/true/"}},
	} {
		if _, err := NewExec(cfg); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	for _, cfg := range []ExecConfig{
		{},
		{Path: "true", Allowed: []string{"true"}},
		{Path: "/bin/../bin/true", Allowed: []string{"/bin/../bin/true"}},
		{Path: "/bin/true", Allowed: []string{"/bin/true"}, Args: []string{"a\x00"}},
		{Path: "/bin/true", Allowed: []string{"/bin/true"}, Env: []string{"A=\x00"}},
	} {
		if _, err := NewExec(cfg); err == nil || errors.Is(err, ErrNotAllowed) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

// Who may write a program has this host run what they like.
func TestExecRunsNothingThatOthersMayWrite(t *testing.T) {
	target := netip.MustParseAddrPort("192.0.2.1:80")
	path := script(t, "exit 0")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]outcome{
		0o755: fine,
		0o775: {class: healthcheck.Local, phase: "program", found: "-rwxrwxr-x", advice: "chmod go-w"},
		0o707: {class: healthcheck.Local, phase: "program", found: "-rwx---rwx", advice: "chmod go-w"},
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		ask(t, newExec(t, ExecConfig{Path: path}), target, want)
		ask(t, newExec(t, ExecConfig{Path: link}), target, want)
	}
}
