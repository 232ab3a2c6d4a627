package lbstate

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of one health check.
const (
	maxRegexp = 1024
	maxText   = 2048 // URL, path
	maxSend   = 4096
	maxExpect = 1024
	maxAnswer = 1 << 20 // bytes of an answer that are looked at
	minCheck  = 10 * time.Millisecond
	maxCheck  = time.Hour

	maxCheckDepth = 3  // of checks that combine checks
	maxChecks     = 16 // that one check combines, those further down included
)

// Validate names every fault of a shared check whose defaults are filled in.
func (c SharedCheck) Validate() error {
	var f faults
	f.name("name", c.Name)
	f.text("notes", c.Notes, maxNotes)
	if c.Check.Use != "" {
		f.add("check.use", c.Check.Use, "", "a shared check cannot use another")
	} else {
		c.Check.validate(&f, "check")
	}
	return f.err()
}

func (c *HealthCheck) validate(f *faults, path string) {
	if c == nil {
		return
	}
	if c.Use != "" {
		f.name(path+".use", c.Use)
		if c.saysMore() {
			f.add(path+".use", c.Use, "use alone", "a check that uses a shared one says nothing itself")
		}
		return
	}
	f.lasts(path+".interval", c.Interval, minCheck, maxCheck)
	f.lasts(path+".down_interval", c.DownInterval, minCheck, maxCheck)
	f.lasts(path+".timeout", c.Timeout, minCheck, maxCheck)
	f.between(path+".rise", c.Rise, 1, 100)
	f.between(path+".fall", c.Fall, 1, 100)
	oneOf(f, path+".initial", c.Initial, InitialDown, InitialUp)
	parts := 0
	c.asks(f, path, c.Timeout, 1, &parts)
}

// schedule are the fields that say when a check asks and how it is judged.
func (c *HealthCheck) schedule() map[string]bool {
	return map[string]bool{
		"interval": c.Interval != 0, "down_interval": c.DownInterval != 0, "timeout": c.Timeout != 0,
		"rise": c.Rise != 0, "fall": c.Fall != 0, "initial": c.Initial != "",
	}
}

// saysMore is for a check with Use: whether it has anything beside it.
func (c *HealthCheck) saysMore() bool {
	more := c.Type != ""
	for _, set := range c.schedule() {
		more = more || set
	}
	for _, field := range checkFields {
		more = more || field.set(c)
	}
	return more
}

// checkFields says which fields belong to which types of check.
var checkFields = []struct {
	name  string
	set   func(*HealthCheck) bool
	types []string
}{
	{"address", func(c *HealthCheck) bool { return c.Address.IsValid() }, []string{"tcp", "tls", "http", "https", "udp", "dns", "icmp", "smtp", "grpc"}},
	{"port", func(c *HealthCheck) bool { return c.Port != 0 }, []string{"tcp", "tls", "http", "https", "udp", "dns", "smtp", "grpc"}},
	{"path", func(c *HealthCheck) bool { return c.Path != "" }, []string{"http", "https"}},
	{"url", func(c *HealthCheck) bool { return c.URL != "" }, []string{"http", "https"}},
	{"host", func(c *HealthCheck) bool { return c.Host != "" }, []string{"http", "https", "grpc"}},
	{"expect_status", func(c *HealthCheck) bool { return c.ExpectStatus != "" }, []string{"http", "https"}},
	{"expect_body", func(c *HealthCheck) bool { return c.ExpectBody != "" }, []string{"tcp", "tls", "udp", "http", "https"}},
	{"expect", func(c *HealthCheck) bool { return c.Expect != "" }, []string{"tcp", "tls", "udp", "http", "https"}},
	{"expect_limit", func(c *HealthCheck) bool { return c.ExpectLimit != 0 }, []string{"tcp", "tls", "udp", "http", "https"}},
	{"mode", func(c *HealthCheck) bool { return c.Mode != "" }, []string{"tcp"}},
	{"send", func(c *HealthCheck) bool { return c.Send != "" }, []string{"tcp", "tls", "udp"}},
	{"method", func(c *HealthCheck) bool { return c.Method != "" }, []string{"http", "https"}},
	{"headers", func(c *HealthCheck) bool { return len(c.Headers) > 0 }, []string{"http", "https"}},
	{"http_version", func(c *HealthCheck) bool { return c.HTTPVersion != "" }, []string{"http", "https"}},
	{"follow_redirects", func(c *HealthCheck) bool { return c.FollowRedirects != 0 }, []string{"http", "https"}},
	{"grpc_service", func(c *HealthCheck) bool { return c.GRPCService != "" }, []string{"grpc"}},
	{"hello", func(c *HealthCheck) bool { return c.Hello != "" }, []string{"smtp"}},
	{"packet_size", func(c *HealthCheck) bool { return c.PacketSize != 0 }, []string{"icmp"}},
	{"quiet", func(c *HealthCheck) bool { return c.Quiet != 0 }, []string{"udp"}},
	{"tls", func(c *HealthCheck) bool { return c.TLS != nil }, []string{"tls", "https", "smtp", "grpc"}},
	{"dns", func(c *HealthCheck) bool { return c.DNS != nil }, []string{"dns"}},
	{"exec", func(c *HealthCheck) bool { return c.Exec != nil }, []string{"exec"}},
	{"via", func(c *HealthCheck) bool { return c.Via != nil }, []string{"tcp", "tls", "http", "https", "udp", "dns", "icmp", "smtp", "grpc"}},
	{"checks", func(c *HealthCheck) bool { return len(c.Checks) > 0 }, []string{"all", "any"}},
}

