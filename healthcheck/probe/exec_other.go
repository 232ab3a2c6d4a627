//go:build !unix

package probe

import (
	"io/fs"
	"os/exec"
)

// group has nothing to do where there are no process groups.
func group(*exec.Cmd) {}

// othersWrite is not known from a mode.
func othersWrite(fs.FileMode) bool { return false }

// killGroup kills cmd alone.
func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }
