package lbstate

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// DesiredProfile is what a director is told of its profile. A zero field but
// ReleaseVIPs says nothing: the director's own value, or its default, is in
// force.
type DesiredProfile struct {
	Name            string
	Revision        uint64   // of the profile's last change
	Timeouts        Timeouts // whole seconds
	SyncDaemons     []SyncDaemon
	Sysctls         map[string]string // by name with dots
	ReleaseVIPs     bool
	AllowedPrefixes []netip.Prefix
	SNAT            SNATMode // instead of what services say
	DrainTimeout    time.Duration
	Guard           Guard
}

// AppliedProfile is a director's account of the profile in force.
type AppliedProfile struct {
	Name       string       `json:"name"`
	Revision   uint64       `json:"revision"`
	Overridden []Overridden `json:"overridden,omitempty"` // what the host itself says otherwise
}

// Overridden is a field of a profile of which the host's own value is in force.
type Overridden struct {
	Field   string `json:"field"` // "timeouts.tcp"
	Profile string `json:"profile"`
	Host    string `json:"host"`
}

// Desired is what a director is told of a profile.
func (p DirectorProfile) Desired() DesiredProfile {
	d := DesiredProfile{
		Name: p.Name, Revision: p.Revision, SyncDaemons: p.SyncDaemons, Sysctls: p.Sysctls, ReleaseVIPs: p.ReleaseVIPs,
		AllowedPrefixes: p.AllowedPrefixes, SNAT: p.SNAT, DrainTimeout: time.Duration(p.DrainTimeout),
	}
	if p.Timeouts != nil {
		d.Timeouts = *p.Timeouts
	}
	if p.Guard != nil {
		d.Guard = *p.Guard
	}
	return d
}

// Equal says whether p and o say the same, either of which may be nil.
func (p *DesiredProfile) Equal(o *DesiredProfile) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p.Name == o.Name && p.Revision == o.Revision && p.Timeouts == o.Timeouts && p.ReleaseVIPs == o.ReleaseVIPs &&
		p.SNAT == o.SNAT && p.DrainTimeout == o.DrainTimeout && p.Guard == o.Guard && slices.Equal(p.SyncDaemons, o.SyncDaemons) &&
		slices.Equal(p.AllowedPrefixes, o.AllowedPrefixes) && maps.Equal(p.Sysctls, o.Sysctls)
}

// Proto is the form in which the profile travels and rests in journals.
func (p DesiredProfile) Proto() *lbstatepb.DesiredProfile {
	seconds := func(d Duration) uint32 { return uint32(time.Duration(d) / time.Second) }
	out := &lbstatepb.DesiredProfile{
		Name: p.Name, Revision: p.Revision, ReleaseVips: p.ReleaseVIPs, Snat: string(p.SNAT), DrainTimeout: int64(p.DrainTimeout),
		TimeoutTcpSeconds: seconds(p.Timeouts.TCP), TimeoutTcpFinSeconds: seconds(p.Timeouts.TCPFin), TimeoutUdpSeconds: seconds(p.Timeouts.UDP),
		SyncDaemons: syncDaemonsProto(p.SyncDaemons), Sysctls: labelsProto(p.Sysctls), AllowedPrefixes: prefixesProto(p.AllowedPrefixes),
	}
	if p.Guard != (Guard{}) {
		out.Guard = &lbstatepb.Guard{MaxServices: uint32(p.Guard.MaxServices), MaxPercent: uint32(p.Guard.MaxPercent)}
	}
	return out
}

