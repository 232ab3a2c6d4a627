package lbstate

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// keepalivedCheckers maps a checker to a type of check.
var keepalivedCheckers = map[string]string{
	"TCP_CHECK": CheckTypeTCP, "HTTP_GET": CheckTypeHTTP, "SSL_GET": CheckTypeHTTPS, "DNS_CHECK": CheckTypeDNS,
	"SMTP_CHECK": CheckTypeSMTP, "UDP_CHECK": CheckTypeUDP, "PING_CHECK": CheckTypeICMP,
}

// checker carries one over, several checks where it asks for several URLs. base
// is what the blocks around it say.
func (im *keepalived) checker(base HealthCheck, st statement) []HealthCheck {
	c := base
	c.Type = keepalivedCheckers[st.words[0]]
	web := c.Type == CheckTypeHTTP || c.Type == CheckTypeHTTPS
	switch c.Type {
	case CheckTypeHTTPS: // keepalived takes any certificate
		c.TLS = &CheckTLS{SkipVerify: true}
	case CheckTypeDNS:
		c.DNS = &CheckDNS{Name: ".", Type: "SOA"}
	}
	var urls []statement
	for _, o := range st.block {
		switch {
		case web && o.is("url"):
			urls = append(urls, o)
		case c.Type == CheckTypeSMTP && o.is("host"):
			for _, inner := range o.block {
				im.checkerOption(&c, inner)
			}
		default:
			im.checkerOption(&c, o)
		}
	}
	if !web {
		c.Host = ""
		return []HealthCheck{c}
	}
	var checks []HealthCheck
	for _, u := range urls {
		one := c
		im.url(&one, u)
		if one.Path == "" {
			one.Path = "/"
		}
		checks = append(checks, one)
	}
	if len(checks) == 0 {
		c.Path = "/"
		checks = append(checks, c)
	}
	return checks
}

// combined makes one check of several, all of which keepalived wants to
// succeed. It has the intervals of the first.
func (im *keepalived) combined(first statement, checks []HealthCheck) *HealthCheck {
	switch len(checks) {
	case 0:
		return nil
	case 1:
		return &checks[0]
	}
	f := checks[0]
	all := &HealthCheck{Type: CheckTypeAll, Interval: f.Interval, Timeout: f.Timeout, Fall: f.Fall, Initial: f.Initial}
	for i, c := range checks {
		if c.Interval != f.Interval || c.Timeout != f.Timeout || c.Fall != f.Fall {
			im.note(first.line, fmt.Sprintf("check %d of %d", i+1, len(checks)), "has intervals or retries of its own; those of the first are used")
		}
		c.Interval, c.Timeout, c.Fall, c.Initial = 0, 0, 0, "" // all that an import sets
		all.Checks = append(all.Checks, c)
	}
	return all
}

// checkerOption carries over one statement of a checker.
func (im *keepalived) checkerOption(c *HealthCheck, o statement) {
	switch o.words[0] {
	case "connect_ip":
		c.Address = im.addr(o)
	case "connect_port":
		c.Port = im.integer(o, 0)
	case "bindto":
		im.via(c).Source = im.addr(o)
	case "bind_if":
		im.via(c).Interface = o.value()
	case "fwmark":
		mark, err := strconv.ParseUint(o.value(), 10, 32)
		if err != nil {
			im.note(o.line, o.text(), "is not a firewall mark; it is left out")
			return
		}
		im.via(c).Mark = uint32(mark)
	case "delay_loop", "retry", "connect_timeout", "virtualhost":
		im.checkOption(c, o)
	case "nb_get_retry":
		c.Fall = im.integer(o, 0) + 1
	default:
		if !im.checkerOwn(c, o) {
			im.note(o.line, o.text(), "has no counterpart; it is left out")
		}
	}
}

// checkerOwn carries over what belongs to one kind of checker alone, and says
// whether it did.
func (im *keepalived) checkerOwn(c *HealthCheck, o statement) bool {
	switch c.Type + " " + o.words[0] {
	case "dns name":
		c.DNS.Name = o.value()
	case "dns type":
		c.DNS.Type = strings.ToUpper(o.value())
	case "smtp helo_name":
		c.Hello = o.value()
	case "udp payload":
		c.Send = im.bytes(o)
	case "udp require_reply":
		if c.Expect = im.bytes(o); c.Expect == "" {
			c.ExpectBody = "^" // any answer
		}
	default:
		return false
	}
	return true
}

// bytes reads a dump in hexadecimal as a text with escapes.
func (im *keepalived) bytes(o statement) string {
	digits := strings.Join(strings.Fields(strings.Join(o.words[1:], " ")), "")
	data, err := hex.DecodeString(strings.TrimPrefix(digits, "0x"))
	if err != nil {
		im.note(o.line, o.text(), "is not plain hexadecimal; it is left out")
		return ""
	}
	var b strings.Builder
	for _, c := range data {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	return b.String()
}

func (im *keepalived) addr(o statement) netip.Addr {
	a, err := netip.ParseAddr(o.value())
	if err != nil {
		im.note(o.line, o.text(), "is not an IP address; it is left out")
	}
	return a.Unmap()
}

func (im *keepalived) via(c *HealthCheck) *CheckVia {
	if c.Via == nil {
		c.Via = &CheckVia{}
	}
	return c.Via
}

// url carries what an HTTP check asks for over.
func (im *keepalived) url(c *HealthCheck, st statement) {
	for _, o := range st.block {
		switch o.words[0] {
		case "path":
			c.Path = o.value()
		case "status_code":
			c.ExpectStatus = strings.Join(o.words[1:], ",")
		case "regex":
			c.ExpectBody = o.value()
		case "virtualhost":
			c.Host = o.value()
		default:
			im.note(o.line, o.text(), "has no counterpart; it is left out")
		}
	}
}

// checkOption carries over what may stand at any level around a check.
func (im *keepalived) checkOption(c *HealthCheck, o statement) {
	switch o.words[0] {
	case "delay_loop":
		c.Interval = im.seconds(o)
	case "connect_timeout":
		c.Timeout = im.seconds(o)
	case "retry": // so many after the first failure
		c.Fall = im.integer(o, 0) + 1
	case "virtualhost":
		c.Host = o.value()
	}
}
