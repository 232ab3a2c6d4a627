package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
)

// Kernel is what the reconciler uses of one network namespace. NewLinux is the
// real one, fakekernel.New an in-memory one with the same errors. All methods
// are safe for concurrent use; what they return belongs to the caller.
//
// Reading never changes anything. Errors carry the kernel's errno where there is
// one, so that IsExist, IsMissing and errors.Is(err, syscall.EINVAL) work on
// either implementation.
type Kernel interface {
	// Services lists every service of the namespace with its destinations.
	Services(ctx context.Context) ([]ServiceState, error)
	// Service reads one service with its destinations; IsMissing if there is none.
	Service(ctx context.Context, k Key) (ServiceState, error)
	// Fingerprint is a cheap value over all services and destinations: equal as
	// long as nobody changed any, and the same as the function Fingerprint of
	// Services. What the kernel's cheap listing lacks does not enter it.
	Fingerprint(ctx context.Context) (uint64, error)
	// Links lists the interfaces with their addresses.
	Links(ctx context.Context) ([]Link, error)
	// IPVS reads timeouts and sync daemons.
	IPVS(ctx context.Context) (IPVS, error)
	// Chain reads one of our chains. An error means that the packet filter of this
	// family cannot be used here, and says why.
	Chain(ctx context.Context, k ChainKey) (Chain, error)
	// Sysctl reads one setting by its path ("net/ipv4/ip_forward");
	// fs.ErrNotExist if this kernel has none of that name.
	Sysctl(ctx context.Context, name string) (string, error)
	// Do carries out operations in order and returns an error for each that
	// failed, by its index. Operations are not atomic together: a failure does
	// not stop the later ones. A canceled ctx stops before the next operation;
	// those not tried carry its error. Doing is idempotent only in what each Op
	// says.
	Do(ctx context.Context, ops []Op) map[int]error
	// Simulated says that no packet is ever forwarded by this kernel.
	Simulated() bool
}

// Link is a network interface of the namespace.
type Link struct {
	Name      string
	Kind      string // "dummy", "veth"; empty for hardware and loopback
	Alias     string
	Up        bool
	Addresses []netip.Prefix // with their own bits, e.g. 192.0.2.10/32
}

// Notifier is what a Kernel may have beside the rest: it tells of changes.
type Notifier interface {
	// Notify calls changed after interfaces or addresses changed, by whomever;
	// many changes may be one call. It returns nil when ctx ends, or why it cannot
	// tell. IPVS itself tells nobody, so a Notifier does not replace looking.
	Notify(ctx context.Context, changed func()) error
}

// IsExist says that an object to be made is there already, the same or not.
func IsExist(err error) bool { return errors.Is(err, syscall.EEXIST) }

// IsMissing says that the object of an operation, or the one that it belongs to,
// does not exist: a service (ESRCH), a destination (ENOENT), an interface
// (ENODEV) or an address (EADDRNOTAVAIL). ENOENT is also the kernel's answer to
// a scheduler that it does not have; IsNoScheduler tells by the operation.
func IsMissing(err error) bool {
	for _, e := range []syscall.Errno{syscall.ESRCH, syscall.ENOENT, syscall.ENODEV, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// IsNoScheduler says that the operation failed because the kernel has no
// scheduler of that name, nor a module of it.
func IsNoScheduler(op Op, err error) bool {
	return (op.Kind == AddService || op.Kind == SetService) && errors.Is(err, syscall.ENOENT)
}

// LinuxConfig says how NewLinux reaches the kernel. The zero value is fine.
type LinuxConfig struct {
	// NetNS is the path of a network namespace (/run/netns/NAME); empty: that of
	// the calling thread.
	NetNS string
	// IPTables and IP6Tables name the programs to use; default: whichever of
	// iptables, iptables-nft and iptables-legacy (and their IPv6 brothers) works
	// here and holds our chain already.
	IPTables, IP6Tables string
}
