//go:build unix

package healthcheck

import (
	"math"
	"syscall"
)

// fileLimit is how many files this process may open.
func fileLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || uint64(l.Cur) > math.MaxInt32 { //nolint:unconvert // it is signed on FreeBSD
		return math.MaxInt32
	}
	return int(l.Cur)
}
