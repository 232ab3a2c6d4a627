//go:build nft && linux

package reconcile

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The packet filter by the nft variant, in the test's own network namespace
// (internal/uml/suite nft). Rules with the match ipvs need IPVS in this kernel,
// and are tried with the legacy variant in user-mode Linux.
func TestNFT(t *testing.T) {
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	const theirs = "-A POSTROUTING -s 10.250.0.0/16 -j MASQUERADE"
	run(append([]string{"iptables-nft", "-t", "nat"}, strings.Fields(theirs)...)...)
	run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
	contents := map[ChainKey][][]Rule{
		{NAT, IPv4}: {
			{pinnedRule(IPv4)},
			{pinnedRule(IPv4), "-m mark --mark 0x7 -j RETURN", "-m addrtype --src-type LOCAL -j MASQUERADE"},
			{pinnedRule(IPv4)},
		},
		{NAT, IPv6}: {{pinnedRule(IPv6)}},
	}
	for _, f := range []Family{IPv4, IPv6} {
		vip, peer := "192.0.2.10", "192.0.2.12"
		if f == IPv6 {
			vip, peer = "2001:db8::10", "2001:db8::12"
		}
		a := AddrKey(TCP, netip.AddrPortFrom(netip.MustParseAddr(vip), 80))
		b := AddrKey(SCTP, netip.AddrPortFrom(netip.MustParseAddr(peer), 0))
		contents[ChainKey{Filter, f}] = [][]Rule{
			protectRules(f, []Key{a, b, MarkKey(f, 9)}, []netip.Addr{a.Addr, b.Addr}),
			protectRules(f, []Key{a}, []netip.Addr{a.Addr}),
		}
	}
	for _, key := range allChains {
		found, err := findFilter(key, "")
		if err != nil {
			t.Fatal(err)
		}
		if c, err := found.read(); err != nil || c.Exists {
			t.Fatalf("%s: before anything: %+v, %v", key, c, err)
		}
		for _, rules := range contents[key] {
			if err := found.replace(rules); err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			if c, err := found.read(); err != nil || !c.Exists || !c.Jump || !slices.Equal(c.Rules, rules) {
				t.Errorf("%s: %+v, %v; want %q", key, c, err, rules)
			}
		}
		// A process that starts finds the chain by the variant that holds it.
		again, err := findFilter(key, "")
		if err != nil || len(again.programs) != 1 || !strings.Contains(run(again.programs[0].restore, "--version"), "nf_tables") {
			t.Fatalf("%s: found again: %+v, %v", key, again, err)
		}
		if c, err := again.read(); err != nil || !c.Jump {
			t.Errorf("%s: %+v, %v", key, c, err)
		}
		saved := run("iptables-nft-save")
		if n := strings.Count(saved, "-j "+key.Name()); key.Family == IPv4 && n != 1 {
			t.Errorf("%s: %d jumps:\n%s", key, n, saved)
		}
		for range 2 {
			if err := again.remove(); err != nil {
				t.Fatal(err)
			}
		}
		if c, err := again.read(); err != nil || c.Exists || c.Jump {
			t.Errorf("%s: removed, but %+v, %v", key, c, err)
		}
	}
	saved := run("iptables-nft-save")
	if !strings.Contains(saved, theirs) || !strings.Contains(saved, "--dport 22") || strings.Contains(saved, "IPVSKIT") {
		t.Errorf("left:\n%s", saved)
	}
}
