package lbstate

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// CheckHash identifies what a check asks of a backend. Intervals, rise and
// fall are part of it: a verdict reached by other rules is another verdict. It
// is the same on every node, and a field that a check does not use does not
// move it.
func CheckHash(c HealthCheck, backend netip.AddrPort) uint64 {
	h := fnv.New64a()
	addr := backend.Addr().As16()
	h.Write(addr[:])
	h.Write(binary.BigEndian.AppendUint16(nil, backend.Port()))
	// The message has neither maps nor unknown fields, so its encoding is
	// deterministic, and fields that came later do not move the hash of a check
	// that has none of them. It fails for text that is not UTF-8 alone, which
	// Validate refuses.
	body, err := encode(c.proto())
	if err != nil {
		if body, err = json.Marshal(c); err != nil { // it replaces what is not UTF-8
			body = []byte(c.Type)
		}
	}
	h.Write(body)
	return h.Sum64()
}

// Digest is over the names and versions of a view's services, in whatever
// order they stand: two views of one cluster with equal digests are equal.
func Digest(v View) uint64 {
	services := slices.Clone(v.Services)
	slices.SortFunc(services, func(a, b DesiredService) int { return cmp.Compare(a.Name, b.Name) })
	h := fnv.New64a()
	var n [8]byte
	for _, s := range services {
		binary.BigEndian.PutUint64(n[:], uint64(len(s.Name)))
		h.Write(n[:])
		h.Write([]byte(s.Name))
		binary.BigEndian.PutUint64(n[:], s.Version)
		h.Write(n[:])
	}
	return h.Sum64()
}

// Proto returns the form in which a service travels to agents.
func (d DesiredService) Proto() *lbstatepb.DesiredService {
	p := &lbstatepb.DesiredService{
		Name: d.Name, Version: d.Version, Port: uint32(d.Port), Protocol: string(d.Protocol),
		Fwmark: d.FWMark, Family: string(d.Family), Scheduler: d.Scheduler, SchedulerFlags: d.SchedulerFlags,
		OnePacket: d.OnePacket, Snat: string(d.SNAT),
	}
	if d.VIP.IsValid() {
		p.Vip = d.VIP.AsSlice()
	}
	if d.Persistence != nil {
		p.Persistence = &lbstatepb.Persistence{
			TimeoutSeconds: uint32(time.Duration(d.Persistence.Timeout) / time.Second),
			Prefix:         uint32(d.Persistence.Prefix),
			Engine:         d.Persistence.Engine,
		}
	}
	for _, b := range d.Backends {
		pb := &lbstatepb.DesiredBackend{
			Address: b.Address.AsSlice(), Port: uint32(b.Port), Forwarding: string(b.Forwarding),
			Weight: uint32(b.Weight), Reason: string(b.Reason),
			UpperThreshold: uint32(b.UpperThreshold), LowerThreshold: uint32(b.LowerThreshold),
		}
		if b.Tunnel != nil {
			pb.TunnelType, pb.TunnelPort, pb.TunnelChecksum = string(b.Tunnel.Type), uint32(b.Tunnel.Port), string(b.Tunnel.Checksum)
		}
		if !b.DrainUntil.IsZero() {
			pb.DrainUntil = b.DrainUntil.UnixMilli()
		}
		p.Backends = append(p.Backends, pb)
	}
	return p
}

