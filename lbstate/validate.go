package lbstate

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of one service.
const (
	maxName     = 63
	maxLabels   = 32
	maxLabel    = 128
	maxBackends = 1024
	maxWeight   = 65535 // of one backend
	maxRegexp   = 1024
	maxText     = 2048 // URL, path
	maxCheck    = time.Hour
)

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	// Schedulers of Linux 6.1, with the flags that each knows
	// (net/netfilter/ipvs: ip_vs_sh.c, ip_vs_mh.c).
	schedulers = map[string][]string{
		"rr": nil, "wrr": nil, "lc": nil, "wlc": nil, "lblc": nil, "lblcr": nil, "dh": nil,
		"sh": {"sh-fallback", "sh-port"}, "mh": {"mh-fallback", "mh-port"},
		"sed": nil, "nq": nil, "fo": nil, "ovf": nil, "twos": nil,
	}
)

// faults collects what is wrong.
type faults []Fault

func (f *faults) add(path string, found any, allowed, reason string) {
	*f = append(*f, Fault{Path: path, Found: fmt.Sprint(found), Allowed: allowed, Reason: reason})
}

func (f *faults) between(path string, v, lo, hi int) {
	if v < lo || v > hi {
		reason := fmt.Sprintf("%d is above %d", v, hi)
		if v < lo {
			reason = fmt.Sprintf("%d is below %d", v, lo)
		}
		f.add(path, v, fmt.Sprintf("%d to %d", lo, hi), reason)
	}
}

func oneOf[T ~string](f *faults, path string, v T, allowed ...T) {
	if !slices.Contains(allowed, v) {
		words := make([]string, len(allowed))
		for i, a := range allowed {
			words[i] = string(a)
		}
		f.add(path, v, strings.Join(words, ", "), fmt.Sprintf("%q is not known", v))
	}
}

// Validate names every fault of a service whose defaults are filled in, in a
// *ValidationError, or returns nil. It refuses what makes no sense even where
// the kernel would take it (docs/kernel.md).
func (s Service) Validate() error {
	var f faults
	if len(s.Name) > maxName || !nameForm.MatchString(s.Name) {
		f.add("name", s.Name, fmt.Sprintf("1 to %d of a-z 0-9 . _ -, first and last a letter or digit", maxName), fmt.Sprintf("%q is not a name", s.Name))
	}
	labels(&f, "labels", s.Labels)
	labels(&f, "agents", s.Agents)
	s.listener(&f)
	s.scheduling(&f)
	oneOf(&f, "forwarding", s.Forwarding, Masq, DR, Tunnel)
	oneOf(&f, "snat", s.SNAT, SNATLocal, SNATAll, SNATOff)
	s.HealthCheck.validate(&f, "health_check")
	if len(s.Backends) > maxBackends {
		f.add("backends", len(s.Backends), fmt.Sprintf("at most %d", maxBackends), "too many")
	}
	first := map[netip.AddrPort]int{}
	for i, b := range s.Backends {
		path := fmt.Sprintf("backends[%d]", i)
		b.validate(&f, path, s)
		if j, twice := first[b.AddrPort()]; twice {
			f.add(path, b.Key(), "", fmt.Sprintf("is the same address and port as backends[%d]", j))
		} else {
			first[b.AddrPort()] = i
		}
	}
	if len(f) > 0 {
		slices.SortStableFunc(f, func(a, b Fault) int { return strings.Compare(a.Path, b.Path) })
		return &ValidationError{f}
	}
	return nil
}

func labels(f *faults, path string, m map[string]string) {
	if len(m) > maxLabels {
		f.add(path, len(m), fmt.Sprintf("at most %d", maxLabels), "too many")
	}
	for k, v := range m {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel {
			f.add(path+"."+k, v, fmt.Sprintf("key of 1 to %d bytes, value of at most %d", maxLabel, maxLabel), "too long or empty")
		}
	}
}

