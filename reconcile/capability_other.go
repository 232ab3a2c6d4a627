//go:build !linux

package reconcile

func permissionHint(Op) string { return "the process may not do this" }
