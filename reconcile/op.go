package reconcile

import (
	"fmt"
	"net/netip"
	"strings"
)

// OpKind is what an operation does.
type OpKind uint8

// The operations, in no order. Each is one message to the kernel, one write to a
// file or one packet filter transaction.
const (
	// SetSysctl writes Value to the setting Name.
	SetSysctl OpKind = iota + 1
	// AddLink makes the dummy interface Link with the alias Value, down.
	AddLink
	// SetAlias sets the alias of Link to Value.
	SetAlias
	// LinkUp brings Link up.
	LinkUp
	// DelLink deletes the interface Link with its addresses.
	DelLink
	// AddAddress binds Addr to Link, as /32 or as /128 without duplicate
	// address detection. EEXIST if Link has it.
	AddAddress
	// DelAddress takes Addr from Link. EADDRNOTAVAIL if Link does not have it.
	DelAddress
	// AddService makes Service. EEXIST if its key exists, even with other values.
	AddService
	// SetService changes everything of Service but its key, in place.
	SetService
	// DelService deletes Service with its destinations.
	DelService
	// AddDestination makes Dest in Service.
	AddDestination
	// SetDestination changes everything of Dest but its key, in place.
	SetDestination
	// DelDestination deletes Dest from Service: what becomes of its connections
	// is decided by net.ipv4.vs.expire_nodest_conn.
	DelDestination
	// SetChain replaces our chain of Chain.ChainKey with Chain.Rules in one
	// transaction, and makes the jump to it if the last reading found none.
	SetChain
	// DelChain removes the jump, the chain and its rules.
	DelChain
	// SetTimeouts sets Timeouts; a zero field is left as it is.
	SetTimeouts
	// StartDaemon starts Daemon. EEXIST if one of its role runs.
	StartDaemon
	// StopDaemon stops the sync daemon of Daemon.Role. ESRCH if none runs.
	StopDaemon
	// Zero sets the counters of Service to 0, or all with the zero Key.
	Zero
)

var opNames = [...]string{
	SetSysctl: "set sysctl", AddLink: "add link", SetAlias: "set alias", LinkUp: "link up", DelLink: "delete link",
	AddAddress: "add address", DelAddress: "delete address",
	AddService: "add service", SetService: "set service", DelService: "delete service",
	AddDestination: "add destination", SetDestination: "set destination", DelDestination: "delete destination",
	SetChain: "set chain", DelChain: "delete chain",
	SetTimeouts: "set timeouts", StartDaemon: "start sync daemon", StopDaemon: "stop sync daemon", Zero: "zero",
}

func (k OpKind) String() string {
	if int(k) < len(opNames) && opNames[k] != "" {
		return opNames[k]
	}
	return fmt.Sprintf("operation %d", uint8(k))
}

// ipvs says that the operation is a message to IPVS, so that it can travel in a
// batch with its like.
func (k OpKind) ipvs() bool {
	return k.ofService() || k == StartDaemon || k == StopDaemon || k == Zero
}

// ofService says that the operation works on Op.Service.
func (k OpKind) ofService() bool { return k >= AddService && k <= DelDestination }

// Op is one operation on the kernel. Kind says which of the other fields count.
type Op struct {
	Kind     OpKind
	Service  Service     // service and destination operations; for the latter its Key is enough
	Dest     Destination // destination operations
	Link     string
	Addr     netip.Addr
	Name     string
	Value    string
	Chain    *Chain
	Timeouts *Timeouts
	Daemon   *SyncDaemon
	// Why is the reason where it is not plain ("drained", "connections need SNAT").
	Why string
}

