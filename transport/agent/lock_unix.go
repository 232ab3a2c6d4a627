//go:build unix

package agent

import (
	"fmt"
	"os"
	"syscall"
)

// lockDir makes this process the only one that uses a journal's directory.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is held: another agent uses this directory: %w", path, err)
	}
	return f, nil
}
