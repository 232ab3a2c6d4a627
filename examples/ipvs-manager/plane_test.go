package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// realKernel stands for one that can be programmed.
type realKernel struct{ reconcile.Kernel }

func (realKernel) Simulated() bool { return false }

// INV-26: the in-memory kernel is never mistaken for the real one, and what
// has once used the kernel never falls back.
func TestPlane(t *testing.T) {
	missing := errors.New("no ip_vs in this kernel: modprobe ip_vs")
	for _, test := range []struct {
		name      string
		plane     dataplane
		role      role
		used      bool
		available error
		want      string // name of the plane, or part of the refusal
	}{
		{"auto, kernel", planeAuto, roleSingleon, false, nil, "kernel"},
		{"auto, kernel, used", planeAuto, roleSingleon, true, nil, "kernel"},
		{"auto, none", planeAuto, roleSingleon, false, missing, "simulated"},
		{"auto, none, used", planeAuto, roleSingleon, true, missing, "has programmed one before"},
		{"auto, none, agent", planeAuto, roleAgent, false, missing, "--dataplane fake"},
		{"kernel", planeKernel, roleSingleon, false, nil, "kernel"},
		{"kernel, none", planeKernel, roleSingleon, false, missing, "--dataplane kernel"},
		{"fake", planeFake, roleSingleon, false, nil, "simulated"},
		{"fake, none", planeFake, roleAgent, false, missing, "simulated"},
		{"fake, used", planeFake, roleSingleon, true, nil, "--agent_dir"},
		{"fake, none, used", planeFake, roleAgent, true, missing, "--agent_dir"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config{plane: test.plane, role: test.role, agentDir: filepath.Join(t.TempDir(), "agent")}
			marker := filepath.Join(cfg.agentDir, kernelUsed)
			if test.used {
				if err := os.MkdirAll(cfg.agentDir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := mark(marker); err != nil {
					t.Fatal(err)
				}
			}
			p, err := openPlane(cfg, func() error { return test.available }, func() (reconcile.Kernel, error) {
				if _, err := os.Stat(marker); err != nil {
					t.Errorf("the kernel is opened before the directory says so: %v", err)
				}
				return realKernel{fakekernel.New()}, nil
			})
			if err != nil {
				if !strings.Contains(err.Error(), test.want) || test.want == "kernel" || test.want == "simulated" {
					t.Errorf("%v; want %s", err, test.want)
				}
				if errors.Is(err, missing) != (test.available != nil && test.plane != planeFake) {
					t.Errorf("the reason is missing in: %v", err)
				}
				return
			}
			if p.name() != test.want || p.simulated() != (p.notice != "") {
				t.Errorf("%s, notice %q; want %s", p.name(), p.notice, test.want)
			}
			if p.simulated() && !strings.Contains(p.notice, "no packet is forwarded") {
				t.Errorf("notice %q", p.notice)
			}
			if _, err := os.Stat(marker); (err == nil) != (test.used || !p.simulated()) {
				t.Errorf("marker: %v", err)
			}
		})
	}
}

func TestPlaneNeedsItsDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := openPlane(config{plane: planeFake, agentDir: filepath.Join(file, "agent")}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "--agent_dir") {
		t.Errorf("%v", err)
	}
}
