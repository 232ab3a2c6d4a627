package lbstate

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Limits of profiles and settings.
const (
	maxSysctls  = 64
	maxPrefixes = 256
	maxPriority = 1_000_000
	maxRetained = 1_000_000
)

var (
	// What a profile may set: IPVS' own, and what directors need besides.
	sysctlForm  = regexp.MustCompile(`^net\.ipv4\.vs\.[a-z0-9_]+$`)
	moreSysctls = []string{
		"net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.send_redirects",
		"net.ipv6.conf.all.forwarding", "net.netfilter.nf_conntrack_max",
	}
	sysctlValue   = regexp.MustCompile(`^[-0-9 \t]{1,64}$`)
	interfaceForm = regexp.MustCompile(`^[^/\s:]{1,15}$`) // net/core/dev.c: dev_valid_name
)

func validSysctl(name string) bool {
	return sysctlForm.MatchString(name) || slices.Contains(moreSysctls, name)
}

// Validate names every fault of a profile whose defaults are filled in.
func (p DirectorProfile) Validate() error {
	var f faults
	f.name("name", p.Name)
	f.labels("agents", p.Agents)
	f.text("notes", p.Notes, maxNotes)
	f.between("priority", p.Priority, -maxPriority, maxPriority)
	if t := p.Timeouts; t != nil {
		f.seconds("timeouts.tcp", t.TCP)
		f.seconds("timeouts.tcp_fin", t.TCPFin)
		f.seconds("timeouts.udp", t.UDP)
	}
	roles := map[string]bool{}
	for i, d := range p.SyncDaemons {
		path := fmt.Sprintf("sync_daemons[%d]", i)
		d.validate(&f, path)
		if roles[d.Role] {
			f.add(path+".role", d.Role, "", "stands twice: the kernel runs one of each role")
		}
		roles[d.Role] = true
	}
	if len(p.Sysctls) > maxSysctls {
		f.add("sysctls", len(p.Sysctls), fmt.Sprintf("at most %d", maxSysctls), "there are too many")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		path := "sysctls." + clip(name)
		if !validSysctl(name) {
			f.add(path, name, "net.ipv4.vs.*, "+strings.Join(moreSysctls, ", "), "may not be set by a profile")
		}
		if v := p.Sysctls[name]; !sysctlValue.MatchString(v) {
			f.add(path, v, "numbers", fmt.Sprintf("%q is not a value", clip(v)))
		}
	}
	if len(p.AllowedPrefixes) > maxPrefixes {
		f.add("allowed_prefixes", len(p.AllowedPrefixes), fmt.Sprintf("at most %d", maxPrefixes), "there are too many")
	}
	for i, prefix := range p.AllowedPrefixes {
		path := fmt.Sprintf("allowed_prefixes[%d]", i)
		switch {
		case !prefix.IsValid():
			f.add(path, "", "a prefix such as 192.0.2.0/24", "is missing")
		case prefix != prefix.Masked():
			f.add(path, prefix, prefix.Masked().String(), "has bits beyond its length")
		case slices.Index(p.AllowedPrefixes, prefix) != i:
			f.add(path, prefix, "", "stands twice")
		}
	}
	if p.SNAT != "" {
		oneOf(&f, "snat", p.SNAT, SNATLocal, SNATAll, SNATOff)
	}
	f.lasts("drain_timeout", p.DrainTimeout, 0, maxDrain)
	if g := p.Guard; g != nil {
		f.between("guard.max_services", g.MaxServices, 1, maxRetained)
		f.between("guard.max_percent", g.MaxPercent, 1, 100)
	}
	return f.err()
}

// seconds checks a timeout that the kernel keeps in whole seconds.
func (f *faults) seconds(path string, d Duration) {
	if t := time.Duration(d); t < 0 || t > maxPersistent || t%time.Second != 0 {
		f.add(path, t, "whole seconds, up to 744h; 0 leaves the kernel's", fmt.Sprintf("%v is not allowed", t))
	}
}

func (d SyncDaemon) validate(f *faults, path string) {
	oneOf(f, path+".role", d.Role, "master", "backup")
	if !interfaceForm.MatchString(d.Interface) || d.Interface == "." || d.Interface == ".." {
		f.add(path+".interface", d.Interface, "the name of an interface, 1 to 15 bytes", fmt.Sprintf("%q is not an interface", clip(d.Interface)))
	}
	f.between(path+".id", d.ID, 0, 255)
	f.between(path+".max_length", d.MaxLength, 0, 65535)
	if d.Group.IsValid() && !d.Group.IsMulticast() {
		f.add(path+".group", d.Group, "a multicast address", "is not a multicast address")
	}
	f.between(path+".port", d.Port, 0, 65535)
	f.between(path+".ttl", d.TTL, 0, 255)
}

// Warnings names what is allowed but probably not meant.
func (p DirectorProfile) Warnings() []Fault {
	var f faults
	if p.Sysctls["net.ipv4.vs.conntrack"] == "0" && p.SNAT != SNATOff {
		f.add("sysctls.net.ipv4.vs.conntrack", "0", "1", "without connection tracking there is no SNAT: set snat: off to say so")
	}
	return f
}

// Validate names every fault of settings whose defaults are filled in.
func (s Settings) Validate() error {
	var f faults
	f.between("change_revisions", s.ChangeRevisions, 1, maxRetained)
	f.between("history_revisions", s.HistoryRevisions, 1, maxRetained)
	f.between("history_bytes", s.HistoryBytes, 1<<20, 4<<30)
	if s.HistoryAge != 0 {
		f.lasts("history_age", s.HistoryAge, time.Minute, 100*365*24*time.Hour)
	}
	f.between("idempotency_keys", s.IdempotencyKeys, 1, maxRetained)
	return f.err()
}
