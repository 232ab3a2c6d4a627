package lbstate

import (
	"slices"
	"time"
)

// Defaults of a service; a check's are with HealthCheck.
const (
	DefaultScheduler          = "wlc"
	DefaultPersistenceTimeout = 300 * time.Second
)

// WithDefaults returns the service with every default filled in, so that what
// is stored and shown says all that holds. It does not change s.
func (s Service) WithDefaults() Service {
	if s.FWMark == 0 && s.Protocol == "" {
		s.Protocol = TCP
	}
	s.VIP = s.VIP.Unmap()
	if s.Scheduler == "" {
		s.Scheduler = DefaultScheduler
	}
	if s.Forwarding == "" {
		s.Forwarding = Masq
	}
	if s.SNAT == "" {
		s.SNAT = SNATLocal
	}
	s.Tunnel = s.Tunnel.withDefaults()
	if s.Persistence != nil {
		p := *s.Persistence
		if p.Timeout == 0 {
			p.Timeout = Duration(DefaultPersistenceTimeout)
		}
		if p.Prefix == 0 {
			p.Prefix = 32
			if s.family() == IPv6 {
				p.Prefix = 128
			}
		}
		s.Persistence = &p
	}
	s.HealthCheck = s.HealthCheck.withDefaults()
	s.SchedulerFlags = slices.Clone(s.SchedulerFlags)
	slices.Sort(s.SchedulerFlags)
	if len(s.SchedulerFlags) == 0 {
		s.SchedulerFlags = nil
	}
	if s.SorryServer != nil {
		sorry := *s.SorryServer
		sorry.Address = sorry.Address.Unmap()
		if sorry.Port == 0 {
			sorry.Port = s.Port
		}
		if sorry.Forwarding == "" {
			sorry.Forwarding = s.Forwarding
		}
		s.SorryServer = &sorry
	}
	backends := make([]Backend, len(s.Backends))
	for i, b := range s.Backends {
		backends[i] = b.withDefaults(s)
	}
	s.Backends = backends
	return s
}

func (b Backend) withDefaults(s Service) Backend {
	b.Address = b.Address.Unmap()
	if b.Port == 0 {
		b.Port = s.Port
	}
	if b.Weight == nil {
		w := DefaultWeight
		b.Weight = &w
	}
	if b.State == "" {
		b.State = Active
	}
	if b.Forwarding == "" {
		b.Forwarding = s.Forwarding
	}
	if b.Forwarding == Tunnel && b.Tunnel == nil {
		b.Tunnel = s.Tunnel
		if b.Tunnel == nil {
			b.Tunnel = &TunnelOptions{}
		}
	}
	b.Tunnel = b.Tunnel.withDefaults()
	b.HealthCheck = b.HealthCheck.withDefaults()
	b.DrainSince = time.Time{} // the state's to say
	return b
}

func (t *TunnelOptions) withDefaults() *TunnelOptions {
	if t == nil {
		return nil
	}
	d := *t
	if d.Type == "" {
		d.Type = IPIP
	}
	if d.Checksum == "" {
		d.Checksum = ChecksumNone
	}
	return &d
}

func (p DirectorProfile) withDefaults() DirectorProfile {
	if p.Guard != nil {
		g := *p.Guard
		if g.MaxServices == 0 {
			g.MaxServices = 3
		}
		if g.MaxPercent == 0 {
			g.MaxPercent = 50
		}
		p.Guard = &g
	}
	return p
}
