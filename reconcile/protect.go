package reconcile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// multiportMax is how many ports a rule can name (xt_multiport).
const multiportMax = 15

// protectRules are the rules of family f that reject new connections to what no
// service has on our VIPs: the host's own listeners would answer there
// (docs/kernel.md). The jump to the chain is for new connections alone. The
// packet filter sees a packet before IPVS does, so each service's port is let
// through by name.
func protectRules(f Family, services []Key, vips []netip.Addr) []Rule {
	vips = slices.DeleteFunc(slices.Clone(vips), func(a netip.Addr) bool { return FamilyOf(a) != f })
	if len(vips) == 0 {
		return nil
	}
	type listener struct {
		vip      netip.Addr
		protocol Protocol
	}
	ports := map[listener][]uint16{}
	var order []listener
	var rules []Rule
	for _, k := range services {
		switch {
		case k.Family != f:
		case k.FWMark != 0:
			rules = append(rules, Rule(markMatch(k.FWMark)+"-j RETURN"))
		default:
			l := listener{k.Addr, k.Protocol}
			if _, ok := ports[l]; !ok {
				order = append(order, l)
			}
			ports[l] = append(ports[l], k.Port)
		}
	}
	for _, l := range order {
		match := "-d " + singleIP(l.vip).String() + " -p " + l.protocol.String() + " "
		all := ports[l]
		slices.Sort(all)
		if all[0] == 0 { // every port
			rules = append(rules, Rule(match+"-j RETURN"))
			continue
		}
		for some := range slices.Chunk(slices.Compact(all), multiportMax) {
			var names []string
			for _, p := range some {
				names = append(names, strconv.Itoa(int(p)))
			}
			rules = append(rules, Rule(match+"-m multiport --dports "+strings.Join(names, ",")+" -j RETURN"))
		}
	}
	unreachable := "icmp-port-unreachable"
	if f == IPv6 {
		unreachable = "icmp6-port-unreachable"
	}
	for _, p := range aggregate(vips) {
		for _, protocol := range []Protocol{TCP, UDP, SCTP} {
			with := unreachable
			if protocol == TCP {
				with = "tcp-reset"
			}
			rules = append(rules, Rule("-d "+p.String()+" -p "+protocol.String()+" -j REJECT --reject-with "+with))
		}
	}
	return rules
}

// protectedVIPs are those on our interface and those that will be.
func protectedVIPs(services []DesiredService, a *Actual) []netip.Addr {
	vips := a.VIPs()
	for i := range services {
		if s := &services[i]; s.FWMark == 0 && a.Held[s.Addr] == "" {
			vips = append(vips, s.Addr)
		}
	}
	return vips
}