func (s Service) listener(f *faults) {
	if s.FWMark != 0 {
		oneOf(f, "family", s.Family, IPv4, IPv6)
		for path, set := range map[string]bool{"vip": s.VIP.IsValid(), "port": s.Port != 0, "protocol": s.Protocol != ""} {
			if set {
				f.add(path, "", "", "does not go with fwmark: the mark is the listener")
			}
		}
		return
	}
	if s.Family != "" {
		f.add("family", s.Family, "", "goes with fwmark alone: a VIP has its own")
	}
	if !s.VIP.IsValid() {
		f.add("vip", "", "an IPv4 or IPv6 address, or fwmark", "is missing")
	} else if why := unusable(s.VIP); why != "" {
		f.add("vip", s.VIP, "a unicast address that clients can reach", why)
	}
	oneOf(f, "protocol", s.Protocol, TCP, UDP, SCTP)
	f.between("port", s.Port, 0, 65535)
	if s.Port == 0 && s.Persistence == nil {
		f.add("port", 0, "1 to 65535", "port 0 (every port) needs persistence")
	}
	if s.OnePacket && s.Protocol != UDP {
		f.add("one_packet", true, "", "is for udp alone")
	}
}

// unusable says why an address can be neither a VIP nor a backend.
func unusable(a netip.Addr) string {
	switch {
	case a.Zone() != "":
		return "has a zone"
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsMulticast():
		return "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a.IsLoopback():
		return "is a loopback address"
	}
	return ""
}

func (s Service) scheduling(f *faults) {
	known, ok := schedulers[s.Scheduler]
	if !ok {
		var names []string
		for name := range schedulers {
			names = append(names, name)
		}
		slices.Sort(names)
		f.add("scheduler", s.Scheduler, strings.Join(names, ", "), fmt.Sprintf("%q is not a scheduler of the kernel", s.Scheduler))
	}
	for i, flag := range s.SchedulerFlags {
		path := fmt.Sprintf("scheduler_flags[%d]", i)
		switch {
		case !slices.Contains(known, flag):
			f.add(path, flag, strings.Join(known, ", "), fmt.Sprintf("%q is not a flag of scheduler %s", flag, s.Scheduler))
		case slices.Index(s.SchedulerFlags, flag) != i:
			f.add(path, flag, "", "stands twice")
		}
	}
	if p := s.Persistence; p != nil {
		t := time.Duration(p.Timeout)
		if t < time.Second || t > 31*24*time.Hour || t%time.Second != 0 {
			f.add("persistence.timeout", t, "whole seconds, 1s to 744h", fmt.Sprintf("%v is not allowed", t))
		}
		bits := 32
		if s.family() == IPv6 {
			bits = 128
		}
		f.between("persistence.prefix", p.Prefix, 1, bits)
	}
}

func (b Backend) validate(f *faults, path string, s Service) {
	if !b.Address.IsValid() {
		f.add(path+".address", "", "an IPv4 or IPv6 address", "is missing")
	} else {
		if why := unusable(b.Address); why != "" {
			f.add(path+".address", b.Address, "a unicast address", why)
		}
		if b.Address == s.VIP {
			f.add(path+".address", b.Address, "", "is the service's own VIP")
		}
		if b.Address.Is4() != (s.family() == IPv4) && b.Forwarding != Tunnel && (s.VIP.IsValid() || s.FWMark != 0) {
			f.add(path+".address", b.Address, string(s.family()), "another family than the service's needs forwarding: tunnel")
		}
	}
	f.between(path+".port", b.Port, 0, 65535)
	switch {
	case b.Port == 0 && s.Port != 0:
		f.add(path+".port", 0, "1 to 65535", "is missing")
	case b.Port != s.Port && s.FWMark == 0 && (b.Forwarding == DR || b.Forwarding == Tunnel):
		f.add(path+".port", b.Port, strconv.Itoa(s.Port), "forwarding "+string(b.Forwarding)+" cannot change the port")
	}
	f.between(path+".weight", b.weight(), 0, maxWeight)
	oneOf(f, path+".state", b.State, Active, Drain, Disabled)
	oneOf(f, path+".forwarding", b.Forwarding, Masq, DR, Tunnel)
	b.HealthCheck.validate(f, path+".health_check")
}

