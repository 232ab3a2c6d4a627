package reconcile_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// profiled is a kernel whose reconciler gets views: one masqueraded service on
// 192.0.2.10 and what a profile says.
type profiled struct {
	t        *testing.T
	k        *fakekernel.Kernel
	r        *reconcile.Reconciler
	services []lbstate.DesiredService
	revision uint64
}

func newProfiled(t *testing.T, cfg reconcile.Config) *profiled {
	t.Helper()
	p := &profiled{t: t, k: fakekernel.New()}
	for _, name := range []string{"sync_retries", "sync_threshold"} {
		p.k.Set("net/ipv4/vs/"+name, "0")
	}
	p.k.SetLink(reconcile.Link{Name: "eth1", Up: true})
	cfg.Kernel = p.k
	p.r = newReconciler(t, cfg)
	p.services = []lbstate.DesiredService{lbService("web", "192.0.2.10", 100)}
	return p
}

func lbService(name, vip string, weights ...int) lbstate.DesiredService {
	s := lbstate.DesiredService{Name: name, VIP: addr(vip), Port: 80, Protocol: lbstate.TCP, Family: lbstate.IPv4, Scheduler: "rr", SNAT: lbstate.SNATLocal}
	for i, w := range weights {
		s.Backends = append(s.Backends, lbstate.DesiredBackend{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), Port: 80, Forwarding: lbstate.Masq, Weight: w})
	}
	return s
}

// apply applies a view, and that again: the second time nothing is sent (INV-20).
func (p *profiled) apply(profile *lbstate.DesiredProfile) lbstate.Applied {
	p.t.Helper()
	p.revision++
	v := lbstate.View{Revision: p.revision, Services: p.services, Profile: profile}
	a, err := p.r.Apply(p.t.Context(), v)
	if err != nil {
		p.t.Fatal(err)
	}
	if again, err := p.r.Apply(p.t.Context(), v); err != nil || a.Converged && again.Operations != 0 {
		p.t.Errorf("the second time: %+v, %v", again, err)
	}
	return a
}

func (p *profiled) converge(profile *lbstate.DesiredProfile) lbstate.Applied {
	p.t.Helper()
	a := p.apply(profile)
	if !a.Converged {
		p.t.Fatalf("not converged: %+v", a)
	}
	return a
}

