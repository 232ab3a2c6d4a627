package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Actual is what a kernel has, as far as a plan needs it.
type Actual struct {
	Services []ServiceState // within the scope, by key
	Foreign  []Key          // services of others
	Link     Link           // our interface; without a name if there is none
	Held     map[netip.Addr]string
	IPVS     IPVS
	Chains   map[ChainKey]Chain
	Sysctls  map[string]string
	Drains   []Drain // what is being drained, from the journal
	Profile  string  // that was in force last, from the journal: "edge, of revision 12"; empty: none
	Now      time.Time

	linkErr    error              // an interface of our name that is not ours
	chainErrs  map[ChainKey]error // why a packet filter cannot be used
	links      []Link
	collide    map[Key]bool // desired, but someone else's
	ownDaemons map[SyncRole]bool
	before     before
}

// Plan is the operations that make actual as desired, in the order in which
// they are carried out. It is pure: nothing is read or written, and for the
// same arguments it is the same. Services that must not be programmed are left
// out; Sync reports them.
//
// Of cfg the rules count; Kernel and Journal are not used.
func Plan(cfg Config, desired Desired, actual Actual) []Op {
	cfg = cfg.withDefaults().under(desired.Profile)
	w, _ := cfg.normal(desired)
	return cfg.plan(w, &actual).ops()
}

// plan is the work of one reconciliation, by stages: each is carried out before
// the next begins.
type plan struct {
	host   []Op // settings, packet filter, interface: additions only
	raise  []Op // services and destinations: additions, edits, raised weights
	lower  []Op // lowered weights, and deletions that may leave no weight
	bind   []Op // VIPs
	remove []Op // drained destinations, services, VIPs, packet filter

	drains     []Drain           // what is still being drained once this plan is done
	ending     []Drain           // what is deleted by it
	snat       map[Family][]Rule // worked out once
	remaining  []Key             // services that nobody wants and that remain for now
	failures   []Failure
	collisions []Collision
	warnings   []Warning
}

func (p *plan) ops() []Op {
	return slices.Concat(p.host, p.raise, p.lower, p.bind, p.remove)
}

func (c Config) plan(w *wanted, a *Actual) *plan {
	p := &plan{snat: map[Family][]Rule{}}
	services := w.services
	if len(a.collide) > 0 {
		services = slices.DeleteFunc(slices.Clone(services), func(s DesiredService) bool {
			if a.collide[s.Key] {
				p.collisions = append(p.collisions, Collision{s.Key.String(), "a service of someone else has this address, port and protocol"})
				p.failures = append(p.failures, Failure{Object: s.Key.String(), Service: s.Name, Op: "claim", Err: errForeign})
				return true
			}
			return false
		})
	}
	c.planSysctls(p, services, a)
	c.planDirector(p, w, a)
	c.planChains(p, services, a)
	c.planServices(p, services, a)
	c.planAddresses(p, services, a)
	c.planChainRemovals(p, services, a)
	c.warn(p, services, a)
	return p
}

var errForeign = errors.New("exists already and is not ours; delete it (ipvsadm -D) or choose another address or port")

// planServices walks desired and actual services, both by key.
func (c Config) planServices(p *plan, want []DesiredService, a *Actual) {
	drains := make(map[destination]Drain, len(a.Drains))
	for _, d := range a.Drains {
		drains[destination{d.Service, d.Dest}] = d
	}
	d := destinations{c, p, drains, a}
	if len(a.Services) == 0 {
		n := len(want)
		for i := range want {
			n += len(want[i].Destinations)
		}
		p.raise = slices.Grow(p.raise, n)
	}
	have := a.Services
	for len(want) > 0 || len(have) > 0 {
		var order int
		switch {
		case len(have) == 0:
			order = -1
		case len(want) == 0:
			order = 1
		default:
			order = want[0].Key.Compare(have[0].Key)
		}
		switch {
		case order < 0:
			w := &want[0]
			p.raise = append(p.raise, Op{Kind: AddService, Service: w.Service})
			d.plan(w.Service, w, nil)
			want = want[1:]
		case order > 0:
			h := &have[0]
			if c.DrainServices && c.DrainTimeout > 0 && len(h.Destinations) > 0 {
				if d.plan(h.Service, nil, h.Destinations) > 0 {
					p.remaining = append(p.remaining, h.Key)
					have = have[1:]
					continue
				}
			}
			p.remove = append(p.remove, Op{Kind: DelService, Service: Service{Key: h.Key}})
			have = have[1:]
		default:
			w, h := &want[0], &have[0]
			if w.Service != h.Service.Normal() {
				p.raise = append(p.raise, Op{Kind: SetService, Service: w.Service})
			}
			d.plan(w.Service, w, h.Destinations)
			want, have = want[1:], have[1:]
		}
	}
}

// destinations plans those of one service after the other.
type destinations struct {
	cfg    Config
	p      *plan
	drains map[destination]Drain
	a      *Actual
}

// plan walks desired and actual destinations of one service, both by address and
// port; w is nil if nobody wants it. It returns how many that nobody wants remain
// for now.
func (d *destinations) plan(s Service, w *DesiredService, have []DestinationState) int {
	remaining := 0
	var want []Destination
	if w != nil {
		want = w.Destinations
	}
	for len(want) > 0 || len(have) > 0 {
		var order int
		switch {
		case len(have) == 0:
			order = -1
		case len(want) == 0:
			order = 1
		default:
			order = want[0].AddrPort().Compare(have[0].AddrPort())
		}
		switch {
		case order > 0:
			remaining += d.drain(s, &have[0])
			have = have[1:]
		case len(w.Until) > 0 && d.over(w, want[0]):
			if order == 0 {
				d.end(s, &have[0], "its drain deadline passed")
				have = have[1:]
			}
			want = want[1:]
		case order < 0:
			d.p.raise = append(d.p.raise, Op{Kind: AddDestination, Service: s, Dest: want[0]})
			want = want[1:]
		default:
			w, h := want[0], have[0].Destination.Normal()
			if w != h {
				op := Op{Kind: SetDestination, Service: s, Dest: w}
				if w.Weight < h.Weight {
					d.p.lower = append(d.p.lower, op)
				} else {
					d.p.raise = append(d.p.raise, op)
				}
			}
			want, have = want[1:], have[1:]
		}
	}
	return remaining
}

