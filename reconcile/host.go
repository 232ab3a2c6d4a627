package reconcile

import (
	"fmt"
	"slices"
)

// setting is a sysctl that some service needs, with the reason.
type setting struct{ name, value, why string }

// settings are what the services need of the host, and what the profile says, which
// goes before that. Only these are ever changed.
func (c Config) settings(services []DesiredService) []setting {
	needs, said := c.needs(services), c.profileSettings()
	if len(said) == 0 {
		return needs
	}
	needs = slices.DeleteFunc(needs, func(n setting) bool {
		return slices.ContainsFunc(said, func(s setting) bool { return s.name == n.name })
	})
	return append(needs, said...)
}

func (c Config) needs(services []DesiredService) []setting {
	var masq4, masq6, snat, persistent bool
	for i := range services {
		s := &services[i]
		persistent = persistent || s.Flags&Persistent != 0
		if !s.masquerades() {
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
		if s.name == "net/ipv6/conf/all/forwarding" && s.value == "1" && a.Sysctls[s.name] == "0" && !c.leaves(s.name) {
			// A host that forwards ignores router advertisements unless told
			// otherwise, and would lose the default route it has from them.
			for _, l := range a.links {
				name := acceptRA(l.Name)
				if a.Sysctls[name] == "1" {
					c.planSysctl(&p.host, a, name, "2", "forwarding must not end autoconfiguration by router advertisements")
				}
			}
		}
		c.planSysctl(&p.host, a, s.name, s.value, s.why)
	}
	c.planRestores(p, services, a)
}

func keepAddresses(link string) string { return "net/ipv6/conf/" + link + "/keep_addr_on_down" }

func acceptRA(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

func (c Config) planSysctl(stage *[]Op, a *Actual, name, value, why string) {
	if c.leaves(name) || sameValue(name, a.Sysctls[name], value) {
		return
	}
	*stage = append(*stage, Op{Kind: SetSysctl, Name: name, Value: value, Why: why})
}

// maxWrites is how often one reconciliation writes a setting to the same value.
const maxWrites = 2

// refuseStubborn takes settings out of a plan that have been written and do not
// show it: the kernel makes another value of theirs, and would of the next write.
func refuseStubborn(p *plan, a *Actual, written map[string]int) {
	p.host = slices.DeleteFunc(p.host, func(op Op) bool {
		if op.Kind != SetSysctl || written[op.Name] < maxWrites {
			return false
		}
		p.failures = append(p.failures, Failure{Object: op.Object(), Op: op.Kind.String(), Err: fmt.Errorf(
			"the kernel shows %q where %q was written: write the value as it shows it, or see who else changes it", a.Sysctls[op.Name], op.Value)})
		return true
	})
}

// planChains brings our chains up to what is wanted in front of what is there:
// what goes, goes last.
func (c Config) planChains(p *plan, services []DesiredService, a *Actual) {
	for _, k := range allChains {
		before, _ := c.chainRules(p, k, services, a)
		if len(before) == 0 {
			continue
		}
		if err := a.chainErrs[k]; err != nil {
			p.failures = append(p.failures, Failure{Object: k.String(), Op: "read chain", Err: chainError(k, err)})
			continue
		}
		have := a.Chains[k]
		if !have.Exists || !have.Jump || !hasPrefix(have.Rules, before) {
			p.host = append(p.host, Op{Kind: SetChain, Chain: &Chain{ChainKey: k, Rules: union(k, before, have.Rules)}})
		}
	}
}

// planChainRemovals takes away the rules that no service needs any more. The
// chain for SNAT stays, with the rule that keeps connection tracking alive.
func (c Config) planChainRemovals(p *plan, services []DesiredService, a *Actual) {
	for _, k := range allChains {
		have := a.Chains[k]
		if a.chainErrs[k] != nil {
			continue
		}
		before, after := c.chainRules(p, k, services, a)
		if !have.Exists && len(before) == 0 {
			continue
		}
		switch {
		case len(after) == 0 && k.Table == Filter:
			p.remove = append(p.remove, Op{Kind: DelChain, Chain: &Chain{ChainKey: k}})
			continue
		case len(after) == 0:
			after = []Rule{pinnedRule(k.Family)}
		}
		then := have.Rules // what the chain has once the first stage is done
		if len(before) > 0 && !hasPrefix(then, before) {
			then = union(k, before, then)
		}
		if !slices.Equal(then, after) || len(before) == 0 && !have.Jump {
			p.remove = append(p.remove, Op{Kind: SetChain, Chain: &Chain{ChainKey: k, Rules: after}})
		}
	}
}

// chainRules are a chain's rules while services change, and those after, when of
// the services that nobody wants only the remaining ones are left.
func (c Config) chainRules(p *plan, k ChainKey, services []DesiredService, a *Actual) (before, after []Rule) {
	if k.Table == NAT {
		rules, done := p.snat[k.Family]
		if !done {
			rules = snatRules(k.Family, services, a.Foreign)
			p.snat[k.Family] = rules
		}
		return rules, rules
	}
	if !c.ProtectVIPs {
		return nil, nil
	}
	// A service that goes is let through until it is gone.
	keys := slices.Concat(a.Foreign, p.remaining)
	for i := range services {
		keys = append(keys, services[i].Key)
	}
	vips := protectedVIPs(services, a)
	slices.SortFunc(keys, Key.Compare)
	after = protectRules(k.Family, keys, vips)
	for i := range a.Services {
		keys = append(keys, a.Services[i].Key)
	}
	slices.SortFunc(keys, Key.Compare)
	return protectRules(k.Family, slices.Compact(keys), vips), after
}

func chainError(k ChainKey, err error) error {
	if k.Table == Filter {
		return fmt.Errorf("%w; the VIPs are not protected until the packet filter works (packages iptables and kmod; or protection off)", err)
	}
	return fmt.Errorf("%w; connections that need SNAT get no answer until the packet filter works (packages iptables and kmod; or snat: off)", err)
}

func hasPrefix(rules, prefix []Rule) bool {
	return len(rules) >= len(prefix) && slices.Equal(rules[:len(prefix)], prefix)
}

// union is wanted, then what else is there. In front, wanted rules decide what
// both match; behind, old ones go on for what only they match. Old rejections
// would be wrong for a VIP's new service, and are wanted again if they are.
func union(k ChainKey, wanted, have []Rule) []Rule {
	if k.Table == Filter {
		return wanted
	}
	wantedSet := make(map[Rule]bool, len(wanted))
	for _, r := range wanted {
		wantedSet[r] = true
	}
	out := slices.Clone(wanted)
	for _, r := range have {
		if !wantedSet[r] {
			out = append(out, r)
		}
	}
	return out
}
