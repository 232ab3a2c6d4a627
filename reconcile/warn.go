package reconcile

import (
	"fmt"
	"net/netip"
)

// warn tells of VIPs that are in the network of one of this host's segments.
// Clients there ask by ARP who has the address: every director that carries it
// answers, and which one they take changes as they ask again.
func (c Config) warn(p *plan, services []DesiredService, a *Actual) {
	type group struct {
		link  string
		first netip.Addr
		more  int
	}
	groups := map[netip.Prefix]*group{}
	var order []netip.Prefix
	var last netip.Addr
	for i := range services {
		vip := services[i].Addr
		if services[i].FWMark != 0 || vip == last || a.Held[vip] != "" {
			continue
		}
		last = vip
		link, network, ok := onLink(vip, a)
		if !ok {
			continue
		}
		if g := groups[network]; g != nil {
			g.more++
			continue
		}
		groups[network] = &group{link: link, first: vip}
		order = append(order, network)
	}
	for _, network := range order {
		g := groups[network]
		var why string
		switch {
		case network.Addr().Is6():
			why = "but Linux answers neighbor discovery only for an interface's own addresses: route it to this host"
		case c.ARPQuiet:
			why = "but this host is kept from answering ARP for it: route it to this host"
		case !c.SoleDirector:
			why = "so this host answers ARP for it; if other directors carry it too, clients there reach now one, now the other: " +
				"keep the directors quiet (ARPQuiet) and route the address to them"
		default:
			continue
		}
		if g.more > 0 {
			why += fmt.Sprintf(" (and %d other VIPs there)", g.more)
		}
		p.warnings = append(p.warnings, Warning{"address " + g.first.String(), fmt.Sprintf("it is in %s of interface %s, %s", network, g.link, why)})
	}
}

func onLink(vip netip.Addr, a *Actual) (link string, network netip.Prefix, ok bool) {
	for _, l := range a.links {
		if !l.Up || l.Name == a.Link.Name {
			continue
		}
		for _, p := range l.Addresses {
			if !p.IsSingleIP() && !p.Addr().IsLoopback() && p.Contains(vip) {
				return l.Name, p.Masked(), true
			}
		}
	}
	return "", netip.Prefix{}, false
}
