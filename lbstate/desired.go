package lbstate

import (
	"net/netip"
	"time"
)

// DesiredService is what a director programs for one service: everything is
// filled in, and each backend carries its effective weight.
type DesiredService struct {
	Name           string
	Version        uint64     // the state's counter when this last changed, by configuration or health
	VIP            netip.Addr // invalid with FWMark
	Port           uint16
	Protocol       Protocol
	FWMark         uint32
	Family         Family // always set
	Scheduler      string
	SchedulerFlags []string
	Persistence    *Persistence // Prefix is always set
	OnePacket      bool
	SNAT           SNATMode
	Backends       []DesiredBackend // by address and port; none that is disabled
}

// DesiredBackend is one destination of a DesiredService.
type DesiredBackend struct {
	Address        netip.Addr
	Port           uint16
	Forwarding     Forwarding
	Tunnel         *TunnelOptions // set with Forwarding Tunnel, filled in
	Weight         int            // effective, 0 to 65535
	Reason         Reason
	UpperThreshold int
	LowerThreshold int
	DrainUntil     time.Time // from then on the destination goes, with what connections it has; zero: never
}

// View is everything that one director should have in its kernel.
type View struct {
	Cluster  uint64 // the cluster's ID
	Revision uint64
	Services []DesiredService // by name
	Profile  *DesiredProfile  // nil: none selects the director
}

// Applied is a director's account of a View that it applied and read back.
type Applied struct {
	Revision   uint64    `json:"revision"`
	Converged  bool      `json:"converged"` // the kernel equals the view; drains may still run
	Simulated  bool      `json:"simulated"` // the kernel is an in-memory one
	Services   int       `json:"services"`
	Operations int       `json:"operations"` // how many kernel operations it took
	Draining   int       `json:"draining"`
	Failures   []Failure `json:"failures,omitempty"`
	Collisions []string  `json:"collisions,omitempty"` // foreign objects in our way, left alone

	Profile *AppliedProfile `json:"profile,omitempty"` // in force; nil: none
}

// Failure names an object that could not be made as desired.
type Failure struct {
	Object string `json:"object"` // "tcp/192.0.2.10:80" or "tcp/192.0.2.10:80 -> 10.1.0.1:8080"
	Op     string `json:"op"`
	Reason string `json:"reason"` // what the kernel said, and what to do
}

// BackendHealth is the stored health of one backend of one service.
type BackendHealth struct {
	State   HealthState `json:"state"`
	Since   int64       `json:"since,omitempty"` // Unix milliseconds, by the reporting leader's clock
	Message string      `json:"message,omitempty"`
	Held    bool        `json:"held,omitempty"` // its check fails, but with so many others that it is not believed
}

// BackendStatus is a backend with what the state makes of it.
type BackendStatus struct {
	Backend
	EffectiveWeight int            `json:"effective_weight"`
	Reason          Reason         `json:"reason"`
	DrainUntil      time.Time      `json:"drain_until,omitzero"` // zero: not draining, or without a deadline
	Check           *HealthCheck   `json:"check,omitempty"`      // what holds for it, shared ones resolved; nil: no check
	Health          *BackendHealth `json:"health,omitempty"`     // nil: no check
}

// ServiceStatus is a service with the effective state of its backends, in the
// order of Service.Backends. What a Store returns is shared between its
// callers: read it, do not change it.
type ServiceStatus struct {
	Service
	Version  uint64          `json:"version"`
	InCharge bool            `json:"sorry_server_in_charge,omitempty"` // too few are healthy: the sorry server takes new connections
	Backends []BackendStatus `json:"backends"`                         // shadows Service.Backends in JSON

	encoded *encoded // nil: of nobody's making but the caller's
}