// over says whether a destination's own time has passed.
func (d *destinations) over(w *DesiredService, dest Destination) bool {
	until := w.Until[dest.AddrPort()]
	return !until.IsZero() && !d.a.Now.Before(until)
}

// end deletes a destination, whatever connections it has.
func (d *destinations) end(s Service, h *DestinationState, why string) {
	if n := h.Active + h.Inactive; n > 0 {
		why = fmt.Sprintf("%s with %d connections", why, n)
	}
	d.p.remove = append(d.p.remove, Op{Kind: DelDestination, Service: Service{Key: s.Key}, Dest: h.Destination.Normal(), Why: why})
}

// udpTimeout is the kernel's first value of the life of a UDP connection after
// its last packet (net/netfilter/ipvs/ip_vs_proto_udp.c). A client that goes on
// sending from one port never ends it, so a drain does not wait for longer.
const udpTimeout = 5 * time.Minute

// drain is one step in the life of a destination that nobody wants: weight 0,
// then nothing until its connections have ended or the deadline, then deletion.
// It returns 1 if the destination remains for now.
func (d *destinations) drain(s Service, h *DestinationState) int {
	at := destination{s.Key, h.AddrPort()}
	now := d.a.Now
	if d.cfg.DrainTimeout < 0 {
		d.p.lower = append(d.p.lower, Op{Kind: DelDestination, Service: Service{Key: s.Key}, Dest: h.Destination.Normal()})
		return 0
	}
	drain, draining := d.drains[at]
	if !draining {
		limit := d.cfg.DrainTimeout
		if s.Protocol == UDP {
			udp := d.a.IPVS.Timeouts.UDP
			if udp == 0 {
				udp = udpTimeout
			}
			limit = min(limit, udp)
		}
		drain = Drain{Service: s.Key, Dest: at.addr, Since: now, Deadline: now.Add(limit)}
	}
	if h.Weight == 0 {
		why := ""
		switch {
		case h.Active == 0 && h.Inactive == 0:
			why = "drained"
		case draining && !now.Before(drain.Deadline):
			why = "drain deadline passed"
		}
		if why != "" {
			d.end(s, h, why)
			d.p.ending = append(d.p.ending, drain)
			return 0
		}
	} else {
		w := h.Destination.Normal()
		w.Weight = 0
		d.p.lower = append(d.p.lower, Op{Kind: SetDestination, Service: s, Dest: w, Why: "drain"})
	}
	d.p.drains = append(d.p.drains, drain)
	return 1
}

func (c Config) planAddresses(p *plan, services []DesiredService, a *Actual) {
	some, v6 := false, false
	for i := range services {
		if s := &services[i]; s.FWMark == 0 {
			some, v6 = true, v6 || s.Family == IPv6
		}
	}
	if some && a.linkErr != nil {
		p.failures = append(p.failures, Failure{Object: "link " + c.DummyName, Op: "use", Err: a.linkErr})
		p.collisions = append(p.collisions, Collision{"link " + c.DummyName, a.linkErr.Error()})
		return
	}
	exists := a.Link.Name != ""
	if some {
		switch {
		case !exists:
			p.host = append(p.host, Op{Kind: AddLink, Link: c.DummyName, Value: Alias})
		case a.Link.Alias != Alias:
			p.host = append(p.host, Op{Kind: SetAlias, Link: c.DummyName, Value: Alias, Why: "adopted"})
		}
		if !a.Link.Up {
			p.host = append(p.host, Op{Kind: LinkUp, Link: c.DummyName})
		}
	}
	if v6 {
		// Without it an interface that goes down loses its IPv6 addresses.
		c.planSysctl(&p.bind, a, keepAddresses(c.DummyName), "1", "IPv6 VIPs survive the interface going down")
	}
	bound := make(map[netip.Addr]bool, len(a.Link.Addresses))
	for _, prefix := range a.Link.Addresses {
		if prefix.IsSingleIP() {
			bound[prefix.Addr()] = true
		}
	}
	if len(bound) == 0 {
		p.bind = slices.Grow(p.bind, len(services))
	}
	var last netip.Addr
	for i := range services {
		vip := services[i].Addr
		if services[i].FWMark != 0 || vip == last {
			continue
		}
		last = vip
		switch holder := a.Held[vip]; {
		case bound[vip]:
		case holder != "":
			p.collisions = append(p.collisions, Collision{"address " + vip.String(), "interface " + holder + " has it, so it is not bound again"})
		default:
			p.bind = append(p.bind, Op{Kind: AddAddress, Link: c.DummyName, Addr: vip})
		}
	}
	if !c.ReleaseVIPs || !exists {
		return
	}
	used := map[netip.Addr]bool{}
	for i := range services {
		used[services[i].Addr] = true
	}
	for _, k := range slices.Concat(a.Foreign, p.remaining) {
		used[k.Addr] = true
	}
	for _, prefix := range a.Link.Addresses {
		vip := prefix.Addr()
		if prefix.IsSingleIP() && !used[vip] && !vip.IsLinkLocalUnicast() {
			p.remove = append(p.remove, Op{Kind: DelAddress, Link: c.DummyName, Addr: vip, Why: "no service uses it"})
		}
	}
}
