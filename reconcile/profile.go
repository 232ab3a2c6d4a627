package reconcile

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// A profile is a DesiredProfile of lbstate: how a director is set up apart from
// its services, said for many directors at once and changeable at any time. What
// this host's own configuration says goes before it; it goes before defaults.

// under is c with a profile in force, or with none.
func (c Config) under(p *lbstate.DesiredProfile) Config {
	c.profile = p
	if p != nil {
		c.ReleaseVIPs = (c.ReleaseVIPs || p.ReleaseVIPs) && !c.KeepVIPs
		if c.DrainTimeout == 0 {
			c.DrainTimeout = p.DrainTimeout
		}
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = time.Minute
	}
	return c
}

// laidOver is d with what its profile says of IPVS itself where d says nothing,
// and the fields of the profile that decide, by the object of operations that
// they are about.
func (c Config) laidOver(d Desired) (Desired, map[string]string, []Failure) {
	p := d.Profile
	if p == nil {
		return d, nil, nil
	}
	fields := map[string]string{}
	said := profileTimeouts(p)
	if t := d.Timeouts.over(said); t != d.Timeouts {
		d.Timeouts = t
		fields["timeouts"] = "timeouts"
	}
	var failures []Failure
	if len(d.Daemons) == 0 {
		for i, s := range p.SyncDaemons {
			field := fmt.Sprintf("sync_daemons[%d]", i)
			daemon, err := fromSyncDaemon(s)
			if err != nil {
				failures = append(failures, c.profileFailure(field, "check", err))
				continue
			}
			d.Daemons = append(d.Daemons, daemon)
			fields["sync daemon "+daemon.Role.String()] = field
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		field := "sysctls." + name
		if value := p.Sysctls[name]; !lbstate.ProfileSysctl(name, value) {
			failures = append(failures, c.profileFailure(field, "check", fmt.Errorf("%q may not be set by a profile", name+"="+value)))
			continue
		}
		fields["sysctl "+profilePath(name)] = field
	}
	return d, fields, failures
}

// profileFailure is one of a field of the profile in force.
func (c Config) profileFailure(field, op string, err error) Failure {
	return Failure{Object: lbstate.Ref{Kind: lbstate.KindProfile, Name: c.profile.Name}.String(), Op: op, Err: fmt.Errorf("%s: %w", field, err)}
}

// attribute gives failures of what the profile asks for the profile's name: it is
// there that they are mended.
func (c Config) attribute(w *wanted, failures []Failure) []Failure {
	if c.profile == nil || len(w.fields) == 0 {
		return failures
	}
	for i, f := range failures {
		if field, ok := w.fields[f.Object]; ok {
			failures[i] = c.profileFailure(field, f.Op, f.Err)
		}
	}
	return failures
}

func profileTimeouts(p *lbstate.DesiredProfile) Timeouts {
	if p == nil {
		return Timeouts{}
	}
	return Timeouts{TCP: time.Duration(p.Timeouts.TCP), TCPFin: time.Duration(p.Timeouts.TCPFin), UDP: time.Duration(p.Timeouts.UDP)}
}

func fromSyncDaemon(s lbstate.SyncDaemon) (SyncDaemon, error) {
	d := SyncDaemon{
		Interface: s.Interface, ID: uint8(s.ID), MaxLen: uint16(s.MaxLength), Group: s.Group, Port: uint16(s.Port), TTL: uint8(s.TTL),
	}
	switch s.Role {
	case SyncMaster.String():
		d.Role = SyncMaster
	case SyncBackup.String():
		d.Role = SyncBackup
	default:
		return d, fmt.Errorf("role is %q; master and backup are known", s.Role)
	}
	for _, n := range []struct{ value, most int }{
		{s.ID, math.MaxUint8}, {s.TTL, math.MaxUint8}, {s.Port, math.MaxUint16}, {s.MaxLength, math.MaxUint16},
	} {
		if n.value < 0 || n.value > n.most {
			return d, fmt.Errorf("%d is out of range: 0 to %d is possible", n.value, n.most)
		}
	}
	return d, nil
}

// profilePath is the path of a setting that is written with dots. None that a
// profile may set has a dot in a part.
func profilePath(name string) string { return strings.ReplaceAll(name, ".", "/") }

// profileSettings are what the profile sets, by path.
func (c Config) profileSettings() []setting {
	if c.profile == nil {
		return nil
	}
	var out []setting
	for _, name := range slices.Sorted(maps.Keys(c.profile.Sysctls)) {
		if value := c.profile.Sysctls[name]; lbstate.ProfileSysctl(name, value) {
			out = append(out, setting{profilePath(name), value, "profile " + c.profile.Name})
		}
	}
	return out
}

// sameValue compares values of a setting as the kernel shows them: it separates
// several by tabs, and goes itself from 1 to 2 and back in what defends it when
// memory is short (update_defense_level in net/netfilter/ipvs/ip_vs_ctl.c).
func sameValue(name, a, b string) bool {
	switch name {
	case "net/ipv4/vs/drop_entry", "net/ipv4/vs/drop_packet", "net/ipv4/vs/secure_tcp":
		automatic := func(v string) bool { return v == "1" || v == "2" }
		if automatic(a) && automatic(b) {
			return true
		}
	}
	return a == b || slices.Equal(strings.Fields(a), strings.Fields(b))
}

// before is what the host had before profiles changed it. A value goes back there
// when no profile sets it any more, unless someone else has set it meanwhile: this
// host's own configuration, or what services need.
type before struct {
	Sysctls  map[string]string // by path
	Timeouts Timeouts          // a zero field: unchanged
}

// planRestores puts settings back that no profile sets any more.
func (c Config) planRestores(p *plan, services []DesiredService, a *Actual) {
	if len(a.before.Sysctls) == 0 {
		return
	}
	set := c.settingValues(services)
	for _, name := range slices.Sorted(maps.Keys(a.before.Sysctls)) {
		value := a.before.Sysctls[name]
		if _, wanted := set[name]; wanted || c.leaves(name) || sameValue(name, a.Sysctls[name], value) {
			continue
		}
		p.host = append(p.host, Op{Kind: SetSysctl, Name: name, Value: value, Why: "no profile sets it any more"})
	}
}

func (c Config) settingValues(services []DesiredService) map[string]string {
	out := map[string]string{}
	for _, s := range c.settings(services) {
		out[s.name] = s.value
	}
	return out
}

// noteBefore keeps in the record what the plan takes from the host on behalf of
// the profile, and forgets what has gone back or is someone else's now.
func (r *Reconciler) noteBefore(p *plan, a *Actual) {
	c, was := r.in, &r.rec.Before
	bare := c
	bare.profile = nil
	needs := bare.settingValues(r.want.services)
	mine := map[string]bool{}
	for _, s := range c.profileSettings() {
		mine[s.name] = !c.leaves(s.name)
	}
	for name, value := range was.Sysctls {
		_, needed := needs[name]
		if !mine[name] && (needed || c.leaves(name) || sameValue(name, a.Sysctls[name], value)) {
			delete(was.Sysctls, name)
		}
	}
	for _, op := range p.host {
		if op.Kind != SetSysctl || !mine[op.Name] || needs[op.Name] == op.Value || a.Sysctls[op.Name] == "" {
			continue
		}
		if _, known := was.Sysctls[op.Name]; !known {
			was.Sysctls[op.Name] = a.Sysctls[op.Name]
		}
	}
	for _, f := range []struct{ own, said, have, was *time.Duration }{
		{&r.want.own.TCP, &r.want.timeouts.TCP, &a.IPVS.Timeouts.TCP, &was.Timeouts.TCP},
		{&r.want.own.TCPFin, &r.want.timeouts.TCPFin, &a.IPVS.Timeouts.TCPFin, &was.Timeouts.TCPFin},
		{&r.want.own.UDP, &r.want.timeouts.UDP, &a.IPVS.Timeouts.UDP, &was.Timeouts.UDP},
	} {
		switch {
		case *f.own != 0, *f.said == 0 && *f.have == *f.was:
			*f.was = 0
		case *f.said != 0 && *f.was == 0 && *f.have != *f.said:
			*f.was = *f.have
		}
	}
}

// profileAccount is the account of the profile in force; nil: none.
func (c Config) profileAccount(d Desired) *lbstate.AppliedProfile {
	p := d.Profile
	if p == nil {
		return nil
	}
	a := &lbstate.AppliedProfile{Name: p.Name, Revision: p.Revision}
	add := func(field string, profile, host any) {
		a.Overridden = append(a.Overridden, lbstate.Overridden{Field: field, Profile: fmt.Sprint(profile), Host: fmt.Sprint(host)})
	}
	said := profileTimeouts(p)
	for _, f := range []struct {
		name      string
		said, own time.Duration
	}{
		{"timeouts.tcp", said.TCP, d.Timeouts.TCP},
		{"timeouts.tcp_fin", said.TCPFin, d.Timeouts.TCPFin},
		{"timeouts.udp", said.UDP, d.Timeouts.UDP},
		{"drain_timeout", p.DrainTimeout, c.DrainTimeout},
	} {
		if f.said != 0 && f.own != 0 && f.said != f.own {
			add(f.name, f.said, max(0, f.own))
		}
	}
	if len(p.SyncDaemons) > 0 && len(d.Daemons) > 0 {
		add("sync_daemons", fmt.Sprintf("%d of them", len(p.SyncDaemons)), d.Daemons)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		if c.leaves(profilePath(name)) {
			add("sysctls."+name, p.Sysctls[name], "left as it is")
		}
	}
	if p.ReleaseVIPs && c.KeepVIPs {
		add("release_vips", true, false)
	}
	if len(c.AllowedPrefixes) > 0 {
		for _, prefix := range p.AllowedPrefixes {
			if !slices.ContainsFunc(c.AllowedPrefixes, func(own netip.Prefix) bool { return own.Bits() <= prefix.Bits() && own.Contains(prefix.Addr()) }) {
				add("allowed_prefixes", prefix, c.AllowedPrefixes)
			}
		}
	}
	return a
}