// asks names the faults of what is asked. timeout is that of the whole check,
// depth that of c in it, parts how many checks it has combined so far.
func (c *HealthCheck) asks(f *faults, path string, timeout Duration, depth int, parts *int) {
	oneOf(f, path+".type", c.Type, "tcp", "http", "https", "tls", "udp", "dns", "icmp", "smtp", "grpc", "exec", "all", "any")
	for _, field := range checkFields {
		if field.set(c) && !slices.Contains(field.types, c.Type) {
			f.add(path+"."+field.name, "", "", fmt.Sprintf("does not belong to type %s: it goes with %s", clip(c.Type), strings.Join(field.types, ", ")))
		}
	}
	f.between(path+".port", c.Port, 0, 65535)
	if c.Address.IsValid() && (c.Address.Zone() != "" || c.Address.IsUnspecified() || c.Address.IsMulticast()) {
		f.add(path+".address", c.Address, "a unicast address", "cannot be dialed")
	}
	c.validateAnswer(f, path)
	c.TLS.validate(f, path+".tls", c.Type)
	c.DNS.validate(f, path+".dns")
	c.Exec.validate(f, path+".exec")
	c.Via.validate(f, path+".via")
	switch c.Type {
	case CheckTypeTCP:
		if c.Mode != "" {
			oneOf(f, path+".mode", c.Mode, ModeHalfOpen, ModeFull)
		}
		if c.Mode == ModeHalfOpen && (c.Send != "" || !c.expectsNothing()) {
			f.add(path+".mode", c.Mode, ModeFull, "nothing can be sent or expected over a connection that is only half open")
		}
	case CheckTypeHTTP, CheckTypeHTTPS:
		c.validateHTTP(f, path)
	case CheckTypeUDP:
		c.validateQuiet(f, path+".quiet", timeout)
	case CheckTypeICMP:
		f.between(path+".packet_size", c.PacketSize, 8, 1400)
	case CheckTypeSMTP:
		f.visible(path+".hello", c.Hello, 255)
	case CheckTypeGRPC:
		f.visible(path+".host", c.Host, 255)
		f.visible(path+".grpc_service", c.GRPCService, 255)
	case CheckTypeDNS:
		if c.DNS == nil {
			f.add(path+".dns", "", "dns.name at least", "is missing: what is to be asked for")
		}
	case CheckTypeExec:
		if c.Exec == nil {
			f.add(path+".exec", "", "exec.program at least", "is missing: what is to be run")
		}
	case CheckTypeAll, CheckTypeAny:
		c.validateParts(f, path, timeout, depth, parts)
	}
}

func (c *HealthCheck) validateParts(f *faults, path string, timeout Duration, depth int, parts *int) {
	switch {
	case len(c.Checks) == 0:
		f.add(path+".checks", "none", fmt.Sprintf("1 to %d checks", maxChecks), "there is nothing to combine")
		return
	case depth >= maxCheckDepth:
		f.add(path+".checks", fmt.Sprintf("%d checks", len(c.Checks)), fmt.Sprintf("checks of checks to a depth of %d", maxCheckDepth), "is too deep")
		return
	}
	before := *parts
	if *parts += len(c.Checks); *parts > maxChecks {
		if before <= maxChecks { // said once
			f.add(path+".checks", fmt.Sprintf("%d checks", *parts), fmt.Sprintf("at most %d in all", maxChecks), "there are too many")
		}
		return
	}
	for i := range c.Checks {
		part, at := &c.Checks[i], fmt.Sprintf("%s.checks[%d]", path, i)
		if part.Use != "" {
			f.add(at+".use", part.Use, "", "a shared check cannot be one of those that are combined")
			continue
		}
		for name, set := range part.schedule() {
			if set {
				f.add(at+"."+name, "", "", "belongs to the check that combines, not to its parts")
			}
		}
		part.asks(f, at, timeout, depth+1, parts)
	}
}

