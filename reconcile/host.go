package reconcile

import (
	"fmt"
	"slices"
)

// setting is a sysctl that some service needs, with the reason.
type setting struct{ name, value, why string }

// settings are what the services need of the host. Only these are ever changed.
func (c Config) settings(services []DesiredService) []setting {
	var masq4, masq6, snat, persistent bool
	for i := range services {
		s := &services[i]
		persistent = persistent || s.Flags&Persistent != 0
		if !slices.ContainsFunc(s.Destinations, func(d Destination) bool { return d.Forwarding == Masq }) {
			continue
		}
		masq4 = masq4 || s.Family == IPv4
		masq6 = masq6 || s.Family == IPv6
		snat = snat || s.SNAT != SNATOff
	}
	if len(services) == 0 {
		return nil
	}
	out := []setting{
		// 0 drops the packets of a connection whose destination was deleted
		// without a word: for UDP as long as the client goes on sending.
		{"net/ipv4/vs/expire_nodest_conn", "1", "connections of a deleted destination end at once instead of hanging"},
	}
	if persistent {
		out = append(out, setting{"net/ipv4/vs/expire_quiescent_template", "1", "persistent clients leave a destination of weight 0"})
	}
	if snat {
		out = append(out, setting{"net/ipv4/vs/conntrack", "1", "IPVS connections can be SNATed"})
	}
	if masq4 {
		out = append(out, setting{"net/ipv4/ip_forward", "1", "answers of masqueraded backends are forwarded"})
	}
	if masq6 {
		out = append(out, setting{"net/ipv6/conf/all/forwarding", "1", "answers of masqueraded backends are forwarded"})
	}
	if c.ARPQuiet {
		out = append(out,
			setting{"net/ipv4/conf/all/arp_ignore", "1", "no ARP answer for VIPs"},
			setting{"net/ipv4/conf/all/arp_announce", "2", "no ARP request from VIPs"})
	}
	return out
}

func (c Config) planSysctls(p *plan, services []DesiredService, a *Actual) {
	for _, s := range c.settings(services) {
		if s.name == "net/ipv6/conf/all/forwarding" && a.Sysctls[s.name] == "0" && !c.leaves(s.name) {
			// A host that forwards ignores router advertisements unless told
			// otherwise, and would lose the default route it has from them.
			for _, l := range a.links {
				name := acceptRA(l.Name)
				if a.Sysctls[name] == "1" {
					c.planSysctl(p, &p.host, a, name, "2", "forwarding must not end autoconfiguration by router advertisements")
				}
			}
		}
		c.planSysctl(p, &p.host, a, s.name, s.value, s.why)
	}
}

func acceptRA(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

func (c Config) planSysctl(_ *plan, stage *[]Op, a *Actual, name, value, why string) {
	if c.leaves(name) || a.Sysctls[name] == value {
		return
	}
	*stage = append(*stage, Op{Kind: SetSysctl, Name: name, Value: value, Why: why})
}

// planChains brings up our chain with what is there and what is wanted: rules
// that go, go last.
func (c Config) planChains(p *plan, services []DesiredService, a *Actual) {
	for _, f := range []Family{IPv4, IPv6} {
		rules := snatRules(f, services, a.Foreign)
		if len(rules) == 0 {
			continue
		}
		if err := a.chainErrs[f]; err != nil {
			p.failures = append(p.failures, Failure{Object: "snat " + f.String(), Op: "read chain", Err: fmt.Errorf(
				"%w; connections that need SNAT get no answer until the packet filter works (packages iptables and kmod; or snat: off)", err)})
			continue
		}
		have := a.Chains[f]
		if missing(rules, have.Rules) || !have.Exists || !have.Jump {
			union := slices.Clone(rules)
			for _, r := range have.Rules {
				if !slices.Contains(rules, r) {
					union = append(union, r)
				}
			}
			p.host = append(p.host, Op{Kind: SetChain, Chain: &Chain{Family: f, Rules: union}})
		}
	}
}

// planChainRemovals takes away the rules that no service needs any more. The
// chain stays, with the rule that keeps connection tracking alive.
func (c Config) planChainRemovals(p *plan, services []DesiredService, a *Actual) {
	for _, f := range []Family{IPv4, IPv6} {
		have := a.Chains[f]
		if a.chainErrs[f] != nil || !have.Exists {
			continue
		}
		rules := snatRules(f, services, a.Foreign)
		if len(rules) == 0 {
			rules = []Rule{pinnedRule(f)}
		}
		if missing(have.Rules, rules) || len(snatRules(f, services, a.Foreign)) == 0 && (missing(rules, have.Rules) || !have.Jump) {
			p.remove = append(p.remove, Op{Kind: SetChain, Chain: &Chain{Family: f, Rules: rules}})
		}
	}
}

// missing says whether a rule of want is not in have.
func missing(want, have []Rule) bool {
	if len(want) < 8 {
		return slices.ContainsFunc(want, func(r Rule) bool { return !slices.Contains(have, r) })
	}
	set := make(map[Rule]bool, len(have))
	for _, r := range have {
		set[r] = true
	}
	return slices.ContainsFunc(want, func(r Rule) bool { return !set[r] })
}
