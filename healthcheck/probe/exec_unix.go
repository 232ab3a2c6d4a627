//go:build unix

package probe

import (
	"io/fs"
	"os/exec"
	"syscall"
)

// group makes cmd the leader of a process group.
func group(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// othersWrite says whether others than a file's owner may write it.
func othersWrite(mode fs.FileMode) bool { return mode.Perm()&0o022 != 0 }

// killGroup kills cmd and whatever it started in its group.
func killGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
