package lbstate

import (
	"cmp"
	"net/netip"
	"slices"
)

// DefaultWeight is a backend's weight when none is given.
const DefaultWeight = 100

// Effective is the one place that says which weight each backend has in the
// kernel, and why. It is a pure function of a service with its defaults filled
// in and of the stored health of its backends, by address:port; version is
// carried along.
func Effective(s Service, health map[string]BackendHealth, version uint64) ServiceStatus {
	st := ServiceStatus{Service: s, Version: version, Backends: make([]BackendStatus, 0, len(s.Backends))}
	for _, b := range s.Backends {
		bs := BackendStatus{Backend: b}
		if s.check(b) != nil {
			h, known := health[b.Key()]
			if !known {
				h.State = Unknown
			}
			bs.Health = &h
		}
		bs.EffectiveWeight, bs.Reason = effectiveWeight(b, bs.Health)
		st.Backends = append(st.Backends, bs)
	}
	return st
}

func effectiveWeight(b Backend, h *BackendHealth) (int, Reason) {
	weight := b.weight()
	switch {
	case b.State == Disabled:
		return 0, OutOfService
	case b.State == Drain:
		return 0, Draining
	case h != nil && h.State == Down:
		return 0, Unhealthy
	case h != nil && h.State == Unknown:
		return 0, NotYetUp
	case weight == 0:
		return 0, ZeroWeight
	case h != nil:
		return weight, Healthy
	}
	return weight, InService
}

// Desired is what a director programs for a service.
func Desired(st ServiceStatus) DesiredService {
	s := st.Service
	d := DesiredService{
		Name: s.Name, Version: st.Version,
		VIP: s.VIP, Port: uint16(s.Port), Protocol: s.Protocol, FWMark: s.FWMark, Family: s.family(),
		Scheduler: s.Scheduler, SchedulerFlags: s.SchedulerFlags,
		OnePacket: s.OnePacket, SNAT: s.SNAT, Persistence: s.Persistence,
	}
	for _, b := range st.Backends {
		if b.State == Disabled {
			continue
		}
		d.Backends = append(d.Backends, DesiredBackend{
			Address: b.Address, Port: uint16(b.Port), Forwarding: b.Forwarding,
			Weight: b.EffectiveWeight, Reason: b.Reason,
		})
	}
	slices.SortFunc(d.Backends, func(a, b DesiredBackend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return d
}

// Key is the backend's address and port, as paths and maps have it. The port
// must have been filled in.
func (b Backend) Key() string { return b.AddrPort().String() }

// AddrPort is the backend's address and port.
func (b Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Address, uint16(b.Port)) }

func (b Backend) weight() int {
	if b.Weight == nil {
		return DefaultWeight
	}
	return *b.Weight
}

// Selects says whether an agent with these labels gets the service.
func (s Service) Selects(labels map[string]string) bool {
	for k, v := range s.Agents {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (s Service) family() Family {
	switch {
	case s.FWMark != 0:
		return s.Family
	case s.VIP.Is4():
		return IPv4
	}
	return IPv6
}

// ResolvedCheck is what is to be probed for one backend of a service.
type ResolvedCheck struct {
	Service string
	Backend netip.AddrPort
	Check   HealthCheck // defaults filled in
	Hash    uint64      // CheckHash of it; a transition carries it
}

// Checks returns the checks of a service's backends; none for backends that
// are disabled or have no check.
func (s Service) Checks() []ResolvedCheck {
	var checks []ResolvedCheck
	for _, b := range s.Backends {
		if c := s.check(b); c != nil && b.State != Disabled {
			checks = append(checks, ResolvedCheck{Service: s.Name, Backend: b.AddrPort(), Check: *c, Hash: CheckHash(*c, b.AddrPort())})
		}
	}
	return checks
}

// check returns the check of a backend: its own, else the service's, else nil.
func (s Service) check(b Backend) *HealthCheck {
	if b.HealthCheck != nil {
		return b.HealthCheck
	}
	return s.HealthCheck
}
