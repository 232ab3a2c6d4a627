package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Family is an address family.
type Family uint8

// The address families of IPVS.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string {
	switch f {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	}
	return "family " + strconv.Itoa(int(f))
}

// FamilyOf returns the family of an address; 0 for an invalid one.
func FamilyOf(a netip.Addr) Family {
	switch {
	case !a.IsValid():
		return 0
	case a.Is4() || a.Is4In6():
		return IPv4
	}
	return IPv6
}

func (f Family) bits() int {
	if f == IPv6 {
		return 128
	}
	return 32
}

// Protocol is an IP protocol number. The kernel accepts any, so a foreign
// service may carry one without a name here.
type Protocol uint8

// The protocols that IPVS balances.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "proto-" + strconv.Itoa(int(p))
}

// Key identifies a virtual service within a network namespace: address, port
// and protocol, or a firewall mark. It never changes; everything else of a
// service can be edited in place. The zero Key is no service.
type Key struct {
	Family   Family
	Protocol Protocol   // 0 with FWMark
	Addr     netip.Addr // invalid with FWMark
	Port     uint16
	FWMark   uint32
}

// AddrKey is the key of the service at an address and port.
func AddrKey(p Protocol, a netip.AddrPort) Key {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	return Key{Family: FamilyOf(a.Addr()), Protocol: p, Addr: a.Addr(), Port: a.Port()}
}

// MarkKey is the key of the service of a firewall mark.
func MarkKey(f Family, mark uint32) Key { return Key{Family: f, FWMark: mark} }

// String is "tcp/192.0.2.10:80", "udp/[2001:db8::1]:53" or "fwmark/7/ipv4".
func (k Key) String() string {
	if k.FWMark != 0 {
		return "fwmark/" + strconv.FormatUint(uint64(k.FWMark), 10) + "/" + k.Family.String()
	}
	return k.Protocol.String() + "/" + netip.AddrPortFrom(k.Addr, k.Port).String()
}

// Compare orders keys: services with an address first, by address, port and
// protocol, then firewall marks.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.FWMark, o.FWMark),
		cmp.Compare(k.Family, o.Family),
		k.Addr.Compare(o.Addr),
		cmp.Compare(k.Port, o.Port),
		cmp.Compare(k.Protocol, o.Protocol),
	)
}

// ParseKey reads what Key.String writes.
func ParseKey(s string) (Key, error) {
	kind, rest, _ := strings.Cut(s, "/")
	if kind == "fwmark" {
		mark, family, _ := strings.Cut(rest, "/")
		n, err := strconv.ParseUint(mark, 10, 32)
		if err != nil || n == 0 {
			return Key{}, fmt.Errorf("service key %q: the mark is not a number from 1 to 4294967295", s)
		}
		switch family {
		case "ipv4":
			return MarkKey(IPv4, uint32(n)), nil
		case "ipv6":
			return MarkKey(IPv6, uint32(n)), nil
		}
		return Key{}, fmt.Errorf("service key %q: the family is ipv4 or ipv6", s)
	}
	var p Protocol
	switch kind {
	case "tcp":
		p = TCP
	case "udp":
		p = UDP
	case "sctp":
		p = SCTP
	default:
		text, ok := strings.CutPrefix(kind, "proto-")
		n, err := strconv.ParseUint(text, 10, 8)
		if !ok || err != nil {
			return Key{}, fmt.Errorf("service key %q: begins with tcp/, udp/, sctp/ or fwmark/", s)
		}
		p = Protocol(n)
	}
	a, err := netip.ParseAddrPort(rest)
	if err != nil {
		return Key{}, fmt.Errorf("service key %q: %w", s, err)
	}
	return AddrKey(p, a), nil
}

// Flags of a service, by the kernel's bits.
type Flags uint32

// The flags of linux/ip_vs.h. The three scheduler flags mean what the service's
// scheduler makes of them.
const (
	Persistent Flags = 0x1
	OnePacket  Flags = 0x4
	Sched1     Flags = 0x8  // sh-fallback, mh-fallback
	Sched2     Flags = 0x10 // sh-port, mh-port
	Sched3     Flags = 0x20

	// hashed is the kernel's own: set on every service that is read.
	hashed Flags = 0x2
)