// Object names what the operation works on: "tcp/192.0.2.10:80",
// "tcp/192.0.2.10:80 -> 10.1.0.1:8080", "address 192.0.2.10", "sysctl net/ipv4/ip_forward".
func (o Op) Object() string {
	switch o.Kind {
	case SetSysctl:
		return "sysctl " + o.Name
	case AddLink, SetAlias, LinkUp, DelLink:
		return "link " + o.Link
	case AddAddress, DelAddress:
		return "address " + o.Addr.String()
	case AddService, SetService, DelService:
		return o.Service.Key.String()
	case AddDestination, SetDestination, DelDestination:
		return destinationObject(o.Service.Key, o.Dest.AddrPort())
	case SetChain, DelChain:
		return o.Chain.ChainKey.String()
	case SetTimeouts:
		return "timeouts"
	case StartDaemon, StopDaemon:
		return "sync daemon " + o.Daemon.Role.String()
	case Zero:
		if o.Service.Key != (Key{}) {
			return o.Service.Key.String()
		}
		return "all services"
	}
	return o.Kind.String()
}

func destinationObject(k Key, d netip.AddrPort) string { return k.String() + " -> " + d.String() }

// String is the operation on one line, as a plan prints it.
func (o Op) String() string {
	var b strings.Builder
	b.WriteString(o.Kind.String())
	b.WriteByte(' ')
	switch o.Kind {
	case SetSysctl:
		b.WriteString(o.Name + "=" + o.Value)
	case AddLink, SetAlias:
		fmt.Fprintf(&b, "%s alias %q", o.Link, o.Value)
	case LinkUp, DelLink:
		b.WriteString(o.Link)
	case AddAddress:
		fmt.Fprintf(&b, "%s to %s", o.Addr, o.Link)
	case DelAddress:
		fmt.Fprintf(&b, "%s from %s", o.Addr, o.Link)
	case AddService, SetService:
		b.WriteString(o.Service.String())
	case DelService:
		b.WriteString(o.Service.Key.String())
	case AddDestination, SetDestination:
		b.WriteString(o.Object())
		b.WriteByte(' ')
		b.WriteString(o.Dest.String())
	case DelDestination:
		b.WriteString(o.Object())
	case SetChain:
		fmt.Fprintf(&b, "%s: %d rules", o.Chain.ChainKey, len(o.Chain.Rules))
	case DelChain:
		b.WriteString(o.Chain.ChainKey.String())
	case SetTimeouts:
		b.WriteString(o.Timeouts.String())
	case StartDaemon:
		b.WriteString(o.Daemon.String())
	case StopDaemon:
		b.WriteString(o.Daemon.Role.String())
	case Zero:
		b.WriteString(o.Object())
	}
	if o.Why != "" {
		b.WriteString(" (" + o.Why + ")")
	}
	return b.String()
}

// String is the service with its values on one line; Key.String names it.
func (s Service) String() string {
	s = s.Normal()
	text := s.Key.String() + " " + s.Scheduler
	for _, f := range []struct {
		bit  Flags
		name string
	}{{Sched1, "flag-1"}, {Sched2, "flag-2"}, {Sched3, "flag-3"}, {OnePacket, "one-packet"}} {
		if s.Flags&f.bit != 0 {
			text += " " + f.name
		}
	}
	if s.Flags&Persistent != 0 {
		text += fmt.Sprintf(" persistent %s/%d", s.Timeout, s.Prefix)
	}
	if s.Engine != "" {
		text += " engine " + s.Engine
	}
	return text
}

// String is the destination's values without its address.
func (d Destination) String() string {
	text := fmt.Sprintf("%s weight %d", d.Forwarding, d.Weight)
	if d.Forwarding == Tunnel && d.Encap != IPIP {
		text += " " + d.Encap.String()
		if d.EncapPort != 0 {
			text += fmt.Sprintf(" port %d", d.EncapPort)
		}
	}
	if d.Upper != 0 || d.Lower != 0 {
		text += fmt.Sprintf(" thresholds %d/%d", d.Upper, d.Lower)
	}
	return text
}

// String is the service and its destinations, a line each.
func (s ServiceState) String() string {
	var b strings.Builder
	b.WriteString(s.Service.String())
	for _, d := range s.Destinations {
		fmt.Fprintf(&b, "\n  -> %s %s (%d active, %d inactive)", d.AddrPort(), d.Destination, d.Active, d.Inactive)
	}
	return b.String()
}
