package reconcile

import "errors"

// NewLinux opens the kernel of the calling thread's network namespace.
func NewLinux(LinuxConfig) (Kernel, error) { return nil, errors.New("reconcile: not yet") }

// Available says why not.
func Available() error { return errors.New("reconcile: not yet") }