// Service is a virtual service without its destinations.
type Service struct {
	Key
	Scheduler string
	Flags     Flags
	// Timeout of persistence, in whole seconds; 0 unless Persistent is set.
	Timeout time.Duration
	// Prefix groups clients for persistence: 1 to 32, or to 128 for IPv6. 0 is
	// that maximum, a client each.
	Prefix int
	// Engine tells clients apart by more than their address, for persistence:
	// "sip" by the call ID of UDP packets. Empty: none.
	Engine string
}

// Normal is the service as the kernel gives it back: defaults filled in, the
// kernel's own flags gone. Two services are the same if their Normal is equal.
func (s Service) Normal() Service {
	s.Flags &^= hashed
	s.Addr = s.Addr.Unmap()
	if s.Prefix == 0 {
		s.Prefix = s.Family.bits()
	}
	return s
}

// Forwarding is how packets get to a destination, by the kernel's numbers.
type Forwarding uint8

// The forwarding methods. Local and Bypass are the kernel's own choice for a
// destination on this host and are never asked for.
const (
	Masq   Forwarding = 0
	Local  Forwarding = 1
	Tunnel Forwarding = 2
	DR     Forwarding = 3
	Bypass Forwarding = 4
)

func (f Forwarding) String() string {
	switch f {
	case Masq:
		return "masq"
	case Local:
		return "local"
	case Tunnel:
		return "tunnel"
	case DR:
		return "dr"
	case Bypass:
		return "bypass"
	}
	return "forwarding " + strconv.Itoa(int(f))
}

// Encapsulation of a tunnel, by the kernel's numbers.
type Encapsulation uint8

// The encapsulations of linux/ip_vs.h.
const (
	IPIP Encapsulation = 0
	GUE  Encapsulation = 1
	GRE  Encapsulation = 2
)

func (e Encapsulation) String() string {
	switch e {
	case IPIP:
		return "ipip"
	case GUE:
		return "gue"
	case GRE:
		return "gre"
	}
	return "encapsulation " + strconv.Itoa(int(e))
}

// TunnelFlags choose the checksum of a GUE or GRE tunnel, by the kernel's bits.
type TunnelFlags uint16

// The tunnel flags of linux/ip_vs.h; none: no checksum.
const (
	TunnelChecksum       TunnelFlags = 1
	TunnelRemoteChecksum TunnelFlags = 2
)

// Destination is one real server of a service. Its key is Addr and Port.
type Destination struct {
	Addr       netip.Addr
	Port       uint16
	Forwarding Forwarding
	Weight     uint32 // 0: established connections go on, new ones go elsewhere
	// Upper and Lower are thresholds of connections: none are given above Upper
	// until there are fewer than Lower. 0: no limit.
	Upper, Lower uint32
	Encap        Encapsulation // with Forwarding Tunnel
	EncapPort    uint16        // GUE: the receiver's UDP port
	EncapFlags   TunnelFlags
}

// AddrPort is the destination's key within its service.
func (d Destination) AddrPort() netip.AddrPort { return netip.AddrPortFrom(d.Addr, d.Port) }

// Normal is the destination as the kernel gives it back.
func (d Destination) Normal() Destination {
	d.Addr = d.Addr.Unmap()
	if d.Forwarding != Tunnel {
		d.Encap, d.EncapPort, d.EncapFlags = 0, 0, 0
	}
	return d
}

// Counters are the kernel's statistics of a service or a destination since it
// was made or zeroed; rates are the kernel's own averages, per second.
type Counters struct {
	Connections, PacketsIn, PacketsOut, BytesIn, BytesOut uint64

	ConnectionRate, PacketRateIn, PacketRateOut, ByteRateIn, ByteRateOut uint64
}

// DestinationState is a destination as the kernel holds it.
type DestinationState struct {
	Destination
	Active     uint32 // connections established
	Inactive   uint32 // all others: closing, and everything that is not TCP or SCTP
	Persistent uint32 // persistence templates
	Counters   Counters
}

// ServiceState is a service as the kernel holds it.
type ServiceState struct {
	Service
	Destinations []DestinationState
	Counters     Counters
}
