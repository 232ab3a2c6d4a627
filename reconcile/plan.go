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
	Chains   map[Family]Chain
	Sysctls  map[string]string
	Drains   []Drain // what is being drained, from the journal
	Now      time.Time

	linkErr   error            // an interface of our name that is not ours
	chainErrs map[Family]error // why a packet filter cannot be used
	links     []Link
	collide   map[Key]bool // desired, but someone else's
}

// Plan is the operations that make actual as desired, in the order in which
// they are carried out. It is pure: nothing is read or written, and for the
// same arguments it is the same. Services that must not be programmed are left
// out; Sync reports them.
//
// Of cfg the rules count; Kernel and Journal are not used.
func Plan(cfg Config, desired Desired, actual Actual) []Op {
	cfg = cfg.withDefaults()
	services, _ := cfg.normal(desired)
	p := cfg.plan(services, &actual)
	return p.ops()
}

// plan is the work of one reconciliation, by stages: each is carried out before
// the next begins.
type plan struct {
	host   []Op // settings, packet filter, interface: additions only
	raise  []Op // services and destinations: additions, edits, raised weights
	lower  []Op // lowered weights, and deletions that may leave no weight
	bind   []Op // VIPs
	remove []Op // drained destinations, services, VIPs, packet filter

	drains     []Drain // what is still being drained once this plan is done
	ending     []Drain // what is deleted by it
	failures   []Failure
	collisions []Collision
}

func (p *plan) ops() []Op {
	return slices.Concat(p.host, p.raise, p.lower, p.bind, p.remove)
}

func (c Config) plan(services []DesiredService, a *Actual) *plan {
	p := new(plan)
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
	c.planChains(p, services, a)
	used := c.planServices(p, services, a)
	c.planAddresses(p, services, a, used)
	c.planChainRemovals(p, services, a)
	return p
}

var errForeign = errors.New("exists already and is not ours; delete it (ipvsadm -D) or choose another address or port")

// planServices walks desired and actual services, both by key. It returns the
// VIPs on which services remain although nobody wants them.
func (c Config) planServices(p *plan, want []DesiredService, a *Actual) map[netip.Addr]bool {
	drains := make(map[destination]Drain, len(a.Drains))
	for _, d := range a.Drains {
		drains[destination{d.Service, d.Dest}] = d
	}
	used := map[netip.Addr]bool{}
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
			for _, d := range w.Destinations {
				p.raise = append(p.raise, Op{Kind: AddDestination, Service: w.Service, Dest: d})
			}
			want = want[1:]
		case order > 0:
			h := &have[0]
			if c.DrainServices && c.DrainTimeout > 0 && len(h.Destinations) > 0 {
				if c.planDestinations(p, h.Service, nil, h.Destinations, drains, a.Now) > 0 {
					used[h.Addr] = true
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
			c.planDestinations(p, w.Service, w.Destinations, h.Destinations, drains, a.Now)
			want, have = want[1:], have[1:]
		}
	}
	return used
}

// planDestinations walks desired and actual destinations of one service, both by
// address and port. It returns how many that nobody wants remain for now.
func (c Config) planDestinations(p *plan, s Service, want []Destination, have []DestinationState, drains map[destination]Drain, now time.Time) int {
	remaining := 0
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
		case order < 0:
			p.raise = append(p.raise, Op{Kind: AddDestination, Service: s, Dest: want[0]})
			want = want[1:]
		case order > 0:
			remaining += c.planDrain(p, s, &have[0], drains, now)
			have = have[1:]
		default:
			w, h := want[0], have[0].Destination.Normal()
			if w != h {
				op := Op{Kind: SetDestination, Service: s, Dest: w}
				if w.Weight < h.Weight {
					p.lower = append(p.lower, op)
				} else {
					p.raise = append(p.raise, op)
				}
			}
			want, have = want[1:], have[1:]
		}
	}
	return remaining
}

// udpTimeout is the kernel's default life of a UDP connection after its last
// packet (net/netfilter/ipvs/ip_vs_proto_udp.c). A client that goes on sending
// from one port never ends it, so a drain does not wait for longer.
const udpTimeout = 5 * time.Minute

// planDrain is one step in the life of a destination that nobody wants: weight
// 0, then nothing until its connections have ended or the deadline, then
// deletion. It returns 1 if the destination remains for now.
func (c Config) planDrain(p *plan, s Service, h *DestinationState, drains map[destination]Drain, now time.Time) int {
	at := destination{s.Key, h.AddrPort()}
	del := Op{Kind: DelDestination, Service: Service{Key: s.Key}, Dest: h.Destination.Normal()}
	if c.DrainTimeout < 0 {
		p.lower = append(p.lower, del)
		return 0
	}
	d, draining := drains[at]
	if !draining {
		limit := c.DrainTimeout
		if s.Protocol == UDP {
			limit = min(limit, udpTimeout)
		}
		d = Drain{Service: s.Key, Dest: at.addr, Since: now, Deadline: now.Add(limit)}
	}
	if h.Weight == 0 {
		switch {
		case h.Active == 0 && h.Inactive == 0:
			del.Why = "drained"
			p.remove = append(p.remove, del)
			p.ending = append(p.ending, d)
			return 0
		case draining && !now.Before(d.Deadline):
			del.Why = fmt.Sprintf("drain deadline passed with %d connections", h.Active+h.Inactive)
			p.remove = append(p.remove, del)
			p.ending = append(p.ending, d)
			return 0
		}
	} else {
		w := h.Destination.Normal()
		w.Weight = 0
		p.lower = append(p.lower, Op{Kind: SetDestination, Service: s, Dest: w, Why: "drain"})
	}
	p.drains = append(p.drains, d)
	return 1
}

func (c Config) planAddresses(p *plan, services []DesiredService, a *Actual, used map[netip.Addr]bool) {
	vips := make(map[netip.Addr]bool, len(services))
	v6 := false
	for i := range services {
		if s := &services[i]; s.FWMark == 0 {
			vips[s.Addr] = true
			v6 = v6 || s.Family == IPv6
		}
	}
	if len(vips) > 0 && a.linkErr != nil {
		p.failures = append(p.failures, Failure{Object: "link " + c.DummyName, Op: "use", Err: a.linkErr})
		p.collisions = append(p.collisions, Collision{"link " + c.DummyName, a.linkErr.Error()})
		return
	}
	exists := a.Link.Name != ""
	if len(vips) > 0 {
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
		c.planSysctl(p, &p.bind, a, "net/ipv6/conf/"+c.DummyName+"/keep_addr_on_down", "1", "IPv6 VIPs survive the interface going down")
	}
	bound := make(map[netip.Addr]bool, len(a.Link.Addresses))
	for _, prefix := range a.Link.Addresses {
		if prefix.IsSingleIP() {
			bound[prefix.Addr()] = true
		}
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
	for _, k := range a.Foreign {
		used[k.Addr] = true
	}
	for _, prefix := range a.Link.Addresses {
		vip := prefix.Addr()
		if prefix.IsSingleIP() && !vips[vip] && !used[vip] && !vip.IsLinkLocalUnicast() {
			p.remove = append(p.remove, Op{Kind: DelAddress, Link: c.DummyName, Addr: vip, Why: "no service uses it"})
		}
	}
}
