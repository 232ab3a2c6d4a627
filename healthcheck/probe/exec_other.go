//go:build !unix

package probe

import "os/exec"

// group has nothing to do where there are no process groups.
func group(*exec.Cmd) {}

// killGroup kills cmd alone.
func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }
