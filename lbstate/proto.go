package lbstate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// The objects' form in the database and in commands. The way out cannot fail;
// the way in names what no program of this version would have written.

func labelsProto(m map[string]string) []*lbstatepb.Label {
	labels := make([]*lbstatepb.Label, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		labels = append(labels, &lbstatepb.Label{Key: k, Value: m[k]})
	}
	return labels
}

func labelsFrom(labels []*lbstatepb.Label) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	m := make(map[string]string, len(labels))
	for _, l := range labels {
		m[l.GetKey()] = l.GetValue()
	}
	return m
}

// addrs reads addresses and remembers the first that is none.
type addrs struct{ err error }

func (a *addrs) from(b []byte, what string) netip.Addr {
	if len(b) == 0 {
		return netip.Addr{}
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok && a.err == nil {
		a.err = fmt.Errorf("%s has %d bytes, not 4 or 16", what, len(b))
	}
	return addr
}

func (s Service) proto() *lbstatepb.Service {
	p := &lbstatepb.Service{
		Name: s.Name, Labels: labelsProto(s.Labels), Vip: s.VIP.AsSlice(), Port: uint32(s.Port), Protocol: string(s.Protocol),
		Fwmark: s.FWMark, Family: string(s.Family), Scheduler: s.Scheduler, SchedulerFlags: s.SchedulerFlags,
		Forwarding: string(s.Forwarding), Tunnel: s.Tunnel.proto(), OnePacket: s.OnePacket, Snat: string(s.SNAT),
		Agents: labelsProto(s.Agents), HealthCheck: s.HealthCheck.proto(), Notes: s.Notes,
		MinHealthy: uint32(s.MinHealthy), FailOpen: s.FailOpen, Revision: s.Revision,
	}
	if s.Persistence != nil {
		p.Persistence = &lbstatepb.ServicePersistence{Timeout: int64(s.Persistence.Timeout), Prefix: uint32(s.Persistence.Prefix), Engine: s.Persistence.Engine}
	}
	if s.SorryServer != nil {
		p.SorryServer = &lbstatepb.SorryServer{Address: s.SorryServer.Address.AsSlice(), Port: uint32(s.SorryServer.Port), Forwarding: string(s.SorryServer.Forwarding)}
	}
	for _, b := range s.Backends {
		p.Backends = append(p.Backends, b.proto())
	}
	return p
}

func serviceFrom(p *lbstatepb.Service) (Service, error) {
	var a addrs
	s := Service{
		Name: p.GetName(), Labels: labelsFrom(p.GetLabels()), VIP: a.from(p.GetVip(), "vip"), Port: int(p.GetPort()), Protocol: Protocol(p.GetProtocol()),
		FWMark: p.GetFwmark(), Family: Family(p.GetFamily()), Scheduler: p.GetScheduler(), SchedulerFlags: p.GetSchedulerFlags(),
		Forwarding: Forwarding(p.GetForwarding()), Tunnel: tunnelFrom(p.GetTunnel()), OnePacket: p.GetOnePacket(), SNAT: SNATMode(p.GetSnat()),
		Agents: labelsFrom(p.GetAgents()), HealthCheck: checkFrom(&a, p.GetHealthCheck()), Notes: p.GetNotes(),
		MinHealthy: int(p.GetMinHealthy()), FailOpen: p.GetFailOpen(), Revision: p.GetRevision(),
	}
	if pp := p.GetPersistence(); pp != nil {
		s.Persistence = &Persistence{Timeout: Duration(pp.GetTimeout()), Prefix: int(pp.GetPrefix()), Engine: pp.GetEngine()}
	}
	if ss := p.GetSorryServer(); ss != nil {
		s.SorryServer = &SorryServer{Address: a.from(ss.GetAddress(), "sorry server"), Port: int(ss.GetPort()), Forwarding: Forwarding(ss.GetForwarding())}
	}
	s.Backends = make([]Backend, 0, len(p.GetBackends()))
	for _, b := range p.GetBackends() {
		s.Backends = append(s.Backends, backendFrom(&a, b))
	}
	return s, a.err
}

func (b Backend) proto() *lbstatepb.Backend {
	p := &lbstatepb.Backend{
		Address: b.Address.AsSlice(), Port: uint32(b.Port), Weight: uint32(b.weight()), State: string(b.State),
		Forwarding: string(b.Forwarding), Tunnel: b.Tunnel.proto(), HealthCheck: b.HealthCheck.proto(),
		UpperThreshold: uint32(b.UpperThreshold), LowerThreshold: uint32(b.LowerThreshold),
		DrainTimeout: int64(b.DrainTimeout), Notes: b.Notes,
	}
	if !b.DrainSince.IsZero() {
		p.DrainSince = b.DrainSince.UnixMilli()
	}
	return p
}

func backendFrom(a *addrs, p *lbstatepb.Backend) Backend {
	weight := int(p.GetWeight())
	b := Backend{
		Address: a.from(p.GetAddress(), "backend"), Port: int(p.GetPort()), Weight: &weight, State: BackendState(p.GetState()),
		Forwarding: Forwarding(p.GetForwarding()), Tunnel: tunnelFrom(p.GetTunnel()), HealthCheck: checkFrom(a, p.GetHealthCheck()),
		UpperThreshold: int(p.GetUpperThreshold()), LowerThreshold: int(p.GetLowerThreshold()),
		DrainTimeout: Duration(p.GetDrainTimeout()), Notes: p.GetNotes(),
	}
	if ms := p.GetDrainSince(); ms != 0 {
		b.DrainSince = time.UnixMilli(ms).UTC()
	}
	return b
}

func (t *TunnelOptions) proto() *lbstatepb.TunnelOptions {
	if t == nil {
		return nil
	}
	return &lbstatepb.TunnelOptions{Type: string(t.Type), Port: uint32(t.Port), Checksum: string(t.Checksum)}
}

func tunnelFrom(p *lbstatepb.TunnelOptions) *TunnelOptions {
	if p == nil {
		return nil
	}
	return &TunnelOptions{Type: TunnelType(p.GetType()), Port: int(p.GetPort()), Checksum: TunnelChecksum(p.GetChecksum())}
}

func (c SharedCheck) proto() *lbstatepb.SharedCheck {
	return &lbstatepb.SharedCheck{Name: c.Name, Check: c.Check.proto(), Notes: c.Notes, Revision: c.Revision}
}

func sharedCheckFrom(p *lbstatepb.SharedCheck) (SharedCheck, error) {
	var a addrs
	c := SharedCheck{Name: p.GetName(), Notes: p.GetNotes(), Revision: p.GetRevision()}
	if check := checkFrom(&a, p.GetCheck()); check != nil {
		c.Check = *check
	}
	return c, a.err
}

func (d DirectorProfile) proto() *lbstatepb.DirectorProfile {
	p := &lbstatepb.DirectorProfile{
		Name: d.Name, Agents: labelsProto(d.Agents), Priority: int32(d.Priority), Sysctls: labelsProto(d.Sysctls),
		ReleaseVips: d.ReleaseVIPs, Snat: string(d.SNAT), DrainTimeout: int64(d.DrainTimeout), Notes: d.Notes, Revision: d.Revision,
	}
	if d.Timeouts != nil {
		p.TimeoutTcp, p.TimeoutTcpFin, p.TimeoutUdp = int64(d.Timeouts.TCP), int64(d.Timeouts.TCPFin), int64(d.Timeouts.UDP)
	}
	p.SyncDaemons, p.AllowedPrefixes = syncDaemonsProto(d.SyncDaemons), prefixesProto(d.AllowedPrefixes)
	if d.Guard != nil {
		p.Guard = &lbstatepb.Guard{MaxServices: uint32(d.Guard.MaxServices), MaxPercent: uint32(d.Guard.MaxPercent)}
	}
	return p
}

func profileFrom(p *lbstatepb.DirectorProfile) (DirectorProfile, error) {
	var a addrs
	d := DirectorProfile{
		Name: p.GetName(), Agents: labelsFrom(p.GetAgents()), Priority: int(p.GetPriority()), Sysctls: labelsFrom(p.GetSysctls()),
		ReleaseVIPs: p.GetReleaseVips(), SNAT: SNATMode(p.GetSnat()), DrainTimeout: Duration(p.GetDrainTimeout()), Notes: p.GetNotes(), Revision: p.GetRevision(),
	}
	if t := (Timeouts{Duration(p.GetTimeoutTcp()), Duration(p.GetTimeoutTcpFin()), Duration(p.GetTimeoutUdp())}); t != (Timeouts{}) {
		d.Timeouts = &t
	}
	d.SyncDaemons = syncDaemonsFrom(&a, p.GetSyncDaemons())
	var err error
	if d.AllowedPrefixes, err = prefixesFrom(p.GetAllowedPrefixes()); err != nil {
		return d, err
	}
	if g := p.GetGuard(); g != nil {
		d.Guard = &Guard{MaxServices: int(g.GetMaxServices()), MaxPercent: int(g.GetMaxPercent())}
	}
	return d, a.err
}

func (s Settings) proto() *lbstatepb.Settings {
	return &lbstatepb.Settings{
		ChangeRevisions: uint32(s.ChangeRevisions), HistoryRevisions: uint32(s.HistoryRevisions), HistoryBytes: uint64(s.HistoryBytes),
		HistoryAge: int64(s.HistoryAge), IdempotencyKeys: uint32(s.IdempotencyKeys), Revision: s.Revision,
	}
}

func settingsFrom(p *lbstatepb.Settings) Settings {
	return Settings{
		ChangeRevisions: int(p.GetChangeRevisions()), HistoryRevisions: int(p.GetHistoryRevisions()), HistoryBytes: int(p.GetHistoryBytes()),
		HistoryAge: Duration(p.GetHistoryAge()), IdempotencyKeys: int(p.GetIdempotencyKeys()), Revision: p.GetRevision(),
	}
}