// DesiredProfileFromProto is the inverse of Proto. It checks what a director
// relies on, since the bytes may come from a damaged journal or a foreign
// server; whether a kernel can have the values is for it to say.
func DesiredProfileFromProto(p *lbstatepb.DesiredProfile) (DesiredProfile, error) {
	fail := func(what string, found any) (DesiredProfile, error) {
		return DesiredProfile{}, fmt.Errorf("profile %q: %s %v is not valid", p.GetName(), what, found)
	}
	seconds := func(n uint32) Duration { return Duration(time.Duration(n) * time.Second) }
	d := DesiredProfile{
		Name: p.GetName(), Revision: p.GetRevision(), ReleaseVIPs: p.GetReleaseVips(), SNAT: SNATMode(p.GetSnat()), DrainTimeout: time.Duration(p.GetDrainTimeout()),
		Timeouts: Timeouts{seconds(p.GetTimeoutTcpSeconds()), seconds(p.GetTimeoutTcpFinSeconds()), seconds(p.GetTimeoutUdpSeconds())},
		Sysctls:  labelsFrom(p.GetSysctls()),
	}
	g := p.GetGuard()
	switch {
	case d.Name == "":
		return fail("name", `""`)
	case d.DrainTimeout < 0:
		return fail("drain_timeout", d.DrainTimeout)
	case !slices.Contains([]SNATMode{"", SNATLocal, SNATAll, SNATOff}, d.SNAT):
		return fail("snat", p.GetSnat())
	case len(p.GetSysctls()) > maxSysctls:
		return fail("number of sysctls", len(p.GetSysctls()))
	case len(p.GetAllowedPrefixes()) > maxPrefixes:
		return fail("number of allowed_prefixes", len(p.GetAllowedPrefixes()))
	case len(p.GetSyncDaemons()) > maxSyncDaemons:
		return fail("number of sync_daemons", len(p.GetSyncDaemons()))
	case g.GetMaxServices() > maxRetained || g.GetMaxPercent() > 100:
		return fail("guard", g)
	}
	d.Guard = Guard{MaxServices: int(g.GetMaxServices()), MaxPercent: int(g.GetMaxPercent())}
	for _, s := range p.GetSyncDaemons() {
		if s.GetId() > math.MaxUint8 || s.GetTtl() > math.MaxUint8 || s.GetPort() > math.MaxUint16 || s.GetMaxLength() > math.MaxUint16 {
			return fail("sync daemon", s)
		}
	}
	var a addrs
	var err error
	if d.SyncDaemons = syncDaemonsFrom(&a, p.GetSyncDaemons()); a.err != nil {
		return fail("sync daemon: ", a.err)
	}
	if d.AllowedPrefixes, err = prefixesFrom(p.GetAllowedPrefixes()); err != nil {
		return fail("allowed_prefixes", err)
	}
	return d, nil
}

// maxSyncDaemons is what the kernel runs: one of each role.
const maxSyncDaemons = 2

// ProfileSysctl says whether a profile may set a setting of this name, with
// dots, to this value: a director checks again what it is told.
func ProfileSysctl(name, value string) bool {
	return validSysctl(name) && sysctlValue.MatchString(value)
}

func syncDaemonsProto(daemons []SyncDaemon) (out []*lbstatepb.SyncDaemon) {
	for _, s := range daemons {
		out = append(out, &lbstatepb.SyncDaemon{
			Role: s.Role, Interface: s.Interface, Id: uint32(s.ID), MaxLength: uint32(s.MaxLength),
			Group: s.Group.AsSlice(), Port: uint32(s.Port), Ttl: uint32(s.TTL),
		})
	}
	return out
}

func syncDaemonsFrom(a *addrs, daemons []*lbstatepb.SyncDaemon) (out []SyncDaemon) {
	for _, s := range daemons {
		out = append(out, SyncDaemon{
			Role: s.GetRole(), Interface: s.GetInterface(), ID: int(s.GetId()), MaxLength: int(s.GetMaxLength()),
			Group: a.from(s.GetGroup(), "sync daemon's group"), Port: int(s.GetPort()), TTL: int(s.GetTtl()),
		})
	}
	return out
}

func prefixesProto(prefixes []netip.Prefix) (out []string) {
	for _, prefix := range prefixes {
		out = append(out, prefix.String())
	}
	return out
}

func prefixesFrom(texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, prefix)
	}
	return out, nil
}
