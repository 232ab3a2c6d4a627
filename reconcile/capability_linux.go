package reconcile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// capabilities are those that some operation needs, with what it needs them for
// and how a container gets them.
var capabilities = []struct {
	bit             uint
	name, need, get string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "services, interfaces, addresses and packet filter rules", "NET_ADMIN"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "the packet filter's legacy variant", "NET_RAW"},
	{unix.CAP_SYS_MODULE, "CAP_SYS_MODULE", "loading kernel modules; or have the host load ip_vs, its schedulers, dummy and xt_ipvs", "SYS_MODULE"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "entering another network namespace", "SYS_ADMIN"},
}

// lacks says which capability this thread does not have, and what to do; nil if it
// has it.
func lacks(capability uint) error {
	set, err := effective()
	if err != nil {
		return fmt.Errorf("which capabilities this process has cannot be read: %w", err)
	}
	if set&(1<<capability) != 0 {
		return nil
	}
	for _, c := range capabilities {
		if c.bit == capability {
			return fmt.Errorf("this process lacks the capability %s, which is needed for %s (run as root, or with "+
				"AmbientCapabilities=%s in a systemd unit, or --cap-add %s in a container)", c.name, c.need, c.name, c.get)
		}
	}
	return fmt.Errorf("this process lacks the capability number %d", capability)
}

// effective is the set of capabilities of the calling thread.
func effective() (uint64, error) {
	f, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if text, ok := strings.CutPrefix(in.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/thread-self/status has no line CapEff")
}

// refusedBy explains EPERM of an operation that needs a capability.
func refusedBy(capability uint) string {
	if err := lacks(capability); err != nil {
		return err.Error()
	}
	return "this process has the capability, but only in a user namespace of its own, which does not own this network namespace; run it without one (userns-remap, rootless)"
}

// withCapability adds to IPVS's EPERM what is missing.
func withCapability(err error) error {
	if !errors.Is(err, syscall.EPERM) {
		return err
	}
	return fmt.Errorf("%w: %s", err, refusedBy(unix.CAP_NET_ADMIN))
}

// permissionHint says why an operation was refused, as far as can be told.
func permissionHint(op Op) string {
	if op.Kind == SetSysctl {
		if unix.Access("/proc/sys/net", unix.W_OK) == unix.EROFS {
			return "/proc/sys is mounted read-only here; mount it writable in this container, set the value on the host, or leave it (LeaveSysctls)"
		}
		return "settings below /proc/sys/net belong to root of the network namespace's owner; set the value on the host, or leave it (LeaveSysctls)"
	}
	if op.Kind == SetChain || op.Kind == DelChain {
		if err := lacks(unix.CAP_NET_RAW); err != nil && lacks(unix.CAP_NET_ADMIN) == nil {
			return err.Error()
		}
	}
	return refusedBy(unix.CAP_NET_ADMIN)
}