// validateAnswer is about what is sent, and what is expected to come back.
func (c *HealthCheck) validateAnswer(f *faults, path string) {
	f.escaped(path+".send", c.Send, maxSend)
	f.escaped(path+".expect", c.Expect, maxExpect)
	f.between(path+".expect_limit", c.ExpectLimit, 0, maxAnswer)
	if c.ExpectLimit != 0 && c.expectsNothing() {
		f.add(path+".expect_limit", c.ExpectLimit, "", "nothing is expected that it could limit: it goes with expect or expect_body")
	}
	if len(c.ExpectBody) > maxRegexp {
		f.add(path+".expect_body", fmt.Sprintf("%d bytes", len(c.ExpectBody)), fmt.Sprintf("at most %d", maxRegexp), "is too long")
	} else if _, err := regexp.Compile(c.ExpectBody); err != nil {
		f.add(path+".expect_body", c.ExpectBody, "a regular expression (RE2)", err.Error())
	}
}

func (c *HealthCheck) validateQuiet(f *faults, path string, timeout Duration) {
	switch {
	case c.Quiet != 0 && !c.expectsNothing():
		f.add(path, c.Quiet, "", "does not go with expect or expect_body: an answer is awaited up to the timeout")
	case c.expectsNothing() && (c.Quiet <= 0 || c.Quiet >= timeout):
		f.add(path, c.Quiet, fmt.Sprintf("more than 0, less than the timeout, %v", timeout), "silence as long as this is what counts as a success")
	}
}

func (c *HealthCheck) validateHTTP(f *faults, path string) {
	switch {
	case c.Path == "" && c.URL == "":
		f.add(path, "", "path or url", "an http check needs one of them")
	case c.Path != "" && c.URL != "":
		f.add(path+".url", c.URL, "path or url", "only one of them may be given")
	case c.URL != "":
		schemes := []string{"http", "https"}
		if c.Type == CheckTypeHTTPS {
			schemes = []string{"https"}
		}
		if len(c.URL) > maxText || !dialable(c.URL, schemes...) {
			f.add(path+".url", c.URL, strings.Join(schemes, "://… or ")+"://…", "is not an absolute URL")
		}
		if c.Port != 0 || c.Host != "" || c.Address.IsValid() {
			f.add(path+".url", c.URL, "", "address, port and host go with path; a url has its own")
		}
	default:
		if _, err := url.ParseRequestURI(c.Path); err != nil || !strings.HasPrefix(c.Path, "/") || strings.HasPrefix(c.Path, "//") ||
			strings.Contains(c.Path, "#") || !printable(c.Path) || len(c.Path) > maxText {
			f.add(path+".path", c.Path, "one slash, and what a URL may have after it", "is not a path")
		}
		if strings.Contains(c.Host, "/") || !printable(c.Host) || len(c.Host) > 255 {
			f.add(path+".host", c.Host, "a host name", "is not a host")
		}
	}
	if _, err := ParseStatusRanges(c.ExpectStatus); err != nil {
		f.add(path+".expect_status", c.ExpectStatus, `such as "200-299" or "200,204"`, err.Error())
	}
	c.validateRequest(f, path)
}

// ParseStatusRanges reads "200-299,304" into pairs of lowest and highest.
func ParseStatusRanges(text string) ([][2]int, error) {
	var ranges [][2]int
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(lo)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 100 || b > 599 || a > b {
			return nil, fmt.Errorf("%q is not a status from 100 to 599, nor a range of them", part)
		}
		ranges = append(ranges, [2]int{a, b})
	}
	return ranges, nil
}

// doubtful warns of a check that is allowed but probably not meant.
func (f *faults) doubtful(path string, c *HealthCheck) {
	if c == nil || c.Use != "" {
		return
	}
	if c.Timeout > c.Interval {
		f.add(path+".timeout", time.Duration(c.Timeout), "", fmt.Sprintf("is longer than the interval, %v: a check that times out delays the next", time.Duration(c.Interval)))
	}
	f.nameless(path, c)
}

// nameless warns where a certificate must have the backend's address.
func (f *faults) nameless(path string, c *HealthCheck) {
	if t := c.TLS; t != nil && t.ServerName == "" && !t.SkipVerify && c.Host == "" && c.URL == "" {
		f.add(path+".tls.server_name", "", "a name", "is not given: the certificate must have the IP address that is asked")
	}
	for i := range c.Checks {
		f.nameless(fmt.Sprintf("%s.checks[%d]", path, i), &c.Checks[i])
	}
}
