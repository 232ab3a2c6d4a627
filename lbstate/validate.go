package lbstate

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of one object.
const (
	maxName       = 63
	maxLabels     = 32
	maxLabel      = 128 // bytes of a key, and of a value
	maxNotes      = 4096
	maxBackends   = 1024
	maxWeight     = 65535 // of one backend
	maxThreshold  = 1<<31 - 1
	maxPersistent = 31 * 24 * time.Hour // the kernel keeps it in jiffies, in 32 bits
	maxDrain      = 31 * 24 * time.Hour
)

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	nameAllowed = fmt.Sprintf("1 to %d of a-z 0-9 . _ -, first and last a letter or digit", maxName)

	// Schedulers of Linux, with the flags that each knows
	// (net/netfilter/ipvs: ip_vs_sh.c, ip_vs_mh.c).
	schedulers = map[string][]string{
		"rr": nil, "wrr": nil, "lc": nil, "wlc": nil, "lblc": nil, "lblcr": nil, "dh": nil,
		"sh": {"sh-fallback", "sh-port"}, "mh": {"mh-fallback", "mh-port"},
		"sed": nil, "nq": nil, "fo": nil, "ovf": nil, "twos": nil,
	}
)

func validName(name string) bool { return len(name) <= maxName && nameForm.MatchString(name) }

// faults collects what is wrong.
type faults []Fault

