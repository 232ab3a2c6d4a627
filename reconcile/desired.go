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

// SNATMode says which masqueraded connections get this director's own address
// as their source.
type SNATMode uint8

const (
	// SNATLocal: those that this director itself opens to the VIP, which would
	// otherwise get no answer. Clients keep their address.
	SNATLocal SNATMode = iota
	// SNATAll: every one, for backends that do not route back through the director.
	SNATAll
	// SNATOff: none.
	SNATOff
)

func (m SNATMode) String() string {
	switch m {
	case SNATLocal:
		return "local"
	case SNATAll:
		return "all"
	case SNATOff:
		return "off"
	}
	return fmt.Sprintf("snat mode %d", uint8(m))
}

// Desired is everything that one director's kernel should have within the scope.
type Desired struct {
	Revision uint64 // comes back in the Report; not interpreted
	Services []DesiredService
	// Timeouts of IPVS, for all services of the namespace, also those of others.
	Timeouts Timeouts
	// Daemons that share connections with other directors, at most one of each
	// role. One that runs and that we did not start is left alone.
	Daemons []SyncDaemon
	// Profile says how the director is set up where Config, Timeouts and Daemons do
	// not; nil: nothing more.
	Profile *lbstate.DesiredProfile
}

// DesiredService is a service with all its destinations. A destination that is
// in the kernel but not here is drained, then deleted.
type DesiredService struct {
	Service
	Name         string // for reports; may be empty
	SNAT         SNATMode
	Destinations []Destination
	// Until says from when on a destination is gone, with what connections it then
	// has: for a drain by weight 0 with a deadline of its own. Those that are not
	// named stay.
	Until map[netip.AddrPort]time.Time
}

// changes are the services that d wants differently from o. It is not ok if they
// differ in anything else. Services that have times to keep are always among them.
func (d *Desired) changes(o *Desired) (changed []DesiredService, ok bool) {
	if d.Timeouts != o.Timeouts || !slices.Equal(d.Daemons, o.Daemons) || !d.Profile.Equal(o.Profile) || len(d.Services) != len(o.Services) {
		return nil, false
	}
	for i := range d.Services {
		a, b := &d.Services[i], &o.Services[i]
		if a.Key != b.Key {
			return nil, false
		}
		if a.Service != b.Service || a.SNAT != b.SNAT || a.Name != b.Name || len(a.Until)+len(b.Until) > 0 ||
			!slices.Equal(a.Destinations, b.Destinations) {
			changed = append(changed, *a)
		}
	}
	return changed, true
}

// clone shares nothing with d that could be changed.
func (d Desired) clone() Desired {
	d.Daemons = slices.Clone(d.Daemons)
	if d.Profile != nil {
		p := *d.Profile
		p.SyncDaemons, p.AllowedPrefixes, p.Sysctls = slices.Clone(p.SyncDaemons), slices.Clone(p.AllowedPrefixes), maps.Clone(p.Sysctls)
		d.Profile = &p
	}
	d.Services = slices.Clone(d.Services)
	n := 0
	for i := range d.Services {
		n += len(d.Services[i].Destinations)
	}
	all := make([]Destination, 0, n)
	for i := range d.Services {
		s := &d.Services[i]
		at := len(all)
		all = append(all, s.Destinations...)
		s.Destinations = all[at:len(all):len(all)]
		s.Until = maps.Clone(s.Until)
	}
	return d
}

// masquerades says whether some destination answers through this director.
func (s *DesiredService) masquerades() bool {
	for i := range s.Destinations {
		if s.Destinations[i].Forwarding == Masq {
			return true
		}
	}
	return false
}

// FromView makes what a director should have of lbstate's view. Services that
// cannot be expressed come back as failures; the others are usable.
func FromView(v lbstate.View) (Desired, []Failure) {
	d := Desired{Revision: v.Revision, Services: make([]DesiredService, 0, len(v.Services)), Profile: v.Profile}
	var failures []Failure
	for i := range v.Services {
		s, err := fromService(&v.Services[i])
		if err != nil {
			failures = append(failures, Failure{Object: "service " + v.Services[i].Name, Op: "read", Err: err})
			continue
		}
		d.Services = append(d.Services, s)
	}
	return d, failures
}

