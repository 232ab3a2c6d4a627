package lbstate

import (
	"net/netip"
	"time"
)

// Service is one virtual service as an operator writes it: a listener (VIP,
// port and protocol, or a firewall mark) and the backends behind it. Port and
// weights are ints so that a value out of range is a fault with a path, not a
// decoding error.
type Service struct {
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels,omitempty"`
	VIP            netip.Addr        `json:"vip,omitzero"`
	Port           int               `json:"port,omitempty"`
	Protocol       Protocol          `json:"protocol,omitempty"` // default tcp, unless FWMark is set
	FWMark         uint32            `json:"fwmark,omitempty"`   // instead of VIP, Port and Protocol
	Family         Family            `json:"family,omitempty"`   // with FWMark only
	Scheduler      string            `json:"scheduler"`          // default wlc
	SchedulerFlags []string          `json:"scheduler_flags,omitempty"`
	Forwarding     Forwarding        `json:"forwarding"` // default masq; default of its backends
	Persistence    *Persistence      `json:"persistence,omitempty"`
	OnePacket      bool              `json:"one_packet,omitempty"` // UDP only
	SNAT           SNATMode          `json:"snat"`                 // default local
	Agents         map[string]string `json:"agents,omitempty"`     // labels an agent must have; empty means all
	HealthCheck    *HealthCheck      `json:"health_check,omitempty"`
	Backends       []Backend         `json:"backends,omitempty"`

	// Revision is that of the last change of this configuration; set by the
	// state, and in a write the precondition when it is not zero.
	Revision uint64 `json:"revision,omitempty"`
}

// Backend is one real server of a service. Its key is Address and Port.
type Backend struct {
	Address     netip.Addr   `json:"address"`
	Port        int          `json:"port,omitempty"`       // 0: the service's
	Weight      *int         `json:"weight,omitempty"`     // 0 to 65535; nil: 100
	State       BackendState `json:"state,omitempty"`      // default active
	Forwarding  Forwarding   `json:"forwarding,omitempty"` // default: the service's
	HealthCheck *HealthCheck `json:"health_check,omitempty"`
}

// HealthCheck says how a backend is probed. A backend without one is in service.
type HealthCheck struct {
	Type         string     `json:"type"`                    // tcp | http
	Address      netip.Addr `json:"address,omitzero"`        // tcp: default the backend's
	Port         int        `json:"port,omitempty"`          // default the backend's
	Path         string     `json:"path,omitempty"`          // http: asked of the backend's own address
	Host         string     `json:"host,omitempty"`          // http with path: Host header
	URL          string     `json:"url,omitempty"`           // http: absolute, dialled as written; instead of Path
	ExpectStatus string     `json:"expect_status,omitempty"` // "200-299", "200,204"; default 200-299
	ExpectBody   string     `json:"expect_body,omitempty"`   // RE2
	Interval     Duration   `json:"interval,omitempty"`      // default 2s
	Timeout      Duration   `json:"timeout,omitempty"`       // default 1s
	Rise         int        `json:"rise,omitempty"`          // default 2
	Fall         int        `json:"fall,omitempty"`          // default 3
}

// Persistence binds a client to the backend it was first given.
type Persistence struct {
	Timeout Duration `json:"timeout"`          // whole seconds; default 300s
	Prefix  int      `json:"prefix,omitempty"` // default 32 (IPv4) or 128
}

// Duration is a time.Duration that reads and writes as text ("1.5s").
type Duration time.Duration

type (
	Protocol     string // tcp | udp | sctp
	Family       string // ipv4 | ipv6
	Forwarding   string // masq | dr | tunnel
	SNATMode     string // local | all | off
	BackendState string // active | drain | disabled
	HealthState  string // unknown | up | down
	Reason       string // why a backend has its effective weight
)

const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"

	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"

	Masq   Forwarding = "masq"
	DR     Forwarding = "dr"
	Tunnel Forwarding = "tunnel"

	SNATLocal SNATMode = "local"
	SNATAll   SNATMode = "all"
	SNATOff   SNATMode = "off"

	Active   BackendState = "active"
	Drain    BackendState = "drain"
	Disabled BackendState = "disabled"

	Unknown HealthState = "unknown"
	Up      HealthState = "up"
	Down    HealthState = "down"

	InService    Reason = "in service"     // no check
	Healthy      Reason = "healthy"        // its check is up
	Unhealthy    Reason = "unhealthy"      // its check is down
	NotYetUp     Reason = "not yet up"     // its check never succeeded
	Draining     Reason = "draining"       // state: drain
	OutOfService Reason = "out of service" // state: disabled; not in the kernel
	ZeroWeight   Reason = "weight 0"
)
