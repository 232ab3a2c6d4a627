package lbstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of a HealthCheck.
const (
	CheckTypeTCP   = "tcp"   // a connection, half open by default; send and expect
	CheckTypeTLS   = "tls"   // a handshake; send and expect
	CheckTypeHTTP  = "http"  // a request
	CheckTypeHTTPS = "https" // a request by TLS
	CheckTypeUDP   = "udp"   // a datagram, and its answer
	CheckTypeDNS   = "dns"   // a name server
	CheckTypeICMP  = "icmp"  // an echo request
	CheckTypeSMTP  = "smtp"  // a mail server's greeting
	CheckTypeGRPC  = "grpc"  // grpc.health.v1.Health
	CheckTypeExec  = "exec"  // a program on the checking host
	CheckTypeAll   = "all"   // other checks, all of which must succeed
	CheckTypeAny   = "any"   // other checks, one of which must succeed
)

// Modes of a check of type tcp.
const (
	ModeHalfOpen = "half-open" // the program that listens does not see it
	ModeFull     = "full"      // connected, and closed in order
)

// CheckTLS says how a handshake is made and what it must show.
type CheckTLS struct {
	ServerName string `json:"server_name,omitempty"` // sent (SNI), and in the certificate; default the host that is asked
	SkipVerify bool   `json:"skip_verify,omitempty"` // take any certificate
	CA         string `json:"ca,omitempty"`          // trusted authorities, PEM; default the checking host's
	MinDays    int    `json:"min_days,omitempty"`    // a warning when the certificate ends sooner; default 14; -1: never
	Implicit   bool   `json:"implicit,omitempty"`    // smtp: at once, and not after STARTTLS
}

// CheckDNS says what a name server is asked for.
type CheckDNS struct {
	Name            string       `json:"name"`
	Type            string       `json:"type,omitempty"` // default A
	TCP             bool         `json:"tcp,omitempty"`
	NoRecursion     bool         `json:"no_recursion,omitempty"`     // ask for what an authoritative server itself knows
	ExpectCodes     []string     `json:"expect_codes,omitempty"`     // such as NXDOMAIN; default NOERROR with a record of the type
	ExpectAddresses []netip.Addr `json:"expect_addresses,omitempty"` // all of which must be in the answer
}

// CheckExec names a program in the directory that the checking host allows.
// Exit code 0 is a success. In arguments {address} and {port} stand for the
// backend's; no shell reads them.
type CheckExec struct {
	Program string   `json:"program"` // a file name, not a path
	Args    []string `json:"args,omitempty"`
}

// CheckVia says how probes leave the checking host, so that they can take the
// path of the traffic.
type CheckVia struct {
	Source    netip.Addr `json:"source,omitzero"`
	Interface string     `json:"interface,omitempty"`
	Mark      uint32     `json:"mark,omitempty"` // firewall mark; the checking host needs CAP_NET_ADMIN
}

// Defaults of a check.
const (
	DefaultMinDays    = 14
	DefaultPacketSize = 56
	DefaultQuiet      = 200 * time.Millisecond
	DefaultAnswer     = 64 << 10 // ExpectLimit
)

func (c *HealthCheck) withDefaults() *HealthCheck {
	if c == nil || c.Use != "" {
		return c
	}
	d := *c
	if d.Interval == 0 {
		d.Interval = Duration(2 * time.Second)
	}
	if d.DownInterval == 0 {
		d.DownInterval = d.Interval
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
	if d.Initial == "" {
		d.Initial = InitialDown
	}
	d = d.askingDefaults(d.Timeout)
	return &d
}

// askingDefaults fills in what the check asks, not when. The types tcp and http
// keep what they had before there were others: a field that came later is not
// filled in there, so that a check from then is the same one now.
func (c HealthCheck) askingDefaults(timeout Duration) HealthCheck {
	c.Address = c.Address.Unmap()
	if (c.Type == CheckTypeHTTP || c.Type == CheckTypeHTTPS) && c.ExpectStatus == "" {
		c.ExpectStatus = "200-299"
	}
	switch c.Type {
	case CheckTypeHTTPS:
		if c.Method == "" {
			c.Method = "GET"
		}
		if c.HTTPVersion == "" {
			c.HTTPVersion = "1.1"
		}
		fallthrough
	case CheckTypeTLS:
		if c.TLS == nil {
			c.TLS = &CheckTLS{}
		}
	case CheckTypeUDP:
		if c.Quiet == 0 && c.expectsNothing() {
			c.Quiet = min(Duration(DefaultQuiet), timeout/2) // silence must count before the timeout does
		}
	case CheckTypeICMP:
		if c.PacketSize == 0 {
			c.PacketSize = DefaultPacketSize
		}
	}
	if c.ExpectLimit == 0 && !c.expectsNothing() && slices.Contains([]string{CheckTypeTLS, CheckTypeHTTPS, CheckTypeUDP}, c.Type) {
		c.ExpectLimit = DefaultAnswer
	}
	if c.DNS != nil {
		d := *c.DNS
		if d.Type == "" {
			d.Type = "A"
		}
		d.ExpectAddresses = slices.Clone(d.ExpectAddresses)
		for i, a := range d.ExpectAddresses {
			d.ExpectAddresses[i] = a.Unmap()
		}
		c.DNS = &d
	}
	if c.TLS != nil {
		t := *c.TLS
		if t.MinDays == 0 {
			t.MinDays = DefaultMinDays
		}
		c.TLS = &t
	}
	if c.Via != nil {
		v := *c.Via
		v.Source = v.Source.Unmap()
		c.Via = &v
	}
	if c.Checks != nil {
		parts := make([]HealthCheck, len(c.Checks))
		for i, p := range c.Checks {
			parts[i] = p.askingDefaults(timeout)
		}
		c.Checks = parts
	}
	return c
}

func (c HealthCheck) expectsNothing() bool { return c.Expect == "" && c.ExpectBody == "" }

// Unescape reads the text of Send and Expect: \r, \n, \t, \0, \\ and \xHH, a
// byte in hexadecimal, stand for what they do in most languages; all else for
// itself.
func Unescape(text string) ([]byte, error) {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out = append(out, text[i])
			continue
		}
		i++
		if i == len(text) {
			return nil, fmt.Errorf(`ends in a single \; \\ stands for one`)
		}
		if at := strings.IndexByte(`rnt0\`, text[i]); at >= 0 {
			out = append(out, "\r\n\t\x00\\"[at])
			continue
		}
		if text[i] != 'x' {
			return nil, fmt.Errorf(`\%c is not an escape`, text[i])
		}
		b, err := strconv.ParseUint(text[i+1:min(i+3, len(text))], 16, 8)
		if err != nil || i+3 > len(text) {
			return nil, fmt.Errorf(`\x needs two hexadecimal digits`)
		}
		out = append(out, byte(b))
		i += 2
	}
	return out, nil
}

// UsesExec says whether the check, or one that it combines, runs a program.
func (c HealthCheck) UsesExec() bool {
	return c.Type == CheckTypeExec || c.Exec != nil || slices.ContainsFunc(c.Checks, HealthCheck.UsesExec)
}
