package lbstate

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// DefaultWeight is a backend's weight when none is given, and a sorry server's.
const DefaultWeight = 100

// Effective is the one place that says which weight each backend has in the
// kernel, and why. It is a pure function of a service with its defaults filled
// in, of the shared checks that it uses, by name, and of the stored health of
// its backends; version is carried along.
func Effective(s Service, checks map[string]SharedCheck, health map[netip.AddrPort]BackendHealth, version uint64) ServiceStatus {
	st := ServiceStatus{Service: s, Version: version, Backends: make([]BackendStatus, 0, len(s.Backends)), encoded: &encoded{}}
	usable := 0
	for _, b := range s.Backends {
		bs := BackendStatus{Backend: b, Check: s.resolve(b, checks)}
		if bs.Check != nil {
			h, known := health[b.AddrPort()]
			if !known {
				h.State = Unknown
			}
			bs.Health = &h
		}
		bs.EffectiveWeight, bs.Reason = effectiveWeight(b, bs.Check, bs.Health)
		if bs.EffectiveWeight > 0 {
			usable++
		}
		if b.State == Drain && b.DrainTimeout > 0 && !b.DrainSince.IsZero() {
			bs.DrainUntil = b.DrainSince.Add(time.Duration(b.DrainTimeout))
		}
		st.Backends = append(st.Backends, bs)
	}
	if usable < max(s.MinHealthy, 1) {
		st.shortOfBackends()
	}
	return st
}

func effectiveWeight(b Backend, c *HealthCheck, h *BackendHealth) (int, Reason) {
	weight := b.weight()
	switch {
	case b.State == Disabled:
		return 0, OutOfService
	case b.State == Drain:
		return 0, Draining
	case h != nil && h.State == Down:
		return 0, Unhealthy
	case h != nil && h.State == Unknown && c.Initial != InitialUp:
		return 0, NotYetUp
	case weight == 0:
		return 0, ZeroWeight
	case h == nil:
		return weight, InService
	case h.State == Unknown:
		return weight, AssumedUp
	case h.Held:
		return weight, Held
	}
	return weight, Healthy
}

// shortOfBackends applies the service's rule for when too few are healthy.
func (st *ServiceStatus) shortOfBackends() {
	switch {
	case st.FailOpen:
		for i := range st.Backends {
			b := &st.Backends[i]
			if b.State == Active && b.EffectiveWeight == 0 && b.weight() > 0 {
				b.EffectiveWeight, b.Reason = b.weight(), FailedOpen
			}
		}
	case st.SorryServer != nil:
		st.InCharge = true
		for i := range st.Backends {
			if b := &st.Backends[i]; b.EffectiveWeight > 0 {
				b.EffectiveWeight, b.Reason = 0, Standing
			}
		}
	}
}

// Desired is what a director programs for a service. Its slices and pointers
// may be the service's own. The sorry server is one destination more; while it
// is not in charge its weight is 0, so that what it was given may end in peace.
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
		db := DesiredBackend{
			Address: b.Address, Port: uint16(b.Port), Forwarding: b.Forwarding,
			Weight: b.EffectiveWeight, Reason: b.Reason,
			UpperThreshold: b.UpperThreshold, LowerThreshold: b.LowerThreshold, DrainUntil: b.DrainUntil,
		}
		if b.Forwarding == Tunnel {
			db.Tunnel = b.Tunnel
		}
		d.Backends = append(d.Backends, db)
	}
	if sorry := s.SorryServer; sorry != nil {
		db := DesiredBackend{Address: sorry.Address, Port: uint16(sorry.Port), Forwarding: sorry.Forwarding, Reason: StandingBy}
		if st.InCharge {
			db.Weight, db.Reason = DefaultWeight, Sorry
		}
		if sorry.Forwarding == Tunnel {
			db.Tunnel = cmp.Or(s.Tunnel, &TunnelOptions{Type: IPIP, Checksum: ChecksumNone})
		}
		d.Backends = append(d.Backends, db)
	}
	slices.SortFunc(d.Backends, func(a, b DesiredBackend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return d
}

// Key is the backend's address and port, as paths have it. The port must have
// been filled in.
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
func (s Service) Selects(labels map[string]string) bool { return satisfied(s.Agents, labels) }

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

// Checks returns the checks of a service's backends, shared ones resolved; none
// for backends that are disabled or have no check.
func (st ServiceStatus) Checks() []ResolvedCheck {
	var checks []ResolvedCheck
	for _, b := range st.Backends {
		if b.Check != nil && b.State != Disabled {
			checks = append(checks, ResolvedCheck{Service: st.Name, Backend: b.AddrPort(), Check: *b.Check, Hash: CheckHash(*b.Check, b.AddrPort())})
		}
	}
	return checks
}

// checkOf returns the check of a backend, as written: its own, else the
// service's, else nil.
func (s Service) checkOf(b Backend) *HealthCheck {
	if b.HealthCheck != nil {
		return b.HealthCheck
	}
	return s.HealthCheck
}

// resolve returns what is asked of a backend: its check, or the shared one that
// this uses; nil where there is none.
func (s Service) resolve(b Backend, shared map[string]SharedCheck) *HealthCheck {
	c := s.checkOf(b)
	if c == nil || c.Use == "" {
		return c
	}
	named, ok := shared[c.Use]
	if !ok {
		return nil
	}
	return &named.Check
}
