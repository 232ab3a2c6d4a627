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
	Forwarding     Forwarding        `json:"forwarding"`       // default masq; default of its backends
	Tunnel         *TunnelOptions    `json:"tunnel,omitempty"` // default of its backends with forwarding tunnel
	Persistence    *Persistence      `json:"persistence,omitempty"`
	OnePacket      bool              `json:"one_packet,omitempty"`   // UDP only
	SNAT           SNATMode          `json:"snat"`                   // default local
	Agents         map[string]string `json:"agents,omitempty"`       // labels an agent must have; empty means all
	HealthCheck    *HealthCheck      `json:"health_check,omitempty"` // default of its backends
	MinHealthy     int               `json:"min_healthy,omitempty"`  // 0: 1; fewer healthy backends trigger the next two
	FailOpen       bool              `json:"fail_open,omitempty"`    // then every active backend gets its weight
	SorryServer    *SorryServer      `json:"sorry_server,omitempty"` // then it alone gets new connections
	Backends       []Backend         `json:"backends,omitempty"`
	Notes          string            `json:"notes,omitempty"`

	// Revision is that of the last change of this configuration; set by the
	// state, and in a write the precondition when it is not zero.
	Revision uint64 `json:"revision,omitempty"`
}

// Backend is one real server of a service. Its key is Address and Port.
type Backend struct {
	Address        netip.Addr     `json:"address"`
	Port           int            `json:"port,omitempty"`            // 0: the service's
	Weight         *int           `json:"weight,omitempty"`          // 0 to 65535; nil: 100
	State          BackendState   `json:"state,omitempty"`           // default active
	DrainTimeout   Duration       `json:"drain_timeout,omitempty"`   // with state drain: then out of the kernel; 0: never
	DrainSince     time.Time      `json:"drain_since,omitzero"`      // set by the state: when draining began
	Forwarding     Forwarding     `json:"forwarding,omitempty"`      // default: the service's
	Tunnel         *TunnelOptions `json:"tunnel,omitempty"`          // default: the service's
	UpperThreshold int            `json:"upper_threshold,omitempty"` // connections; 0: no limit
	LowerThreshold int            `json:"lower_threshold,omitempty"` // 0: three quarters of the upper one
	HealthCheck    *HealthCheck   `json:"health_check,omitempty"`    // default: the service's
	Notes          string         `json:"notes,omitempty"`
}

// SorryServer takes the new connections of a service that has too few healthy
// backends.
type SorryServer struct {
	Address    netip.Addr `json:"address"`
	Port       int        `json:"port,omitempty"`       // 0: the service's
	Forwarding Forwarding `json:"forwarding,omitempty"` // default: the service's
}

// TunnelOptions say how packets are wrapped with forwarding tunnel.
type TunnelOptions struct {
	Type     TunnelType     `json:"type"`               // default ipip
	Port     int            `json:"port,omitempty"`     // gue: the backend's UDP port
	Checksum TunnelChecksum `json:"checksum,omitempty"` // gue and gre; default none
}

