package reconcile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// chainOf is what a Sync of services makes of the SNAT chain.
func chainOf(t *testing.T, k *fakekernel.Kernel, services ...reconcile.DesiredService) []string {
	t.Helper()
	converge(t, newReconciler(t, reconcile.Config{Kernel: k, Marks: reconcile.MarkRange{First: 1, Last: 99}}), desired(services...))
	c, err := k.Chain(t.Context(), reconcile.ChainKey{Table: reconcile.NAT, Family: reconcile.IPv4})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range c.Rules {
		out = append(out, string(r))
	}
	return out
}

// scattered are services at VIPs of which no two are neighbors.
func scattered(n int, mode reconcile.SNATMode) []reconcile.DesiredService {
	out := make([]reconcile.DesiredService, n)
	for i := range out {
		out[i] = web(fmt.Sprintf("10.%d.%d.%d:80", 100+int(mode)+10*(i>>15), i>>7&255, i<<1&255), 1)
		out[i].SNAT = mode
	}
	return out
}

const pinned = "-s 255.255.255.255/32 -j MASQUERADE"

func TestSNATRules(t *testing.T) {
	const to = " --vdir ORIGINAL --vmethod MASQ -j "
	local, all, off := web("192.0.2.10:80", 1), web("192.0.2.11:80", 1), web("192.0.2.12:80", 1)
	all.SNAT, off.SNAT = reconcile.SNATAll, reconcile.SNATOff
	mixed := web("192.0.2.10:81", 1)
	mixed.SNAT = reconcile.SNATAll
	routed := web("192.0.2.13:8080", 1)
	routed.Destinations[0].Forwarding = reconcile.DR
	mark := web("192.0.2.14:80", 1)
	mark.Key = reconcile.MarkKey(reconcile.IPv4, 7)
	for _, c := range []struct {
		name     string
		services []reconcile.DesiredService
		foreign  string
		want     []string
	}{
		{"nothing", nil, "", nil},
		{"off, and direct routing", []reconcile.DesiredService{off, routed}, "", nil},
		{"local", []reconcile.DesiredService{local}, "", []string{"-s 192.0.2.10/32 -m ipvs" + to + "MASQUERADE"}},
		{"all", []reconcile.DesiredService{all}, "", []string{"-m ipvs --vaddr 192.0.2.11/32" + to + "MASQUERADE"}},
		{"neighbors", []reconcile.DesiredService{local, web("192.0.2.11:80", 1)}, "", []string{"-s 192.0.2.10/31 -m ipvs" + to + "MASQUERADE"}},
		{"one VIP, two modes", []reconcile.DesiredService{local, mixed}, "", []string{
			"-s 192.0.2.10/32 -m ipvs --vproto 6 --vaddr 192.0.2.10/32 --vport 80" + to + "MASQUERADE",
			"-m ipvs --vproto 6 --vaddr 192.0.2.10/32 --vport 81" + to + "MASQUERADE",
		}},
		{"someone else's on the VIP", []reconcile.DesiredService{local}, "-A -u 192.0.2.10:53 -s rr", []string{
			"-s 192.0.2.10/32 -m ipvs --vproto 6 --vaddr 192.0.2.10/32 --vport 80" + to + "MASQUERADE",
		}},
		{"mark", []reconcile.DesiredService{mark}, "", []string{"-m mark --mark 0x7 -m addrtype --src-type LOCAL -m ipvs" + to + "MASQUERADE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := fakekernel.New()
			if err := k.Load(c.foreign); err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want != nil {
				want = append([]string{pinned}, want...)
			}
			if got := chainOf(t, k, c.services...); strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("rules:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// The number of rules does not grow with the services, only with the exceptions.
func TestSNATRulesOfManyServices(t *testing.T) {
	const blanket = "--vdir ORIGINAL --vmethod MASQ -j MASQUERADE"
	foreign := "-A -t 203.0.113.1:80 -s rr\n-A -f 500 -s rr"
	for _, c := range []struct {
		name     string
		services []reconcile.DesiredService
		foreign  string
		rules    int
		last     string
	}{
		{"local", scattered(10_000, reconcile.SNATLocal), "", 2, "-m addrtype --src-type LOCAL -m ipvs " + blanket},
		{"all", scattered(10_000, reconcile.SNATAll), "", 2, "-m ipvs " + blanket},
		{"local, beside others", scattered(1000, reconcile.SNATLocal), foreign, 4, "-m addrtype --src-type LOCAL -m ipvs " + blanket},
		{"all, beside others", scattered(1000, reconcile.SNATAll), foreign, 4, "-m ipvs " + blanket},
		{
			"local, a few off and all", append(append(scattered(1000, reconcile.SNATLocal), scattered(3, reconcile.SNATOff)...), scattered(2, reconcile.SNATAll)...),
			"", 1 + 3 + 1 + 2, "--vaddr 10.101.0.2/32 " + blanket,
		},
		{
			"all, a few off and local", append(append(scattered(1000, reconcile.SNATAll), scattered(3, reconcile.SNATOff)...), scattered(2, reconcile.SNATLocal)...),
			"", 1 + 3 + 1 + 2 + 1, "-m ipvs " + blanket,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := fakekernel.New()
			if err := k.Load(c.foreign); err != nil {
				t.Fatal(err)
			}
			got := chainOf(t, k, c.services...)
			if len(got) != c.rules || got[0] != pinned || !strings.HasSuffix(got[len(got)-1], c.last) {
				t.Errorf("%d rules, want %d:\n%s", len(got), c.rules, strings.Join(got[:min(20, len(got))], "\n"))
			}
		})
	}
}

// Whatever rules a change goes through, a connection that needs SNAT before and
// after finds a rule on the way.
func TestSNATRulesChangeWithoutAGap(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k})
	kept := netip.MustParsePrefix("10.100.0.0/32").Addr()
	k.Watch(func(op reconcile.Op, err error) {
		if op.Kind != reconcile.SetChain {
			return
		}
		for _, rule := range op.Chain.Rules {
			text := string(rule)
			if strings.HasSuffix(text, "MASQUERADE") && (strings.Contains(text, "--src-type LOCAL") || strings.Contains(text, "-s "+kept.String())) {
				return
			}
		}
		t.Errorf("%s: nothing for %s: %q", op, kept, op.Chain.Rules)
	})
	for _, n := range []int{1, 30, 5, 200, 1} {
		converge(t, r, desired(scattered(n, reconcile.SNATLocal)...))
	}
}