func fromService(in *lbstate.DesiredService) (DesiredService, error) {
	out := DesiredService{Name: in.Name}
	if in.FWMark != 0 {
		switch in.Family {
		case lbstate.IPv4:
			out.Key = MarkKey(IPv4, in.FWMark)
		case lbstate.IPv6:
			out.Key = MarkKey(IPv6, in.FWMark)
		default:
			return out, fmt.Errorf("family is %q; with a firewall mark it is ipv4 or ipv6", in.Family)
		}
	} else {
		var p Protocol
		switch in.Protocol {
		case lbstate.TCP:
			p = TCP
		case lbstate.UDP:
			p = UDP
		case lbstate.SCTP:
			p = SCTP
		default:
			return out, fmt.Errorf("protocol is %q; tcp, udp or sctp can be programmed", in.Protocol)
		}
		out.Key = AddrKey(p, netip.AddrPortFrom(in.VIP, in.Port))
	}
	out.Scheduler = in.Scheduler
	for _, name := range in.SchedulerFlags {
		f, err := schedulerFlag(name)
		if err != nil {
			return out, err
		}
		out.Flags |= f
	}
	if in.OnePacket {
		out.Flags |= OnePacket
	}
	if p := in.Persistence; p != nil {
		out.Flags |= Persistent
		out.Timeout = time.Duration(p.Timeout)
		out.Prefix = p.Prefix
		out.Engine = p.Engine
	}
	mode, ok := snatMode(in.SNAT)
	if !ok {
		return out, fmt.Errorf("snat is %q; local, all or off can be programmed", in.SNAT)
	}
	out.SNAT = mode
	out.Destinations = make([]Destination, len(in.Backends))
	for i, b := range in.Backends {
		d := Destination{
			Addr: b.Address, Port: b.Port, Weight: uint32(max(0, b.Weight)),
			Upper: uint32(max(0, b.UpperThreshold)), Lower: uint32(max(0, b.LowerThreshold)),
		}
		switch b.Forwarding {
		case lbstate.Masq, "":
			d.Forwarding = Masq
		case lbstate.DR:
			d.Forwarding = DR
		case lbstate.Tunnel:
			d.Forwarding = Tunnel
			if err := d.encapsulate(b.Tunnel); err != nil {
				return out, fmt.Errorf("tunnel to %s: %w", d.AddrPort(), err)
			}
		default:
			return out, fmt.Errorf("forwarding of %s is %q; masq, dr or tunnel can be programmed", d.AddrPort(), b.Forwarding)
		}
		out.Destinations[i] = d
		if !b.DrainUntil.IsZero() {
			if out.Until == nil {
				out.Until = map[netip.AddrPort]time.Time{}
			}
			out.Until[d.AddrPort()] = b.DrainUntil
		}
	}
	return out, nil
}

func snatMode(in lbstate.SNATMode) (mode SNATMode, ok bool) {
	switch in {
	case lbstate.SNATLocal, "":
		return SNATLocal, true
	case lbstate.SNATAll:
		return SNATAll, true
	case lbstate.SNATOff:
		return SNATOff, true
	}
	return 0, false
}

// encapsulate says how a tunnel wraps packets; nil: in IP alone.
func (d *Destination) encapsulate(t *lbstate.TunnelOptions) error {
	if t == nil {
		return nil
	}
	switch t.Type {
	case lbstate.IPIP, "":
	case lbstate.GUE:
		d.Encap, d.EncapPort = GUE, uint16(t.Port)
	case lbstate.GRE:
		d.Encap = GRE
	default:
		return fmt.Errorf("type is %q; ipip, gue or gre can be programmed", t.Type)
	}
	switch t.Checksum {
	case lbstate.ChecksumNone, "":
	case lbstate.ChecksumOn:
		d.EncapFlags = TunnelChecksum
	case lbstate.ChecksumRemote:
		d.EncapFlags = TunnelRemoteChecksum
	default:
		return fmt.Errorf("checksum is %q; none, on or remote can be programmed", t.Checksum)
	}
	return nil
}

// schedulerFlag is the kernel's bit of a flag's name: sh and mh use the same two.
func schedulerFlag(name string) (Flags, error) {
	switch strings.ToLower(name) {
	case "flag-1", "sh-fallback", "mh-fallback":
		return Sched1, nil
	case "flag-2", "sh-port", "mh-port":
		return Sched2, nil
	case "flag-3":
		return Sched3, nil
	}
	return 0, fmt.Errorf("scheduler flag %q is not known; sh-fallback, sh-port, mh-fallback, mh-port, flag-1, flag-2 and flag-3 are", name)
}

