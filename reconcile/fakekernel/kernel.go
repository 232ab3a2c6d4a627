package fakekernel

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

// Kernel is one network namespace in memory.
type Kernel struct {
	mu        sync.Mutex
	services  map[reconcile.Key]*service             // guarded by mu
	links     map[string]*reconcile.Link             // guarded by mu
	chains    map[reconcile.ChainKey]reconcile.Chain // guarded by mu
	ipvs      reconcile.IPVS                         // guarded by mu
	listeners map[chan struct{}]bool                 // guarded by mu
	sysctls   map[string]string                      // guarded by mu
	noFilter  map[reconcile.Family]error             // guarded by mu
	inject    func(reconcile.Op) error               // guarded by mu
	watch     func(reconcile.Op, error)              // guarded by mu
	read      func(what string) error                // guarded by mu
	ops       int                                    // guarded by mu; carried out without an error
}

type service struct {
	reconcile.Service
	counters     reconcile.Counters
	destinations map[netip.AddrPort]*reconcile.DestinationState
}

// Schedulers that the fake kernel has.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"}

// Engines of persistence that the fake kernel has.
var Engines = []string{"sip"}

// New is a namespace as it is on a fresh host: loopback, one Ethernet interface
// without an address, no services, the kernel's default settings.
func New() *Kernel {
	return &Kernel{
		services: map[reconcile.Key]*service{},
		links: map[string]*reconcile.Link{
			"lo":   {Name: "lo", Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")}},
			"eth0": {Name: "eth0", Up: true},
		},
		chains: map[reconcile.ChainKey]reconcile.Chain{},
		ipvs: reconcile.IPVS{Version: "1.2.1", TableSize: 4096, Timeouts: reconcile.Timeouts{
			TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute,
		}},
		listeners: map[chan struct{}]bool{},
		sysctls:   sysctls(),
		noFilter:  map[reconcile.Family]error{},
	}
}

// Simulated is true.
func (k *Kernel) Simulated() bool { return true }

// Services lists every service with its destinations, by key.
func (k *Kernel) Services(ctx context.Context) ([]reconcile.ServiceState, error) {
	if err := k.reading(ctx, "services"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list(), nil
}

func (k *Kernel) list() []reconcile.ServiceState {
	out := make([]reconcile.ServiceState, 0, len(k.services))
	for _, key := range slices.SortedFunc(maps.Keys(k.services), reconcile.Key.Compare) {
		out = append(out, k.services[key].state())
	}
	return out
}

func (s *service) state() reconcile.ServiceState {
	out := reconcile.ServiceState{Service: s.Service, Counters: s.counters}
	for _, a := range slices.SortedFunc(maps.Keys(s.destinations), netip.AddrPort.Compare) {
		out.Destinations = append(out.Destinations, *s.destinations[a])
	}
	return out
}

// Service reads one service; ESRCH if there is none.
func (k *Kernel) Service(ctx context.Context, key reconcile.Key) (reconcile.ServiceState, error) {
	if err := k.reading(ctx, "service"); err != nil {
		return reconcile.ServiceState{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.services[key]
	if !ok {
		return reconcile.ServiceState{}, syscall.ESRCH
	}
	return s.state(), nil
}

// Fingerprint changes when a service or a destination does.
func (k *Kernel) Fingerprint(ctx context.Context) (uint64, error) {
	if err := k.reading(ctx, "fingerprint"); err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return reconcile.Fingerprint(k.list()), nil
}

// Links lists the interfaces, by name.
func (k *Kernel) Links(ctx context.Context) ([]reconcile.Link, error) {
	if err := k.reading(ctx, "links"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]reconcile.Link, 0, len(k.links))
	for _, name := range slices.Sorted(maps.Keys(k.links)) {
		l := *k.links[name]
		l.Addresses = slices.Clone(l.Addresses)
		out = append(out, l)
	}
	return out, nil
}

// IPVS reads timeouts and sync daemons.
func (k *Kernel) IPVS(ctx context.Context) (reconcile.IPVS, error) {
	if err := k.reading(ctx, "ipvs"); err != nil {
		return reconcile.IPVS{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.ipvs
	out.Daemons = slices.Clone(out.Daemons)
	return out, nil
}

// Chain reads one of our chains.
func (k *Kernel) Chain(ctx context.Context, key reconcile.ChainKey) (reconcile.Chain, error) {
	if err := k.reading(ctx, "chain"); err != nil {
		return reconcile.Chain{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.noFilter[key.Family]; err != nil {
		return reconcile.Chain{}, err
	}
	c := k.chains[key]
	c.ChainKey = key
	c.Rules = slices.Clone(c.Rules)
	return c, nil
}

// Sysctl reads one setting.
func (k *Kernel) Sysctl(ctx context.Context, name string) (string, error) {
	if err := k.reading(ctx, "sysctl"); err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.sysctls[name]
	if !ok {
		return "", &fs.PathError{Op: "open", Path: "/proc/sys/" + name, Err: syscall.ENOENT}
	}
	return v, nil
}

func (k *Kernel) reading(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	k.mu.Lock()
	read := k.read
	k.mu.Unlock()
	if read != nil {
		return read(what)
	}
	return nil
}

// Do carries out operations one after the other.
func (k *Kernel) Do(ctx context.Context, ops []reconcile.Op) map[int]error {
	var errs map[int]error
	for i, op := range ops {
		err := ctx.Err()
		if err == nil {
			err = k.one(op)
		}
		if err != nil {
			if errs == nil {
				errs = map[int]error{}
			}
			errs[i] = err
		}
	}
	return errs
}

func (k *Kernel) one(op reconcile.Op) error {
	k.mu.Lock()
	inject, watch := k.inject, k.watch
	k.mu.Unlock()
	var err error
	if inject != nil {
		err = inject(op)
	}
	if err == nil {
		k.mu.Lock()
		if err = k.do(op); err == nil {
			k.ops++
		}
		k.mu.Unlock()
	}
	if watch != nil {
		watch(op, err)
	}
	return err
}

func (k *Kernel) do(op reconcile.Op) error {
	switch op.Kind {
	case reconcile.AddService, reconcile.SetService, reconcile.DelService:
		return k.doService(op)
	case reconcile.AddDestination, reconcile.SetDestination, reconcile.DelDestination:
		return k.doDestination(op)
	case reconcile.AddLink, reconcile.SetAlias, reconcile.LinkUp, reconcile.DelLink, reconcile.AddAddress, reconcile.DelAddress:
		err := k.doLink(op)
		if err == nil {
			k.tell()
		}
		return err
	case reconcile.SetSysctl:
		if _, ok := k.sysctls[op.Name]; !ok {
			return &fs.PathError{Op: "open", Path: "/proc/sys/" + op.Name, Err: syscall.ENOENT}
		}
		k.sysctls[op.Name] = op.Value
		return nil
	case reconcile.SetChain, reconcile.DelChain:
		return k.doChain(op)
	case reconcile.SetTimeouts, reconcile.StartDaemon, reconcile.StopDaemon, reconcile.Zero:
		return k.doDirector(op)
	}
	return fmt.Errorf("fakekernel: %s: %w", op.Kind, syscall.EOPNOTSUPP)
}

func (k *Kernel) doService(op reconcile.Op) error {
	s := op.Service
	if s.Family != reconcile.IPv4 && s.Family != reconcile.IPv6 {
		return syscall.EAFNOSUPPORT
	}
	have, exists := k.services[s.Key]
	if op.Kind == reconcile.DelService {
		if !exists {
			return syscall.ESRCH
		}
		delete(k.services, s.Key)
		return nil
	}
	// The kernel checks in this order: the key's existence, the scheduler, the
	// netmask (net/netfilter/ipvs/ip_vs_ctl.c).
	switch {
	case len(s.Scheduler) > 15:
		return syscall.EINVAL
	case op.Kind == reconcile.AddService && exists:
		return syscall.EEXIST
	case op.Kind == reconcile.SetService && !exists:
		return syscall.ESRCH
	case !slices.Contains(Schedulers, s.Scheduler), s.Engine != "" && !slices.Contains(Engines, s.Engine):
		return syscall.ENOENT
	}
	bits := 32
	if s.Family == reconcile.IPv6 {
		bits = 128
	}
	s = s.Normal()
	if s.Prefix < 1 || s.Prefix > bits {
		return syscall.EINVAL
	}
	s.Timeout = s.Timeout.Truncate(time.Second)
	if !exists {
		have = &service{destinations: map[netip.AddrPort]*reconcile.DestinationState{}}
		k.services[s.Key] = have
	}
	have.Service = s
	return nil
}

func (k *Kernel) doDestination(op reconcile.Op) error {
	s, ok := k.services[op.Service.Key]
	if !ok {
		return syscall.ESRCH
	}
	d := op.Dest.Normal()
	have, exists := s.destinations[d.AddrPort()]
	if op.Kind == reconcile.DelDestination {
		if !exists {
			return syscall.ENOENT
		}
		delete(s.destinations, d.AddrPort())
		return nil
	}
	switch {
	case reconcile.FamilyOf(d.Addr) != s.Family && d.Forwarding != reconcile.Tunnel:
		return syscall.EINVAL
	case d.Weight > 1<<31-1 || d.Lower > d.Upper:
		return syscall.ERANGE
	case d.Forwarding == reconcile.Tunnel && d.Encap == reconcile.GUE && d.EncapPort == 0:
		return syscall.EINVAL
	case op.Kind == reconcile.AddDestination && exists:
		return syscall.EEXIST
	case op.Kind == reconcile.SetDestination && !exists:
		return syscall.ENOENT
	case op.Kind == reconcile.AddDestination && !unicast(d.Addr):
		return syscall.EINVAL
	}
	if !exists {
		have = &reconcile.DestinationState{}
		s.destinations[d.AddrPort()] = have
	}
	have.Destination = d
	return nil
}

func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func compareAddresses(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func (k *Kernel) doLink(op reconcile.Op) error {
	l, exists := k.links[op.Link]
	if op.Kind == reconcile.AddLink {
		switch {
		case len(op.Link) > 15:
			return syscall.ERANGE
		case exists:
			return syscall.EEXIST
		}
		k.links[op.Link] = &reconcile.Link{Name: op.Link, Kind: "dummy", Alias: op.Value}
		k.sysctls["net/ipv6/conf/"+op.Link+"/keep_addr_on_down"] = "0"
		k.sysctls["net/ipv6/conf/"+op.Link+"/accept_ra"] = "1"
		return nil
	}
	if !exists {
		return syscall.ENODEV
	}
	var p netip.Prefix
	if op.Addr.IsValid() {
		p = netip.PrefixFrom(op.Addr, op.Addr.BitLen())
	}
	at, bound := slices.BinarySearchFunc(l.Addresses, p, compareAddresses)
	switch op.Kind {
	case reconcile.SetAlias:
		l.Alias = op.Value
	case reconcile.LinkUp:
		l.Up = true
	case reconcile.DelLink:
		delete(k.links, op.Link)
		delete(k.sysctls, "net/ipv6/conf/"+op.Link+"/keep_addr_on_down")
		delete(k.sysctls, "net/ipv6/conf/"+op.Link+"/accept_ra")
	case reconcile.AddAddress:
		switch {
		case !p.IsValid():
			return syscall.EINVAL
		case bound:
			return syscall.EEXIST
		}
		l.Addresses = slices.Insert(l.Addresses, at, p)
	case reconcile.DelAddress:
		if !bound {
			return syscall.EADDRNOTAVAIL
		}
		l.Addresses = slices.Delete(l.Addresses, at, at+1)
	}
	return nil
}

func (k *Kernel) doChain(op reconcile.Op) error {
	if op.Chain == nil {
		return syscall.EINVAL
	}
	key := op.Chain.ChainKey
	if err := k.noFilter[key.Family]; err != nil {
		return err
	}
	if op.Kind == reconcile.DelChain {
		delete(k.chains, key)
		return nil
	}
	c := reconcile.Chain{ChainKey: key, Exists: true, Jump: true}
	for _, r := range op.Chain.Rules {
		c.Rules = append(c.Rules, reconcile.ParseRule(string(r)))
	}
	k.chains[key] = c
	return nil
}