func (p *profiled) timeouts() reconcile.Timeouts {
	state, err := p.k.IPVS(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return state.Timeouts
}

func (p *profiled) daemons() string {
	state, err := p.k.IPVS(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	for _, d := range state.Daemons {
		out = append(out, fmt.Sprintf("%s:%s:%d", d.Role, d.Interface, d.ID))
	}
	return strings.Join(out, ",")
}

func (p *profiled) sysctl(name string) string {
	v, err := p.k.Sysctl(p.t.Context(), name)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// bound says whether our interface has a VIP.
func (p *profiled) bound(vip string) bool {
	links, err := p.k.Links(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return slices.ContainsFunc(links, func(l reconcile.Link) bool {
		return l.Alias == reconcile.Alias && slices.Contains(l.Addresses, netip.PrefixFrom(addr(vip), 32))
	})
}

// snat are the rules of our chain.
func (p *profiled) snat() []reconcile.Rule {
	c, err := p.k.Chain(p.t.Context(), reconcile.ChainKey{Table: reconcile.NAT, Family: reconcile.IPv4})
	if err != nil {
		p.t.Fatal(err)
	}
	return c.Rules
}

func seconds(n int) lbstate.Duration { return lbstate.Duration(time.Duration(n) * time.Second) }

// INV-27: what the host says goes before the profile, and what this changed goes back.
func TestProfileTimeouts(t *testing.T) {
	p := newProfiled(t, reconcile.Config{Timeouts: reconcile.Timeouts{UDP: 77 * time.Second}})
	was := p.timeouts()
	is := func(tcp, fin, udp time.Duration) {
		t.Helper()
		if got, want := p.timeouts(), (reconcile.Timeouts{TCP: tcp, TCPFin: fin, UDP: udp}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	p.converge(nil)
	is(was.TCP, was.TCPFin, 77*time.Second)
	a := p.converge(&lbstate.DesiredProfile{Name: "edge", Revision: 3, Timeouts: lbstate.Timeouts{TCP: seconds(600), UDP: seconds(10)}})
	is(600*time.Second, was.TCPFin, 77*time.Second)
	want := []lbstate.Overridden{{Field: "timeouts.udp", Profile: "10s", Host: "1m17s"}}
	if a.Profile == nil || a.Profile.Name != "edge" || a.Profile.Revision != 3 || !slices.Equal(a.Profile.Overridden, want) {
		t.Errorf("the account of the profile is %+v", a.Profile)
	}
	p.converge(&lbstate.DesiredProfile{Name: "edge", Revision: 4, Timeouts: lbstate.Timeouts{TCPFin: seconds(30)}})
	is(was.TCP, 30*time.Second, 77*time.Second)
	if a := p.converge(nil); a.Profile != nil {
		t.Errorf("no profile, but %+v", a.Profile)
	}
	is(was.TCP, was.TCPFin, 77*time.Second)
}

func TestProfileSyncDaemons(t *testing.T) {
	p := newProfiled(t, reconcile.Config{})
	with := func(daemons ...lbstate.SyncDaemon) *lbstate.DesiredProfile {
		return &lbstate.DesiredProfile{Name: "edge", SyncDaemons: daemons}
	}
	for _, step := range []struct {
		profile *lbstate.DesiredProfile
		want    string
	}{
		{with(lbstate.SyncDaemon{Role: "master", Interface: "eth1", ID: 7}), "master:eth1:7"},
		{with(lbstate.SyncDaemon{Role: "master", Interface: "eth1", ID: 8}, lbstate.SyncDaemon{Role: "backup", Interface: "eth1", ID: 8}), "master:eth1:8,backup:eth1:8"},
		{with(lbstate.SyncDaemon{Role: "backup", Interface: "eth1", ID: 8}), "backup:eth1:8"},
		{nil, ""},
	} {
		p.converge(step.profile)
		if got := p.daemons(); got != step.want {
			t.Errorf("%s run, want %s", got, step.want)
		}
	}
	// The host's own go before the profile's.
	own := newProfiled(t, reconcile.Config{Daemons: []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth1", ID: 1}}})
	a := own.converge(with(lbstate.SyncDaemon{Role: "master", Interface: "eth1", ID: 7}))
	if got := own.daemons(); got != "master:eth1:1" || len(a.Profile.Overridden) != 1 || a.Profile.Overridden[0].Field != "sync_daemons" {
		t.Errorf("%s run; %+v", got, a.Profile)
	}
}

func TestProfileSysctls(t *testing.T) {
	p := newProfiled(t, reconcile.Config{LeaveSysctls: []string{"net/ipv4/ip_forward"}})
	const entry, conntrack = "net/ipv4/vs/sync_retries", "net/ipv4/vs/conntrack"
	p.converge(nil)
	profile := &lbstate.DesiredProfile{Name: "edge", Sysctls: map[string]string{
		"net.ipv4.vs.sync_retries": "3", "net.ipv4.vs.conntrack": "0", "net.ipv4.vs.sync_threshold": "3 50", "net.ipv4.ip_forward": "1",
	}}
	a := p.converge(profile)
	if p.sysctl(entry) != "3" || p.sysctl(conntrack) != "0" || p.sysctl("net/ipv4/ip_forward") != "0" {
		t.Errorf("not as the profile says:\n%s", p.k.Dump())
	}
	if o := a.Profile.Overridden; len(o) != 1 || o[0].Field != "sysctls.net.ipv4.ip_forward" {
		t.Errorf("overridden: %+v", o)
	}
	// As the kernel shows it, and what it does itself.
	profile.Sysctls["net.ipv4.vs.drop_packet"] = "1"
	p.k.Set("net/ipv4/vs/sync_threshold", "3\t50")
	p.k.Set("net/ipv4/vs/drop_packet", "2")
	if a := p.converge(profile); a.Operations != 0 {
		t.Errorf("%d operations for values that the kernel shows otherwise", a.Operations)
	}
	p.converge(nil)
	if p.sysctl(entry) != "0" || p.sysctl(conntrack) != "1" {
		t.Errorf("not as before:\n%s", p.k.Dump())
	}
}

func TestProfileReleasesVIPs(t *testing.T) {
	p := newProfiled(t, reconcile.Config{})
	other := lbService("other", "192.0.2.11", 1)
	web := p.services
	p.services = append(slices.Clone(web), other)
	p.converge(nil)
	p.services = web
	p.converge(nil)
	if !p.bound("192.0.2.11") {
		t.Fatal("the VIP went, though nobody asked for it")
	}
	p.converge(&lbstate.DesiredProfile{Name: "edge", ReleaseVIPs: true})
	if p.bound("192.0.2.11") || !p.bound("192.0.2.10") {
		t.Errorf("released is not what nobody uses:\n%s", p.k.Dump())
	}
	keeps := newProfiled(t, reconcile.Config{KeepVIPs: true})
	keeps.converge(nil)
	keeps.services = nil
	a := keeps.converge(&lbstate.DesiredProfile{Name: "edge", ReleaseVIPs: true})
	if !keeps.bound("192.0.2.10") || len(a.Profile.Overridden) != 1 {
		t.Errorf("%+v\n%s", a.Profile, keeps.k.Dump())
	}
}

// INV-27: a profile allows nothing that the host does not.
func TestProfileAllowedPrefixesNarrow(t *testing.T) {
	p := newProfiled(t, reconcile.Config{AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}})
	p.services = []lbstate.DesiredService{lbService("a", "192.0.2.1", 1), lbService("b", "192.0.2.9", 1), lbService("c", "192.0.2.200", 1)}
	for _, step := range []struct {
		prefixes []netip.Prefix
		refused  string
	}{
		{nil, "c"},
		{[]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, "c"},                                            // widens nothing
		{[]netip.Prefix{netip.MustParsePrefix("192.0.2.0/29"), netip.MustParsePrefix("192.0.2.200/32")}, "b c"}, // narrows
		{[]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, "a b c"},                                     // leaves nothing
		{nil, "c"},
	} {
		a := p.apply(&lbstate.DesiredProfile{Name: "edge", AllowedPrefixes: step.prefixes})
		var refused []string
		for _, s := range p.services {
			if slices.ContainsFunc(a.Failures, func(f lbstate.Failure) bool {
				return strings.Contains(f.Object, s.VIP.String()) && strings.Contains(f.Reason, "prefixes")
			}) {
				refused = append(refused, s.Name)
			}
			if programmed := strings.Contains(p.k.Dump(), s.VIP.String()+":80"); programmed == slices.Contains(refused, s.Name) {
				t.Errorf("%v: %s is programmed: %v", step.prefixes, s.Name, programmed)
			}
		}
		if got := strings.Join(refused, " "); got != step.refused {
			t.Errorf("%v: refused are %s, want %s: %+v", step.prefixes, got, step.refused, a.Failures)
		}
		if len(step.prefixes) == 2 && (len(a.Profile.Overridden) != 1 || a.Profile.Overridden[0].Profile != "192.0.2.200/32") {
			t.Errorf("overridden: %+v", a.Profile.Overridden)
		}
	}
}

func TestProfileSNAT(t *testing.T) {
	p := newProfiled(t, reconcile.Config{})
	p.converge(nil)
	local := p.snat()
	p.converge(&lbstate.DesiredProfile{Name: "edge", SNAT: lbstate.SNATAll})
	if all := p.snat(); !slices.Contains(all, "-m ipvs --vaddr 192.0.2.10/32 --vdir ORIGINAL --vmethod MASQ -j MASQUERADE") || slices.Equal(all, local) {
		t.Errorf("snat all: %q", all)
	}
	// A change of one service alone goes by the profile, too.
	p.services = []lbstate.DesiredService{lbService("web", "192.0.2.10", 50)}
	if a := p.converge(&lbstate.DesiredProfile{Name: "edge", SNAT: lbstate.SNATAll}); a.Operations != 1 {
		t.Errorf("%d operations for one weight", a.Operations)
	}
	p.services = []lbstate.DesiredService{lbService("web", "192.0.2.10", 100)}
	p.converge(nil)
	if got := p.snat(); !slices.Equal(got, local) {
		t.Errorf("not as before: %q, want %q", got, local)
	}
}

func TestProfileDrainTimeout(t *testing.T) {
	for _, c := range []struct {
		own, profile, want time.Duration
	}{{0, 0, time.Minute}, {0, time.Hour, time.Hour}, {30 * time.Second, time.Hour, 30 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			p := newProfiled(t, reconcile.Config{DrainTimeout: c.own})
			p.services = []lbstate.DesiredService{lbService("web", "192.0.2.10", 1, 1)}
			profile := &lbstate.DesiredProfile{Name: "edge", DrainTimeout: c.profile}
			p.converge(profile)
			key := reconcile.AddrKey(reconcile.TCP, addrPort("192.0.2.10:80"))
			if err := p.k.Connect(key, addrPort("10.1.0.2:80"), 1, 0); err != nil {
				t.Fatal(err)
			}
			p.services = []lbstate.DesiredService{lbService("web", "192.0.2.10", 1)}
			if a := p.converge(profile); a.Draining != 1 {
				t.Fatalf("%+v", a)
			}
			a, err := p.r.Observe(t.Context())
			if err != nil || len(a.Drains) != 1 {
				t.Fatalf("%+v, %v", a.Drains, err)
			}
			if got := a.Drains[0].Deadline.Sub(a.Drains[0].Since); got != c.want {
				t.Errorf("own %s, profile %s: drains for %s", c.own, c.profile, got)
			}
			// The profile goes; what drains keeps its deadline.
			p.converge(nil)
			if after, err := p.r.Observe(t.Context()); err != nil || len(after.Drains) != 1 || !after.Drains[0].Deadline.Equal(a.Drains[0].Deadline) {
				t.Errorf("%+v, %v", after.Drains, err)
			}
		})
	}
}

// A field that cannot be had is a failure of the profile, and stops nothing else.
// INV-25.
func TestProfileFailuresAreNamed(t *testing.T) {
	p := newProfiled(t, reconcile.Config{})
	p.k.Inject(func(op reconcile.Op) error {
		if op.Kind == reconcile.SetTimeouts {
			return syscall.EPERM
		}
		return nil
	})
	a := p.apply(&lbstate.DesiredProfile{
		Name: "edge", Timeouts: lbstate.Timeouts{TCP: seconds(60)},
		SyncDaemons: []lbstate.SyncDaemon{{Role: "master", Interface: "eth7"}, {Role: "third", Interface: "eth1"}},
		Sysctls:     map[string]string{"net.ipv4.vs.no_such": "1", "kernel.panic": "1", "net.ipv4.vs.sync_retries": "1"},
	})
	var got []string
	for _, f := range a.Failures {
		if f.Object != "profile/edge" {
			t.Errorf("a failure of %s", f.Object)
		}
		got = append(got, f.Reason[:strings.Index(f.Reason, ":")])
	}
	slices.Sort(got)
	want := []string{"sync_daemons[0]", "sync_daemons[1]", "sysctls.kernel.panic", "sysctls.net.ipv4.vs.no_such", "timeouts"}
	if !slices.Equal(got, want) {
		t.Errorf("failed: %q, want %q: %+v", got, want, a.Failures)
	}
	if a.Converged || a.Services != 1 || p.sysctl("net/ipv4/vs/sync_retries") != "1" {
		t.Errorf("the rest was not done: %+v", a)
	}
}

// clamping is a kernel that makes another value of a setting.
type clamping struct{ *fakekernel.Kernel }

func (k clamping) Do(ctx context.Context, ops []reconcile.Op) map[int]error {
	ops = slices.Clone(ops)
	for i := range ops {
		if ops[i].Value == "007" {
			ops[i].Value = "7"
		}
	}
	return k.Kernel.Do(ctx, ops)
}

// A setting that the kernel shows otherwise than it was written is told, and not
// written again and again.
func TestProfileSettingThatTheKernelChanges(t *testing.T) {
	k := fakekernel.New()
	k.Set("net/ipv4/vs/sync_retries", "0")
	r := newReconciler(t, reconcile.Config{Kernel: clamping{k}})
	d := desired(web("192.0.2.10:80", 1))
	converge(t, r, d)
	d.Profile = &lbstate.DesiredProfile{Name: "edge", Sysctls: map[string]string{"net.ipv4.vs.sync_retries": "007"}}
	rep := sync(t, r, d)
	if rep.Converged || rep.Operations != 2 || len(rep.Failures) != 1 || !strings.Contains(rep.Failures[0].Error(), `shows "7" where "007" was written`) {
		t.Errorf("%+v", rep)
	}
	d.Profile = nil
	converge(t, r, d)
	if v, _ := k.Sysctl(t.Context(), "net/ipv4/vs/sync_retries"); v != "0" {
		t.Errorf("%s, not as before", v)
	}
}

// What others change of what a profile sets is repaired, and what it was before
// is known after a restart. INV-27.
func TestProfileIsRepairedAndRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		journal := new(memory)
		k := fakekernel.New()
		k.Set("net/ipv4/vs/sync_retries", "0")
		r, reports := running(t, reconcile.Config{Kernel: k, Journal: journal})
		profile := &lbstate.DesiredProfile{Name: "edge", Revision: 2, Timeouts: lbstate.Timeouts{TCP: seconds(60)}, Sysctls: map[string]string{"net.ipv4.vs.sync_retries": "2"}}
		d := desired(web("192.0.2.10:80", 1))
		before := k.Dump()
		d.Profile = profile
		converge(t, r, d)
		want := k.Dump()
		k.Set("net/ipv4/vs/sync_retries", "1")
		k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.SetTimeouts, Timeouts: &reconcile.Timeouts{TCP: time.Hour}}})
		time.Sleep(66 * time.Second)
		if got := reports(); len(got) != 1 || got[0].Repaired != 2 || k.Dump() != want {
			t.Errorf("not repaired: %+v\n%s", got, k.Dump())
		}
		again := newReconciler(t, reconcile.Config{Kernel: k, Journal: journal})
		if a, err := again.Observe(t.Context()); err != nil || a.Profile != "edge, of revision 2" {
			t.Errorf("in force is %q, %v", a.Profile, err)
		}
		ops, _, err := again.Plan(t.Context(), desired(web("192.0.2.10:80", 1)))
		if err != nil || len(ops) != 2 {
			t.Errorf("the plan without the profile: %v, %v", ops, err)
		}
		if rep, err := again.Cleanup(t.Context()); err != nil || !rep.Converged {
			t.Fatalf("%+v, %v", rep, err)
		}
		value, _ := k.Sysctl(t.Context(), "net/ipv4/vs/sync_retries")
		if state, _ := k.IPVS(t.Context()); value != "0" || state.Timeouts.TCP != 15*time.Minute {
			t.Errorf("after the cleanup:\n%s\nat first\n%s", k.Dump(), before)
		}
	})
}
