package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// kernelUsed is the name of the file that marks an agent's directory whose
// state has once been in a real kernel.
const kernelUsed = "kernel-used"

// plane is the kernel that a director programs.
type plane struct {
	kernel reconcile.Kernel
	notice string // of a simulated one: why, for people
}

func (p plane) simulated() bool { return p.kernel.Simulated() }

func (p plane) name() string {
	if p.simulated() {
		return "simulated"
	}
	return "kernel"
}

// openPlane chooses the kernel. available and open are reconcile's own, but in
// tests. INV-26: what has once programmed a real kernel is never given a
// simulated one, for it would report services that are not there.
func openPlane(cfg config, available func() error, open func() (reconcile.Kernel, error)) (plane, error) {
	if err := os.MkdirAll(cfg.agentDir, 0o700); err != nil {
		return plane{}, fmt.Errorf("--agent_dir: %w", err)
	}
	marker := filepath.Join(cfg.agentDir, kernelUsed)
	_, err := os.Stat(marker)
	used := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return plane{}, fmt.Errorf("--agent_dir: %w", err)
	}
	if cfg.plane == planeFake {
		if used {
			return plane{}, fmt.Errorf("--dataplane fake: %s has programmed a real kernel, whose services it would leave unattended; give the simulated one a directory of its own with --agent_dir", cfg.agentDir)
		}
		return plane{fakekernel.New(), "Started with --dataplane fake: services are kept in memory alone, and no packet is forwarded."}, nil
	}
	missing := available()
	switch {
	case missing == nil:
		if err := mark(marker); err != nil {
			return plane{}, fmt.Errorf("--agent_dir: %w", err)
		}
		kernel, err := open()
		return plane{kernel: kernel}, err
	case cfg.plane == planeKernel:
		return plane{}, fmt.Errorf("--dataplane kernel: this kernel cannot be programmed: %w", missing)
	case cfg.role == roleAgent:
		return plane{}, fmt.Errorf("an agent needs a kernel with IPVS: %w\n\nTo try an agent without one, give it --dataplane fake: services are then kept in memory alone, and no packet is forwarded", missing)
	case used:
		return plane{}, fmt.Errorf("this kernel cannot be programmed now: %w\n\n%s has programmed one before, so this is not replaced by a simulated one", missing, cfg.agentDir)
	}
	return plane{fakekernel.New(), fmt.Sprintf("Services are kept in memory alone, and no packet is forwarded, because this kernel cannot be programmed: %v.", missing)}, nil
}

// mark makes the marker durable before the kernel is touched.
func mark(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("This agent has programmed a real kernel.\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
