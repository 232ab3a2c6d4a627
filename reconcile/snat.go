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
	local := g.rules(SNATLocal, func(m snatMatch) Rule { return m.fromHere() + masqueraded })
	all := g.rules(SNATAll, func(m snatMatch) Rule { return m.always() + masqueraded })
	if len(local)+len(all) == 0 {
		return nil
	}
	best := slices.Concat(local, all)
	if len(best) > blanketAbove {
		exceptions := g.rules(SNATOff, func(m snatMatch) Rule { return m.always() + leftAlone })
		const fromHere, always = Rule("-m addrtype --src-type LOCAL -m ipvs " + masqueraded), Rule("-m ipvs " + masqueraded)
		if with := slices.Concat(exceptions, []Rule{fromHere}, all); len(local) > 1 && len(with) < len(best) {
			best = with
		}
		if len(all) > 1 {
			if len(local) > 1 {
				local = []Rule{fromHere}
			}
			clients := g.rules(SNATLocal, func(m snatMatch) Rule { return m.always() + leftAlone })
			if with := slices.Concat(exceptions, local, clients, []Rule{always}); len(with) < len(best) {
				best = with
			}
		}
	}
	return append([]Rule{pinnedRule(f)}, best...)
}

// snatMatch is what a rule matches: a prefix of VIPs, or one service.
type snatMatch struct {
	vips netip.Prefix // invalid: key
	key  Key
}

// always matches every connection.
func (m snatMatch) always() Rule {
	switch {
	case m.vips.IsValid():
		return Rule("-m ipvs --vaddr " + m.vips.String() + " ")
	case m.key.FWMark != 0:
		return Rule(markMatch(m.key.FWMark) + "-m ipvs ")
	}
	return Rule("-m ipvs " + m.ofService())
}

// fromHere matches the connections that this director itself opens: their source
// is the VIP.
func (m snatMatch) fromHere() Rule {
	switch {
	case m.vips.IsValid():
		return Rule("-s " + m.vips.String() + " -m ipvs ")
	case m.key.FWMark != 0:
		return Rule(markMatch(m.key.FWMark) + "-m addrtype --src-type LOCAL -m ipvs ")
	}
	return Rule("-s " + singleIP(m.key.Addr).String() + " -m ipvs " + m.ofService())
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

func newSNATGroups(f Family, services []DesiredService, foreign []Key) snatGroups {
	const mixed = SNATOff + 1
	type entry struct {
		key  Key
		mode SNATMode
	}
	entries := make([]entry, 0, len(services)+len(foreign))
	modes := map[netip.Addr]SNATMode{} // or mixed
	add := func(k Key, mode SNATMode) {
		entries = append(entries, entry{k, mode})
		if k.FWMark != 0 {
			return
		}
		if m, ok := modes[k.Addr]; !ok {
			modes[k.Addr] = mode
		} else if m != mode {
			modes[k.Addr] = mixed
		}
	}
	for i := range services {
		if s := &services[i]; s.Family == f && s.masquerades() {
			add(s.Key, s.SNAT)
		}
	}
	for _, k := range foreign {
		if k.Family == f {
			add(k, SNATOff)
		}
	}
	g := snatGroups{map[SNATMode][]netip.Addr{}, map[SNATMode][]Key{}}
	for a, m := range modes {
		if m != mixed {
			g.uniform[m] = append(g.uniform[m], a)
		}
	}
	for _, e := range entries {
		if e.key.FWMark != 0 || modes[e.key.Addr] == mixed {
			g.single[e.mode] = append(g.single[e.mode], e.key)
		}
	}
	return g
}

func (g snatGroups) rules(mode SNATMode, rule func(snatMatch) Rule) []Rule {
	var out []Rule
	for _, p := range aggregate(g.uniform[mode]) {
		out = append(out, rule(snatMatch{vips: p}))
	}
	for _, k := range g.single[mode] {
		out = append(out, rule(snatMatch{key: k}))
	}
	return out
}

// aggregate covers exactly the given addresses with the fewest prefixes.
func aggregate(addrs []netip.Addr) []netip.Prefix {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	var out []netip.Prefix
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