func (f *faults) add(path string, found any, allowed, reason string) {
	*f = append(*f, Fault{Path: path, Found: clip(found), Allowed: allowed, Reason: reason})
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

func (f *faults) lasts(path string, d Duration, lo, hi time.Duration) {
	if v := time.Duration(d); v < lo || v > hi {
		f.add(path, v, fmt.Sprintf("%v to %v", lo, hi), fmt.Sprintf("%v is out of range", v))
	}
}

func (f *faults) name(path, name string) {
	if !validName(name) {
		f.add(path, name, nameAllowed, fmt.Sprintf("%q is not a name", clip(name)))
	}
}

func (f *faults) text(path, text string, most int) {
	switch {
	case len(text) > most:
		f.add(path, fmt.Sprintf("%d bytes", len(text)), fmt.Sprintf("at most %d bytes", most), "is too long")
	case !utf8.ValidString(text):
		f.add(path, text, "UTF-8", "is not UTF-8")
	}
}

func (f *faults) labels(path string, m map[string]string) {
	if len(m) > maxLabels {
		f.add(path, len(m), fmt.Sprintf("at most %d", maxLabels), "there are too many")
	}
	for k, v := range m {
		if k == "" {
			f.add(path, v, "a key", "has a label without a key")
		}
		f.text(path+"."+clip(k), k, maxLabel)
		f.text(path+"."+clip(k), v, maxLabel)
	}
}

func oneOf[T ~string](f *faults, path string, v T, allowed ...T) {
	if !slices.Contains(allowed, v) {
		words := make([]string, len(allowed))
		for i, a := range allowed {
			words[i] = string(a)
		}
		f.add(path, v, strings.Join(words, ", "), fmt.Sprintf("%q is not known", clip(v)))
	}
}

// err is the error that carries the faults, by path; nil where there are none.
func (f faults) err() error {
	if len(f) == 0 {
		return nil
	}
	slices.SortStableFunc(f, func(a, b Fault) int { return cmp.Compare(a.Path, b.Path) })
	return &ValidationError{f}
}

// validate names every fault of an object whose defaults are filled in.
func (o Object) validate() error {
	switch {
	case o.Service != nil:
		return o.Service.Validate()
	case o.Check != nil:
		return o.Check.Validate()
	case o.Profile != nil:
		return o.Profile.Validate()
	case o.Settings != nil:
		return o.Settings.Validate()
	}
	return &ValidationError{[]Fault{{Reason: "there is no object"}}}
}

// Validate names every fault of a service whose defaults are filled in, in a
// *ValidationError, or returns nil. It refuses what makes no sense even where
// the kernel would take it (docs/kernel.md).
func (s Service) Validate() error {
	var f faults
	f.name("name", s.Name)
	f.labels("labels", s.Labels)
	f.labels("agents", s.Agents)
	f.text("notes", s.Notes, maxNotes)
	s.listener(&f)
	s.scheduling(&f)
	s.persistence(&f)
	oneOf(&f, "forwarding", s.Forwarding, Masq, DR, Tunnel)
	oneOf(&f, "snat", s.SNAT, SNATLocal, SNATAll, SNATOff)
	s.HealthCheck.validate(&f, "health_check")
	if len(s.Backends) > maxBackends {
		f.add("backends", len(s.Backends), fmt.Sprintf("at most %d", maxBackends), "there are too many")
	}
	first := map[netip.AddrPort]int{}
	for i, b := range s.Backends {
		found := len(f)
		b.validate(&f, "", s) // its path is made for a fault alone
		for j := range f[found:] {
			f[found+j].Path = fmt.Sprintf("backends[%d]%s", i, f[found+j].Path)
		}
		if j, twice := first[b.AddrPort()]; twice {
			f.add(fmt.Sprintf("backends[%d]", i), b.Key(), "", fmt.Sprintf("is the same address and port as backends[%d]", j))
		} else {
			first[b.AddrPort()] = i
		}
	}
	f.between("min_healthy", s.MinHealthy, 0, maxBackends)
	if sorry := s.SorryServer; sorry != nil {
		s.target(&f, "sorry_server", sorry.Address, sorry.Port, sorry.Forwarding)
		if i, ok := first[netip.AddrPortFrom(sorry.Address, uint16(sorry.Port))]; ok {
			f.add("sorry_server", sorry.Address, "", fmt.Sprintf("is the same address and port as backends[%d]", i))
		}
		if s.FailOpen {
			f.add("fail_open", true, "fail_open or sorry_server", "excludes a sorry server: only one of them can take over")
		}
	}
	s.Tunnel.validate(&f, "tunnel", true) // it may wait for a backend to come
	return f.err()
}

func (s Service) listener(f *faults) {
	if s.FWMark != 0 {
		oneOf(f, "family", s.Family, IPv4, IPv6)
		for path, set := range map[string]bool{"vip": s.VIP.IsValid(), "port": s.Port != 0, "protocol": s.Protocol != ""} {
			if set {
				f.add(path, "", "", "does not go with fwmark: the mark is the listener")
			}
		}
		if s.OnePacket {
			f.add("one_packet", true, "", "is for udp alone, and a mark may carry any protocol")
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
}

func (s Service) persistence(f *faults) {
	p := s.Persistence
	if p == nil {
		return
	}
	if t := time.Duration(p.Timeout); t < time.Second || t > maxPersistent || t%time.Second != 0 {
		f.add("persistence.timeout", t, "whole seconds, 1s to 744h", fmt.Sprintf("%v is not allowed", t))
	}
	bits := 32
	if s.family() == IPv6 {
		bits = 128
	}
	f.between("persistence.prefix", p.Prefix, 1, bits)
	switch {
	case p.Engine != "" && p.Engine != "sip":
		f.add("persistence.engine", p.Engine, "sip", fmt.Sprintf("%q is not an engine of the kernel", clip(p.Engine)))
	case p.Engine == "sip" && s.Protocol != UDP:
		f.add("persistence.engine", p.Engine, "", "is for udp alone: the kernel reads the Call-ID of SIP over UDP")
	}
}

// validate names the faults of a backend; path goes before those of its fields.
func (b Backend) validate(f *faults, path string, s Service) {
	s.target(f, path, b.Address, b.Port, b.Forwarding)
	f.between(path+".weight", b.weight(), 0, maxWeight)
	oneOf(f, path+".state", b.State, Active, Drain, Disabled)
	f.lasts(path+".drain_timeout", b.DrainTimeout, 0, maxDrain)
	f.between(path+".upper_threshold", b.UpperThreshold, 0, maxThreshold)
	f.between(path+".lower_threshold", b.LowerThreshold, 0, maxThreshold)
	if b.LowerThreshold > b.UpperThreshold {
		f.add(path+".lower_threshold", b.LowerThreshold, fmt.Sprintf("0 to %d", max(b.UpperThreshold, 0)), "is above the upper threshold")
	}
	b.Tunnel.validate(f, path+".tunnel", b.Forwarding == Tunnel)
	b.HealthCheck.validate(f, path+".health_check")
	f.text(path+".notes", b.Notes, maxNotes)
}

// target checks where connections are sent to.
func (s Service) target(f *faults, path string, addr netip.Addr, port int, forwarding Forwarding) {
	if !addr.IsValid() {
		f.add(path+".address", "", "an IPv4 or IPv6 address", "is missing")
	} else {
		if why := unusable(addr); why != "" {
			f.add(path+".address", addr, "a unicast address", why)
		}
		if addr == s.VIP {
			f.add(path+".address", addr, "", "is the service's own VIP")
		}
		if addr.Is4() != (s.family() == IPv4) && forwarding != Tunnel && (s.VIP.IsValid() || s.FWMark != 0) {
			f.add(path+".address", addr, string(s.family()), "another family than the service's needs forwarding: tunnel")
		}
	}
	f.between(path+".port", port, 0, 65535)
	switch {
	case port == 0 && s.Port != 0:
		f.add(path+".port", 0, "1 to 65535", "is missing")
	case port != s.Port && s.FWMark == 0 && (forwarding == DR || forwarding == Tunnel):
		f.add(path+".port", port, strconv.Itoa(s.Port), "forwarding "+string(forwarding)+" cannot change the port")
	}
	oneOf(f, path+".forwarding", forwarding, Masq, DR, Tunnel)
}

func (t *TunnelOptions) validate(f *faults, path string, used bool) {
	if t == nil {
		return
	}
	if !used {
		f.add(path, "", "", "goes with forwarding: tunnel alone")
	}
	oneOf(f, path+".type", t.Type, IPIP, GUE, GRE)
	if t.Type == GUE {
		f.between(path+".port", t.Port, 1, 65535)
	} else if t.Port != 0 {
		f.add(path+".port", t.Port, "", "goes with type gue alone")
	}
	switch t.Type {
	case GUE:
		oneOf(f, path+".checksum", t.Checksum, ChecksumNone, ChecksumOn, ChecksumRemote)
	case GRE:
		oneOf(f, path+".checksum", t.Checksum, ChecksumNone, ChecksumOn)
	default:
		oneOf(f, path+".checksum", t.Checksum, ChecksumNone)
	}
}

// warnings names what is allowed but probably not meant.
func (o Object) warnings() []Fault {
	switch {
	case o.Service != nil:
		return o.Service.Warnings()
	case o.Check != nil:
		var f faults
		f.doubtful("check", &o.Check.Check)
		return f
	case o.Profile != nil:
		return o.Profile.Warnings()
	}
	return nil
}

// Warnings names what is allowed but probably not meant.
func (s Service) Warnings() []Fault {
	var f faults
	weighty := 0
	tunnels := s.Forwarding == Tunnel || s.SorryServer != nil && s.SorryServer.Forwarding == Tunnel
	f.doubtful("health_check", s.HealthCheck)
	for i, b := range s.Backends {
		tunnels = tunnels || b.Forwarding == Tunnel
		if b.weight() > 0 && b.State == Active {
			weighty++
		}
		f.doubtful(fmt.Sprintf("backends[%d].health_check", i), b.HealthCheck)
	}
	if s.Tunnel != nil && !tunnels {
		f.add("tunnel", "", "", "nothing here has forwarding: tunnel")
	}
	switch {
	case len(s.Backends) == 0:
		f.add("backends", "none", "", "there is no backend: connections are refused")
	case weighty == 0:
		f.add("backends", "", "", "no backend is active with a weight above 0: connections are refused")
	case s.MinHealthy > weighty:
		f.add("min_healthy", s.MinHealthy, fmt.Sprintf("at most %d", weighty), "there are never so many: the rule for too few healthy backends always holds")
	case s.MinHealthy > 1 && !s.FailOpen && s.SorryServer == nil:
		f.add("min_healthy", s.MinHealthy, "", "does nothing without fail_open or sorry_server")
	}
	return f
}