// DesiredFromProto is the inverse of Proto. It checks what a director relies
// on, since the bytes may come from a damaged journal or a foreign server.
func DesiredFromProto(p *lbstatepb.DesiredService) (DesiredService, error) {
	fail := func(what string, found any) (DesiredService, error) {
		return DesiredService{}, fmt.Errorf("service %q: %s %v is not valid", p.GetName(), what, found)
	}
	d := DesiredService{
		Name: p.GetName(), Version: p.GetVersion(), Port: uint16(p.GetPort()), Protocol: Protocol(p.GetProtocol()),
		FWMark: p.GetFwmark(), Family: Family(p.GetFamily()), Scheduler: p.GetScheduler(), SchedulerFlags: p.GetSchedulerFlags(),
		OnePacket: p.GetOnePacket(), SNAT: SNATMode(p.GetSnat()),
	}
	if d.Name == "" {
		return fail("name", `""`)
	}
	if d.Family != IPv4 && d.Family != IPv6 {
		return fail("family", p.GetFamily())
	}
	if p.GetPort() > 65535 {
		return fail("port", p.GetPort())
	}
	if d.FWMark == 0 {
		vip, ok := netip.AddrFromSlice(p.GetVip())
		if !ok || vip.Is4() != (d.Family == IPv4) {
			return fail("vip", p.GetVip())
		}
		if !slices.Contains([]Protocol{TCP, UDP, SCTP}, d.Protocol) {
			return fail("protocol", p.GetProtocol())
		}
		d.VIP = vip
	}
	if pp := p.GetPersistence(); pp != nil {
		if pp.GetPrefix() > 128 {
			return fail("persistence.prefix", pp.GetPrefix())
		}
		d.Persistence = &Persistence{Timeout: Duration(time.Duration(pp.GetTimeoutSeconds()) * time.Second), Prefix: int(pp.GetPrefix()), Engine: pp.GetEngine()}
	}
	for _, b := range p.GetBackends() {
		addr, ok := netip.AddrFromSlice(b.GetAddress())
		switch {
		case !ok:
			return fail("backend address", b.GetAddress())
		case b.GetPort() > 65535:
			return fail("backend port", b.GetPort())
		case b.GetWeight() > maxWeight:
			return fail("backend weight", b.GetWeight())
		case !slices.Contains([]Forwarding{Masq, DR, Tunnel}, Forwarding(b.GetForwarding())):
			return fail("backend forwarding", b.GetForwarding())
		case b.GetUpperThreshold() > maxThreshold || b.GetLowerThreshold() > b.GetUpperThreshold():
			return fail("backend thresholds", fmt.Sprintf("%d, %d", b.GetUpperThreshold(), b.GetLowerThreshold()))
		case b.GetTunnelPort() > 65535:
			return fail("backend tunnel port", b.GetTunnelPort())
		}
		db := DesiredBackend{
			Address: addr, Port: uint16(b.GetPort()), Forwarding: Forwarding(b.GetForwarding()),
			Weight: int(b.GetWeight()), Reason: Reason(b.GetReason()),
			UpperThreshold: int(b.GetUpperThreshold()), LowerThreshold: int(b.GetLowerThreshold()),
		}
		if db.Forwarding == Tunnel {
			db.Tunnel = &TunnelOptions{Type: TunnelType(b.GetTunnelType()), Port: int(b.GetTunnelPort()), Checksum: TunnelChecksum(b.GetTunnelChecksum())}
			switch {
			case db.Tunnel.Type == "": // of a server that knew no options
				db.Tunnel.Type, db.Tunnel.Checksum = IPIP, ChecksumNone
			case !slices.Contains([]TunnelType{IPIP, GUE, GRE}, db.Tunnel.Type):
				return fail("backend tunnel type", b.GetTunnelType())
			}
		}
		if ms := b.GetDrainUntil(); ms != 0 {
			db.DrainUntil = time.UnixMilli(ms).UTC()
		}
		d.Backends = append(d.Backends, db)
	}
	return d, nil
}

// encoded is a service in the forms in which it is sent, made once for all.
type encoded struct {
	desired, json once
}

type once struct {
	sync.Once
	data []byte
	err  error
}

func (o *once) get(fill func() ([]byte, error)) ([]byte, error) {
	o.Do(func() { o.data, o.err = fill() })
	return o.data, o.err
}

// EncodedDesired returns Desired(st).Proto() in protobuf's wire format. What a
// Store returned encodes it once for all who ask: do not change it.
func (st ServiceStatus) EncodedDesired() ([]byte, error) {
	body := func() ([]byte, error) { return encode(Desired(st).Proto()) }
	if st.encoded == nil {
		return body()
	}
	return st.encoded.desired.get(body)
}

// EncodedJSON returns the service as JSON, made once as EncodedDesired is.
func (st ServiceStatus) EncodedJSON() (json.RawMessage, error) {
	body := func() ([]byte, error) { return json.Marshal(st) }
	if st.encoded == nil {
		return body()
	}
	return st.encoded.json.get(body)
}
