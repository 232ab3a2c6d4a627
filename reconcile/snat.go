package reconcile

import (
	"net/netip"
	"slices"
	"strconv"
)

// The last rule of a namespace that uses connection tracking takes every
// SNATed connection with it when it goes (docs/kernel.md), so each chain begins
// with one that matches no packet and stays as long as the chain.
func pinnedRule(f Family) Rule {
	if f == IPv6 {
		return "-s ff00::/128 -j MASQUERADE"
	}
	return "-s 255.255.255.255/32 -j MASQUERADE"
}

const (
	// Of IPVS connections that are masqueraded, the packets to the backend.
	toBackend   = "--vdir ORIGINAL --vmethod MASQ "
	masqueraded = toBackend + "-j MASQUERADE"
	leftAlone   = toBackend + "-j RETURN"
)

// blanketAbove is from how many rules on one rule for all connections, with the
// exceptions before it, is taken instead where that makes fewer.
const blanketAbove = 16

// snatRules are the rules of family f; nil if no connection needs any. foreign
// are the services of others, whose connections must not be changed.
//
// The kernel tries the rules one after the other for each new connection, so
// their number matters. A VIP whose services all have one mode gets a rule of its
// own, adjacent VIPs share one, and where that leaves many a blanket rule takes
// their place: its number of rules grows with the exceptions alone.
func snatRules(f Family, services []DesiredService, foreign []Key) []Rule {
	g := newSNATGroups(f, services, foreign)
	local, all := g.of(SNATLocal), g.of(SNATAll)
	if len(local)+len(all) == 0 {
		return nil
	}
	const (
		fromHere = Rule("-m addrtype --src-type LOCAL -m ipvs " + masqueraded)
		always   = Rule("-m ipvs " + masqueraded)
	)
	out := []Rule{pinnedRule(f)}
	add := func(matches []snatMatch, match func(snatMatch) string, then string) {
		for _, m := range matches {
			out = append(out, Rule(match(m)+then))
		}
	}
	each := len(local) + len(all)
	var off []snatMatch
	if each > blanketAbove {
		off = g.of(SNATOff)
	}
	blanketLocal, blanketAll := each, each
	if len(local) > 1 {
		blanketLocal = len(off) + 1 + len(all)
	}
	if len(all) > 1 {
		blanketAll = len(off) + min(1, len(local)) + len(local) + 1
	}
	switch fewest := min(each, blanketLocal, blanketAll); {
	case each <= blanketAbove || fewest == each:
		add(local, snatMatch.fromHere, masqueraded)
		add(all, snatMatch.always, masqueraded)
	case fewest == blanketLocal:
		add(off, snatMatch.always, leftAlone)
		out = append(out, fromHere)
		add(all, snatMatch.always, masqueraded)
	default:
		add(off, snatMatch.always, leftAlone)
		if len(local) > 0 {
			out = append(out, fromHere)
			add(local, snatMatch.always, leftAlone)
		}
		out = append(out, always)
	}
	return out
}

// snatMatch is what a rule matches: a prefix of VIPs, or one service.
type snatMatch struct {
	vips netip.Prefix // invalid: key
	key  Key
}

// always matches every connection.
func (m snatMatch) always() string {
	switch {
	case m.vips.IsValid():
		return "-m ipvs --vaddr " + m.vips.String() + " "
	case m.key.FWMark != 0:
		return markMatch(m.key.FWMark) + "-m ipvs "
	}
	return "-m ipvs " + m.ofService()
}

// fromHere matches the connections that this director itself opens: their source
// is the VIP.
func (m snatMatch) fromHere() string {
	switch {
	case m.vips.IsValid():
		return "-s " + m.vips.String() + " -m ipvs "
	case m.key.FWMark != 0:
		return markMatch(m.key.FWMark) + "-m addrtype --src-type LOCAL -m ipvs "
	}
	return "-s " + singleIP(m.key.Addr).String() + " -m ipvs " + m.ofService()
}

func (m snatMatch) ofService() string {
	match := "--vproto " + strconv.Itoa(int(m.key.Protocol)) + " --vaddr " + singleIP(m.key.Addr).String() + " "
	if m.key.Port != 0 {
		match += "--vport " + strconv.Itoa(int(m.key.Port)) + " "
	}
	return match
}

func markMatch(mark uint32) string {
	return "-m mark --mark 0x" + strconv.FormatUint(uint64(mark), 16) + " "
}

func singleIP(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// snatGroups are the services whose connections are masqueraded, by what is to
// be done about their source. Those of others count as SNATOff.
type snatGroups struct {
	uniform map[SNATMode][]netip.Addr // VIPs that have one mode
	single  map[SNATMode][]Key        // services of VIPs that have several, and marks
}

// newSNATGroups takes services and foreign by key.
func newSNATGroups(f Family, services []DesiredService, foreign []Key) snatGroups {
	g := snatGroups{map[SNATMode][]netip.Addr{}, map[SNATMode][]Key{}}
	shared := map[netip.Addr]bool{} // VIPs of others; true: ours, too
	for _, k := range foreign {
		if k.Family == f && k.FWMark == 0 {
			shared[k.Addr] = false
		}
	}
	for i := 0; i < len(services); {
		if s := &services[i]; s.FWMark != 0 {
			if s.Family == f && s.masquerades() {
				g.single[s.SNAT] = append(g.single[s.SNAT], s.Key)
			}
			i++
			continue
		}
		vip, first := services[i].Addr, i
		var mode SNATMode
		n, mixed := 0, false
		for ; i < len(services) && services[i].Addr == vip; i++ {
			if s := &services[i]; s.Family == f && s.masquerades() {
				if n++; n == 1 {
					mode = s.SNAT
				}
				mixed = mixed || s.SNAT != mode
			}
		}
		_, others := shared[vip]
		switch {
		case n == 0:
		case !others && !mixed:
			g.uniform[mode] = append(g.uniform[mode], vip)
		default:
			if others {
				shared[vip] = true
			}
			for j := first; j < i; j++ {
				if s := &services[j]; s.masquerades() {
					g.single[s.SNAT] = append(g.single[s.SNAT], s.Key)
				}
			}
		}
	}
	for _, k := range foreign {
		switch {
		case k.Family != f:
		case k.FWMark != 0 || shared[k.Addr]:
			g.single[SNATOff] = append(g.single[SNATOff], k)
		default:
			g.uniform[SNATOff] = append(g.uniform[SNATOff], k.Addr)
		}
	}
	return g
}

// of are the fewest matches for all services of a mode.
func (g snatGroups) of(mode SNATMode) []snatMatch {
	prefixes := aggregate(g.uniform[mode])
	out := make([]snatMatch, 0, len(prefixes)+len(g.single[mode]))
	for _, p := range prefixes {
		out = append(out, snatMatch{vips: p})
	}
	for _, k := range g.single[mode] {
		out = append(out, snatMatch{key: k})
	}
	return out
}

// aggregate covers exactly the given addresses with the fewest prefixes.
func aggregate(addrs []netip.Addr) []netip.Prefix {
	if !slices.IsSortedFunc(addrs, netip.Addr.Compare) {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	addrs = slices.Compact(addrs)
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, singleIP(a))
		for len(out) > 1 {
			last, before := out[len(out)-1], out[len(out)-2]
			parent := netip.PrefixFrom(before.Addr(), before.Bits()-1)
			if last.Bits() != before.Bits() || before.Bits() == 0 || parent.Masked() != parent ||
				!parent.Contains(last.Addr()) {
				break
			}
			out = append(out[:len(out)-2], parent)
		}
	}
	return out
}
