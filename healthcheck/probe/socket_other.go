//go:build !linux

package probe

const canBind = false

// set has nothing to do: half-open and binding to a path are Linux's.
func (v Via) set(int, bool) error { return nil }
