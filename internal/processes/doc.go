// Package processes tests the store as users have it: several real processes on
// real files, which talk over TCP, under load. They are killed and paused at
// random, and where the kernel has links between network namespaces each has one
// of its own and is cut off as well (build tag kernel: internal/uml/suite kernel).
// What the callers saw must be linearizable, so nothing acknowledged may be lost
// and no read may be old, and in the end all processes must hold the same.
package processes