// HealthCheck says how a backend is probed. A backend without one is in
// service. With Use all other fields are empty. Which fields belong to which
// type Validate knows; docs/checks.md has the table.
type HealthCheck struct {
	Use          string     `json:"use,omitempty"`           // name of a SharedCheck
	Type         string     `json:"type,omitempty"`          // one of the Check constants
	Address      netip.Addr `json:"address,omitzero"`        // default the backend's
	Port         int        `json:"port,omitempty"`          // default the backend's
	Path         string     `json:"path,omitempty"`          // http, https: asked of the backend's own address
	Host         string     `json:"host,omitempty"`          // with path: Host header; grpc: the authority
	URL          string     `json:"url,omitempty"`           // http, https: absolute, dialed as written; instead of Path
	ExpectStatus string     `json:"expect_status,omitempty"` // "200-299", "200,204"; default 200-299
	ExpectBody   string     `json:"expect_body,omitempty"`   // RE2, over the body or the answer
	Interval     Duration   `json:"interval,omitempty"`      // default 2s
	DownInterval Duration   `json:"down_interval,omitempty"` // while down or unknown; default the interval
	Timeout      Duration   `json:"timeout,omitempty"`       // default 1s
	Rise         int        `json:"rise,omitempty"`          // default 2
	Fall         int        `json:"fall,omitempty"`          // default 3
	Initial      Initial    `json:"initial,omitempty"`       // of a backend never seen; default down

	Mode        string `json:"mode,omitempty"`         // tcp: half-open (default) or full
	Send        string `json:"send,omitempty"`         // tcp, tls, udp: what is sent, with the escapes of Unescape
	Expect      string `json:"expect,omitempty"`       // what the answer must contain, with the same escapes
	ExpectLimit int    `json:"expect_limit,omitempty"` // bytes of the answer that are looked at; 0: 65536

	Method          string            `json:"method,omitempty"`           // http, https: default GET
	Headers         map[string]string `json:"headers,omitempty"`          // http, https
	HTTPVersion     string            `json:"http_version,omitempty"`     // http, https: 1.1 (default), 2 or auto
	FollowRedirects int               `json:"follow_redirects,omitempty"` // http, https: how many; default none

	GRPCService string   `json:"grpc_service,omitempty"` // grpc: empty asks for the server as a whole
	Hello       string   `json:"hello,omitempty"`        // smtp: name given with EHLO; default the checking host's
	PacketSize  int      `json:"packet_size,omitempty"`  // icmp: bytes of an echo request; default 56
	Quiet       Duration `json:"quiet,omitempty"`        // udp, nothing expected: how long a refusal is awaited; default 200ms

	TLS    *CheckTLS     `json:"tls,omitempty"`    // tls, https; grpc and smtp use TLS where it is given
	DNS    *CheckDNS     `json:"dns,omitempty"`    // dns
	Exec   *CheckExec    `json:"exec,omitempty"`   // exec
	Via    *CheckVia     `json:"via,omitempty"`    // how the probe leaves the checking host
	Checks []HealthCheck `json:"checks,omitempty"` // all, any: what is combined; without intervals, rise and fall
}

// SharedCheck is a check that services and backends use by its name.
type SharedCheck struct {
	Name     string      `json:"name"`
	Check    HealthCheck `json:"check"`
	Notes    string      `json:"notes,omitempty"`
	Revision uint64      `json:"revision,omitempty"` // as Service's
}

// Persistence binds a client to the backend it was first given.
type Persistence struct {
	Timeout Duration `json:"timeout"`          // whole seconds; default 300s
	Prefix  int      `json:"prefix,omitempty"` // default 32 (IPv4) or 128
	Engine  string   `json:"engine,omitempty"` // sip, for udp; empty: by the client's address
}

// Duration is a time.Duration that reads and writes as text ("1.5s").
type Duration time.Duration

type (
	Protocol       string // tcp | udp | sctp
	Family         string // ipv4 | ipv6
	Forwarding     string // masq | dr | tunnel
	TunnelType     string // ipip | gue | gre
	TunnelChecksum string // none | on | remote (gue)
	SNATMode       string // local | all | off
	BackendState   string // active | drain | disabled
	HealthState    string // unknown | up | down
	Initial        string // down | up: whether a backend gets traffic before its check's first verdict
	Reason         string // why a backend has its effective weight
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

	IPIP TunnelType = "ipip"
	GUE  TunnelType = "gue"
	GRE  TunnelType = "gre"

	ChecksumNone   TunnelChecksum = "none"
	ChecksumOn     TunnelChecksum = "on"
	ChecksumRemote TunnelChecksum = "remote"

	SNATLocal SNATMode = "local"
	SNATAll   SNATMode = "all"
	SNATOff   SNATMode = "off"

	Active   BackendState = "active"
	Drain    BackendState = "drain"
	Disabled BackendState = "disabled"

	Unknown HealthState = "unknown"
	Up      HealthState = "up"
	Down    HealthState = "down"

	InitialDown Initial = "down"
	InitialUp   Initial = "up"

	InService    Reason = "in service"     // no check
	Healthy      Reason = "healthy"        // its check is up
	Unhealthy    Reason = "unhealthy"      // its check is down
	NotYetUp     Reason = "not yet up"     // its check never succeeded
	Draining     Reason = "draining"       // state: drain
	OutOfService Reason = "out of service" // state: disabled; not in the kernel
	ZeroWeight   Reason = "weight 0"
	AssumedUp    Reason = "assumed up"             // its check has no verdict yet, and starts as up
	Held         Reason = "held"                   // its check fails with so many others that it is not believed
	FailedOpen   Reason = "fail-open"              // too few are healthy, so all are used
	Standing     Reason = "too few healthy"        // the sorry server has taken over
	Sorry        Reason = "sorry server in charge" // this is the sorry server
	StandingBy   Reason = "sorry server standing by"
)
