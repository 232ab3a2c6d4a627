//go:build !linux

package reconcile

import "errors"

var errNotLinux = errors.New("reconcile: IPVS is part of Linux; this is another system")

// NewLinux returns an error: IPVS is part of Linux.
func NewLinux(LinuxConfig) (Kernel, error) { return nil, errNotLinux }

// Available returns an error: IPVS is part of Linux.
func Available() error { return errNotLinux }