// wanted is a Desired in the kernel's terms and sorted, without what must not be
// programmed.
type wanted struct {
	services []DesiredService // by key
	timeouts Timeouts
	daemons  []SyncDaemon
	own      Timeouts          // of timeouts, what is not the profile's
	fields   map[string]string // of the profile, by the object of operations that each decides
}

func (w *wanted) service(k Key) *DesiredService {
	i, ok := slices.BinarySearchFunc(w.services, k, func(s DesiredService, k Key) int { return s.Key.Compare(k) })
	if !ok {
		return nil
	}
	return &w.services[i]
}

// next is the first time after t at which a destination's own time ends.
func (w *wanted) next(t time.Time) (first time.Time, ok bool) {
	for i := range w.services {
		for _, until := range w.services[i].Until {
			if until.After(t) && (!ok || until.Before(first)) {
				first, ok = until, true
			}
		}
	}
	return first, ok
}

// normal gives what can be programmed of d, and the rest as failures. d itself is
// not changed.
func (c Config) normal(d Desired) (*wanted, []Failure) {
	services, failures := c.normalServices(d)
	own := d.Timeouts
	d, fields, odd := c.laidOver(d)
	timeouts, daemons, unusable := checkDirector(d)
	return &wanted{services, timeouts, daemons, own, fields}, slices.Concat(failures, odd, unusable)
}

func (c Config) normalServices(d Desired) ([]DesiredService, []Failure) {
	services := make([]DesiredService, 0, len(d.Services))
	var failures []Failure
	refuse := func(s *DesiredService, err error) {
		failures = append(failures, Failure{Object: s.Key.String(), Service: s.Name, Op: "check", Err: err})
	}
	for i := range d.Services {
		s := d.Services[i]
		s.Service = s.Service.Normal()
		if c.profile != nil && c.profile.SNAT != "" {
			mode, ok := snatMode(c.profile.SNAT)
			if !ok {
				refuse(&s, fmt.Errorf("profile %s: snat is %q; local, all or off can be programmed", c.profile.Name, c.profile.SNAT))
				continue
			}
			s.SNAT = mode
		}
		if err := c.check(&s); err != nil {
			refuse(&s, err)
			continue
		}
		if !normalDestinations(s.Destinations) {
			s.Destinations = slices.Clone(s.Destinations)
			for j := range s.Destinations {
				s.Destinations[j] = s.Destinations[j].Normal()
			}
			slices.SortFunc(s.Destinations, func(a, b Destination) int { return a.AddrPort().Compare(b.AddrPort()) })
		}
		if j := duplicate(s.Destinations); j > 0 {
			refuse(&s, fmt.Errorf("destination %s is there twice", s.Destinations[j].AddrPort()))
			continue
		}
		services = append(services, s)
	}
	compare := func(a, b DesiredService) int { return a.Key.Compare(b.Key) }
	if !slices.IsSortedFunc(services, compare) {
		slices.SortStableFunc(services, compare)
	}
	kept := services[:0]
	for i := range services {
		if n := len(kept); n > 0 && kept[n-1].Key == services[i].Key {
			refuse(&services[i], fmt.Errorf("service %q already has this address, port and protocol", kept[n-1].Name))
			continue
		}
		kept = append(kept, services[i])
	}
	return kept, failures
}

func normalDestinations(ds []Destination) bool {
	for i := range ds {
		if ds[i] != ds[i].Normal() || i > 0 && ds[i-1].AddrPort().Compare(ds[i].AddrPort()) > 0 {
			return false
		}
	}
	return true
}

func duplicate(ds []Destination) int {
	for i := 1; i < len(ds); i++ {
		if ds[i-1].AddrPort() == ds[i].AddrPort() {
			return i
		}
	}
	return 0
}