func (c *HealthCheck) validate(f *faults, path string) {
	if c == nil {
		return
	}
	for name, d := range map[string]Duration{"interval": c.Interval, "timeout": c.Timeout} {
		if v := time.Duration(d); v < 10*time.Millisecond || v > maxCheck {
			f.add(path+"."+name, v, "10ms to 1h", fmt.Sprintf("%v is out of range", v))
		}
	}
	f.between(path+".rise", c.Rise, 1, 100)
	f.between(path+".fall", c.Fall, 1, 100)
	f.between(path+".port", c.Port, 0, 65535)
	only := func(name string, set bool, kind string) {
		if set && c.Type != kind {
			f.add(path+"."+name, "", "", "goes with type "+kind+" alone")
		}
	}
	only("address", c.Address.IsValid(), "tcp")
	only("path", c.Path != "", "http")
	only("host", c.Host != "", "http")
	only("url", c.URL != "", "http")
	only("expect_status", c.ExpectStatus != "", "http")
	only("expect_body", c.ExpectBody != "", "http")
	switch c.Type {
	case "tcp":
	case "http":
		c.validateHTTP(f, path)
	default:
		f.add(path+".type", c.Type, "tcp, http", fmt.Sprintf("%q is not known", c.Type))
	}
}

func (c *HealthCheck) validateHTTP(f *faults, path string) {
	switch {
	case c.Path == "" && c.URL == "":
		f.add(path, "", "path or url", "an http check needs one of them")
	case c.Path != "" && c.URL != "":
		f.add(path+".url", c.URL, "path or url", "only one of them may be given")
	case c.URL != "":
		u, err := url.Parse(c.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || len(c.URL) > maxText {
			f.add(path+".url", c.URL, "http://… or https://…", "is not an absolute URL")
		}
		if c.Port != 0 || c.Host != "" {
			f.add(path+".url", c.URL, "", "port and host go with path; a url has its own")
		}
	default:
		if _, err := url.ParseRequestURI(c.Path); err != nil || !strings.HasPrefix(c.Path, "/") || len(c.Path) > maxText {
			f.add(path+".path", c.Path, "starts with /", "is not a path")
		}
		if strings.ContainsAny(c.Host, " /\r\n\t") || len(c.Host) > 255 {
			f.add(path+".host", c.Host, "a host name", "is not a host")
		}
	}
	if _, err := ParseStatusRanges(c.ExpectStatus); err != nil {
		f.add(path+".expect_status", c.ExpectStatus, `such as "200-299" or "200,204"`, err.Error())
	}
	if len(c.ExpectBody) > maxRegexp {
		f.add(path+".expect_body", fmt.Sprintf("%d bytes", len(c.ExpectBody)), fmt.Sprintf("at most %d", maxRegexp), "is too long")
	} else if _, err := regexp.Compile(c.ExpectBody); err != nil {
		f.add(path+".expect_body", c.ExpectBody, "a regular expression (RE2)", err.Error())
	}
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

// Warnings names what is allowed but probably not meant.
func (s Service) Warnings() []Fault {
	var f faults
	positive := false
	warn := func(path string, c *HealthCheck) {
		if c != nil && c.Timeout > c.Interval {
			f.add(path+".timeout", time.Duration(c.Timeout), "", fmt.Sprintf("is longer than the interval, %v: a check that times out delays the next", time.Duration(c.Interval)))
		}
	}
	warn("health_check", s.HealthCheck)
	for i, b := range s.Backends {
		positive = positive || (b.weight() > 0 && b.State == Active)
		warn(fmt.Sprintf("backends[%d].health_check", i), b.HealthCheck)
	}
	switch {
	case len(s.Backends) == 0:
		f.add("backends", "none", "", "there is no backend: connections are refused")
	case !positive:
		f.add("backends", "", "", "no backend is active with a weight above 0: connections are refused")
	}
	return f
}
