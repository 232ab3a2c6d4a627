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
	if s.VIP.IsValid() {
		s.VIP = s.VIP.Unmap()
	}
	if s.Scheduler == "" {
		s.Scheduler = DefaultScheduler
	}
	if s.Forwarding == "" {
		s.Forwarding = Masq
	}
	if s.SNAT == "" {
		s.SNAT = SNATLocal
	}
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
	b.HealthCheck = b.HealthCheck.withDefaults()
	return b
}

func (c *HealthCheck) withDefaults() *HealthCheck {
	if c == nil {
		return nil
	}
	d := *c
	if d.Interval == 0 {
		d.Interval = Duration(2 * time.Second)
	}
	if d.Timeout == 0 {
		d.Timeout = Duration(time.Second)
	}
	if d.Rise == 0 {
		d.Rise = 2
	}
	if d.Fall == 0 {
		d.Fall = 3
	}
	if d.Type == "http" && d.ExpectStatus == "" {
		d.ExpectStatus = "200-299"
	}
	return &d
}