// check refuses what the kernel would accept although it cannot work
// (docs/kernel.md), and what is outside of what may be ours.
func (c *Config) check(s *DesiredService) error {
	switch {
	case s.Family != IPv4 && s.Family != IPv6:
		return fmt.Errorf("%s is not a family of addresses; ipv4 and ipv6 are", s.Family)
	case s.FWMark != 0:
		if s.Addr.IsValid() || s.Port != 0 || s.Protocol != 0 {
			return fmt.Errorf("a service has either a firewall mark or an address")
		}
		if !c.Marks.Contains(s.FWMark) {
			return fmt.Errorf("firewall mark %d is outside of the range that is ours (%s)", s.FWMark, c.Marks)
		}
	default:
		if err := c.checkVIP(s); err != nil {
			return err
		}
	}
	switch {
	case s.Scheduler == "" || len(s.Scheduler) > 15:
		return fmt.Errorf("scheduler %q: a name of 1 to 15 characters is needed", s.Scheduler)
	case s.Prefix < 1 || s.Prefix > s.Family.bits():
		return fmt.Errorf("persistence prefix %d: 1 to %d is possible", s.Prefix, s.Family.bits())
	case s.Timeout%time.Second != 0 || s.Timeout < 0 || s.Timeout > math.MaxInt32*time.Second:
		return fmt.Errorf("persistence timeout %s: whole seconds are possible", s.Timeout)
	case s.Flags&Persistent == 0 && s.Timeout != 0:
		return fmt.Errorf("a persistence timeout without persistence")
	case s.Flags&Persistent != 0 && s.Timeout == 0:
		return fmt.Errorf("persistence needs a timeout of at least 1s")
	case s.Engine != "" && s.Flags&Persistent == 0:
		return fmt.Errorf("a persistence engine without persistence")
	case len(s.Engine) > 15:
		return fmt.Errorf("persistence engine %q: a name of at most 15 characters is possible", s.Engine)
	case s.Engine == "sip" && s.Protocol != UDP && s.FWMark == 0:
		return fmt.Errorf("persistence engine sip is for udp")
	case s.Flags&OnePacket != 0 && s.Protocol != UDP && s.FWMark == 0:
		return fmt.Errorf("one-packet scheduling is for udp")
	}
	for i := range s.Destinations {
		if err := checkDestination(&s.Service, s.Destinations[i].Normal()); err != nil {
			return fmt.Errorf("destination %s: %w", s.Destinations[i].AddrPort(), err)
		}
	}
	return nil
}

func (c *Config) checkVIP(s *DesiredService) error {
	a := s.Addr
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "":
		return fmt.Errorf("%s cannot be a VIP; a unicast address is needed", a)
	case FamilyOf(a) != s.Family:
		return fmt.Errorf("VIP %s is not of family %s", a, s.Family)
	case s.Protocol != TCP && s.Protocol != UDP && s.Protocol != SCTP:
		return fmt.Errorf("%s is not balanced; tcp, udp and sctp are", s.Protocol)
	case s.Port == 0 && s.Flags&Persistent == 0:
		return fmt.Errorf("port 0 (every port) needs persistence")
	}
	if !allowed(c.AllowedPrefixes, a) {
		return fmt.Errorf("VIP %s is in none of the allowed prefixes", a)
	}
	if p := c.profile; p != nil && !allowed(p.AllowedPrefixes, a) {
		return fmt.Errorf("VIP %s is in none of the allowed prefixes of profile %s", a, p.Name)
	}
	return nil
}

func allowed(prefixes []netip.Prefix, a netip.Addr) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func checkDestination(s *Service, d Destination) error {
	switch {
	case !d.Addr.IsValid() || d.Addr.Zone() != "":
		return fmt.Errorf("an address is needed")
	case d.Forwarding != Masq && d.Forwarding != DR && d.Forwarding != Tunnel:
		return fmt.Errorf("%s cannot be asked for; masq, dr and tunnel can", d.Forwarding)
	case FamilyOf(d.Addr) != s.Family && d.Forwarding != Tunnel:
		return fmt.Errorf("%s reaches only backends of family %s; tunnel reaches both", d.Forwarding, s.Family)
	case d.Weight > math.MaxInt32:
		return fmt.Errorf("weight %d: 0 to %d is possible", d.Weight, math.MaxInt32)
	case d.Lower > d.Upper:
		return fmt.Errorf("lower threshold %d is above the upper one, %d", d.Lower, d.Upper)
	case d.Port == 0 && s.Port != 0:
		return fmt.Errorf("a port is needed")
	case d.Forwarding != Masq && s.FWMark == 0 && d.Port != s.Port:
		return fmt.Errorf("%s cannot change the port: the service's is %d", d.Forwarding, s.Port)
	case d.Encap > GRE:
		return fmt.Errorf("%s is not known; ipip, gue and gre are", d.Encap)
	case d.Forwarding == Tunnel && d.Encap == GUE && d.EncapPort == 0:
		return fmt.Errorf("gue needs the receiver's port")
	}
	return nil
}
