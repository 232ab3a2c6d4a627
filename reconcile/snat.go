package reconcile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ChainName is our chain in table nat, v4 and v6.
const ChainName = "IPVSKIT-POSTROUTING"

// Rule is one rule of a chain in iptables' words without "-A CHAIN". Equal rules
// are equal strings if both went through ParseRule.
type Rule string

// ParseRule is the canonical form of a rule as iptables prints it.
func ParseRule(text string) Rule {
	words := strings.Fields(text)
	if len(words) >= 2 && words[0] == "-A" {
		words = words[2:]
	}
	var out []string
	for i := 0; i < len(words); i++ {
		switch w := words[i]; w {
		case "--ipvs": // implied by every other option of the match; not always printed
		case "-s", "-d", "--vaddr":
			out = append(out, w)
			if i++; i < len(words) {
				out = append(out, canonicalPrefix(words[i]))
			}
		case "--vproto":
			out = append(out, w)
			if i++; i < len(words) {
				out = append(out, canonicalProtocol(words[i]))
			}
		default:
			out = append(out, w)
		}
	}
	return Rule(strings.Join(out, " "))
}

func canonicalPrefix(s string) string {
	if a, mask, ok := strings.Cut(s, "/"); ok && strings.Contains(mask, ".") {
		if m, err := netip.ParseAddr(mask); err == nil {
			ones := 0
			for _, b := range m.AsSlice() {
				for ; b&0x80 != 0; b <<= 1 {
					ones++
				}
			}
			s = a + "/" + strconv.Itoa(ones)
		}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()).String()
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String()
	}
	return s
}

func canonicalProtocol(s string) string {
	switch s {
	case "tcp":
		return "6"
	case "udp":
		return "17"
	case "sctp":
		return "132"
	}
	return s
}

// The last rule of a namespace that uses connection tracking takes every
// SNATed connection with it when it goes (docs/kernel.md), so each chain begins
// with one that matches no packet and stays as long as the chain.
func pinnedRule(f Family) Rule {
	if f == IPv6 {
		return "-s ff00::/128 -j MASQUERADE"
	}
	return "-s 255.255.255.255/32 -j MASQUERADE"
}

const masqueraded = "--vdir ORIGINAL --vmethod MASQ -j MASQUERADE"

// blanketAbove is from how many rules of mode all on one rule for all
// masqueraded IPVS connections is taken instead, where that is the same.
const blanketAbove = 16

// snatRules are the rules of family f; nil if no connection needs any. foreign
// are the services of others, whose connections must not be changed.
func snatRules(f Family, services []DesiredService, foreign []Key) []Rule {
	// A VIP whose services all have one mode gets a rule of its own, and
	// adjacent VIPs share one; otherwise each service gets one.
	modes := map[netip.Addr]int{} // mode, or mixed
	const mixed = -1
	var masq []*DesiredService
	otherModes := false
	for i := range services {
		s := &services[i]
		if s.Family != f || !slices.ContainsFunc(s.Destinations, func(d Destination) bool { return d.Forwarding == Masq }) {
			continue
		}
		otherModes = otherModes || s.SNAT != SNATAll
		masq = append(masq, s)
		if m, ok := modes[s.Addr]; s.FWMark == 0 && (!ok || m != int(s.SNAT)) {
			modes[s.Addr] = int(s.SNAT)
			if ok {
				modes[s.Addr] = mixed
			}
		}
	}
	foreignHere := false
	for _, k := range foreign {
		foreignHere = foreignHere || k.Family == f
		if _, ok := modes[k.Addr]; ok && k.FWMark == 0 {
			modes[k.Addr] = mixed
		}
	}

	var local, all []netip.Addr
	for a, m := range modes {
		switch m {
		case int(SNATLocal):
			local = append(local, a)
		case int(SNATAll):
			all = append(all, a)
		}
	}
	var rules, allRules []Rule
	for _, p := range aggregate(local) {
		rules = append(rules, Rule("-s "+p.String()+" -m ipvs "+masqueraded))
	}
	for _, p := range aggregate(all) {
		allRules = append(allRules, Rule("-m ipvs --vaddr "+p.String()+" "+masqueraded))
	}
	for _, s := range masq {
		if s.SNAT == SNATOff || s.FWMark == 0 && modes[s.Addr] != mixed {
			continue
		}
		var match string
		if s.FWMark != 0 {
			match = "-m mark --mark 0x" + strconv.FormatUint(uint64(s.FWMark), 16) + " "
			if s.SNAT == SNATLocal {
				match += "-m addrtype --src-type LOCAL "
			}
			match += "-m ipvs "
		} else {
			vip := netip.PrefixFrom(s.Addr, s.Addr.BitLen()).String()
			if s.SNAT == SNATLocal {
				match = "-s " + vip + " "
			}
			match += "-m ipvs --vproto " + strconv.Itoa(int(s.Protocol)) + " --vaddr " + vip
			if s.Port != 0 {
				match += " --vport " + strconv.Itoa(int(s.Port))
			}
			match += " "
		}
		if r := Rule(match + masqueraded); s.SNAT == SNATAll {
			allRules = append(allRules, r)
		} else {
			rules = append(rules, r)
		}
	}
	if len(allRules) > blanketAbove && !otherModes && !foreignHere {
		allRules = []Rule{"-m ipvs " + masqueraded}
	}
	rules = append(rules, allRules...)
	if len(rules) == 0 {
		return nil
	}
	return append([]Rule{pinnedRule(f)}, rules...)
}

// aggregate covers exactly the given addresses with the fewest prefixes.
func aggregate(addrs []netip.Addr) []netip.Prefix {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	var out []netip.Prefix
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
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
