package fakekernel

import (
	"net/netip"
	"slices"
	"syscall"

	"github.com/ipvskit/ipvskit/reconcile"
)

// Inject makes f decide before each operation: a non-nil error is the
// operation's answer, and nothing is done. f may call the Kernel. Nil: none.
func (k *Kernel) Inject(f func(reconcile.Op) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inject = f
}

// InjectRead makes f decide before each reading method; what is the method's
// name in lower case ("services", "service", "fingerprint", "ipvs", "links",
// "chain", "sysctl"). Nil: none.
func (k *Kernel) InjectRead(f func(what string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read = f
}

// Watch calls f after each operation with its result, in order as long as the
// Kernel has one user. f may call the Kernel. Nil: none.
func (k *Kernel) Watch(f func(reconcile.Op, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch = f
}

// Operations is how many operations were carried out without an error.
func (k *Kernel) Operations() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ops
}

// Connect sets how many connections a destination has; they end only by another
// Connect or with the destination. ESRCH or ENOENT if it does not exist.
func (k *Kernel) Connect(key reconcile.Key, dest netip.AddrPort, active, inactive uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.services[key]
	if !ok {
		return syscall.ESRCH
	}
	d, ok := s.destinations[dest]
	if !ok {
		return syscall.ENOENT
	}
	d.Active, d.Inactive = active, inactive
	return nil
}

// Count sets the counters of a destination, or with the zero dest those of the
// service. ESRCH or ENOENT if it does not exist.
func (k *Kernel) Count(key reconcile.Key, dest netip.AddrPort, c reconcile.Counters) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.services[key]
	if !ok {
		return syscall.ESRCH
	}
	if dest == (netip.AddrPort{}) {
		s.counters = c
		return nil
	}
	d, ok := s.destinations[dest]
	if !ok {
		return syscall.ENOENT
	}
	d.Counters = c
	return nil
}

// SetLink makes or replaces an interface of someone else. Its IPv6 settings
// appear with it.
func (k *Kernel) SetLink(l reconcile.Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l.Addresses = slices.Clone(l.Addresses)
	slices.SortFunc(l.Addresses, compareAddresses)
	k.links[l.Name] = &l
	k.tell()
	for name, value := range map[string]string{"keep_addr_on_down": "0", "accept_ra": "1"} {
		path := "net/ipv6/conf/" + l.Name + "/" + name
		if _, ok := k.sysctls[path]; !ok {
			k.sysctls[path] = value
		}
	}
}

// Set gives a setting a value and makes it if it does not exist.
func (k *Kernel) Set(sysctl, value string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sysctls[sysctl] = value
}

// WithoutFilter makes the packet filter of a family fail with err; nil gives it
// back.
func (k *Kernel) WithoutFilter(f reconcile.Family, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noFilter[f] = err
}
