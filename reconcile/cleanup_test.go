package reconcile_test

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// Cleanup removes what is ours, and nothing else. INV-21.
func TestCleanup(t *testing.T) {
	k := fakekernel.New()
	others := "-A -t 192.0.2.10:81 -s rr\n-a -t 192.0.2.10:81 -r 10.9.0.1:80 -m -w 1\n-A -f 1000 -s rr\n"
	if err := k.Load(others); err != nil {
		t.Fatal(err)
	}
	journal := new(memory)
	cfg := reconcile.Config{Kernel: k, Journal: journal, Marks: reconcile.MarkRange{First: 1, Last: 9}, ProtectVIPs: true}
	r := newReconciler(t, cfg)
	mark := web("192.0.2.10:80", 1)
	mark.Key = reconcile.MarkKey(reconcile.IPv4, 3)
	d := desired(web("192.0.2.10:80", 1), mark)
	d.Daemons = []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth0"}}
	converge(t, r, d)

	// The process that cleans up need not be the one that programmed.
	r = newReconciler(t, cfg)
	k.Inject(func(op reconcile.Op) error {
		if op.Kind == reconcile.DelLink {
			return syscall.EBUSY
		}
		return nil
	})
	rep, err := r.Cleanup(t.Context())
	if err != nil || rep.Converged || len(rep.Failures) != 1 || rep.Failures[0].Object != "link ipvs-manager" {
		t.Fatalf("with a failure: %+v, %v", rep, err)
	}
	k.Inject(nil)
	if rep, err = r.Cleanup(t.Context()); err != nil || !rep.Converged {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := k.Dump(); got != others {
		t.Errorf("left:\n%s", got)
	}
	links, _ := k.Links(t.Context())
	for _, l := range links {
		if l.Name == "ipvs-manager" {
			t.Errorf("left: %+v", l)
		}
	}
	for _, table := range []reconcile.Table{reconcile.NAT, reconcile.Filter} {
		if c, _ := k.Chain(t.Context(), reconcile.ChainKey{Table: table, Family: reconcile.IPv4}); c.Exists {
			t.Errorf("left: %+v", c)
		}
	}
	if state, _ := k.IPVS(t.Context()); len(state.Daemons) != 0 {
		t.Errorf("left: %v", state.Daemons)
	}
	if strings.Contains(string(journal.doc), "192.0.2.10") {
		t.Errorf("the journal still has %s", journal.doc)
	}
}

// An interface of our name that never was ours is not deleted.
func TestCleanupLeavesAnotherInterface(t *testing.T) {
	k := fakekernel.New()
	k.SetLink(reconcile.Link{Name: "ipvs-manager", Kind: "dummy"})
	r := newReconciler(t, reconcile.Config{Kernel: k})
	if rep, err := r.Cleanup(t.Context()); err != nil || !rep.Converged || rep.Operations != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestTimeoutsAndSyncDaemons(t *testing.T) {
	k := fakekernel.New()
	foreign := reconcile.SyncDaemon{Role: reconcile.SyncBackup, Interface: "lo"}
	k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.StartDaemon, Daemon: &foreign}})
	journal := new(memory)
	r := newReconciler(t, reconcile.Config{Kernel: k, Journal: journal})
	d := desired()
	d.Timeouts = reconcile.Timeouts{UDP: 30 * time.Second}
	d.Daemons = []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth0", ID: 5}}
	converge(t, r, d)
	state, _ := k.IPVS(t.Context())
	if state.Timeouts != (reconcile.Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 30 * time.Second}) || len(state.Daemons) != 2 {
		t.Fatalf("%+v", state)
	}
	if rep := converge(t, r, d); rep.Operations != 0 {
		t.Errorf("the second sync did %d operations", rep.Operations)
	}
	// Another value takes a stop and a start; one that is not ours is in the way.
	d.Daemons[0].ID = 6
	if rep := converge(t, r, d); rep.Operations != 2 {
		t.Errorf("%d operations", rep.Operations)
	}
	d.Daemons = append(d.Daemons, reconcile.SyncDaemon{Role: reconcile.SyncBackup, Interface: "eth0"})
	if rep := sync(t, r, d); len(rep.Failures) != 1 || rep.Failures[0].Object != "sync daemon backup" || len(rep.Collisions) != 1 {
		t.Errorf("%+v", rep)
	}
	// Ours ends with the wish for it, also after a restart; the other stays.
	r = newReconciler(t, reconcile.Config{Kernel: k, Journal: journal})
	converge(t, r, desired())
	if state, _ := k.IPVS(t.Context()); len(state.Daemons) != 1 || state.Daemons[0].Interface != "lo" {
		t.Errorf("%v", state.Daemons)
	}
	d = desired()
	d.Timeouts.TCP = 1500 * time.Millisecond
	d.Daemons = []reconcile.SyncDaemon{{Role: reconcile.SyncMaster}, {Role: reconcile.SyncBackup, Interface: "eth0", MaxLen: 100}}
	if rep := sync(t, r, d); len(rep.Failures) != 3 || rep.Operations != 0 {
		t.Errorf("refused: %v", rep.Failures)
	}
}

// An agent's view has neither: they are the host's own.
func TestApplyWithTheHostsOwnTimeoutsAndDaemons(t *testing.T) {
	k := fakekernel.New()
	cfg := reconcile.Config{
		Kernel: k, Timeouts: reconcile.Timeouts{TCP: time.Hour},
		Daemons: []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth0"}},
	}
	r := newReconciler(t, cfg)
	for range 2 {
		if got, err := r.Apply(t.Context(), lbstate.View{Revision: 3}); err != nil || !got.Converged {
			t.Fatalf("%+v, %v", got, err)
		}
		if state, _ := k.IPVS(t.Context()); state.Timeouts.TCP != time.Hour || len(state.Daemons) != 1 {
			t.Errorf("%+v", state)
		}
	}
	cfg.Timeouts.UDP = time.Millisecond
	if _, err := reconcile.New(cfg); err == nil || !strings.Contains(err.Error(), "whole seconds") {
		t.Errorf("a timeout that cannot be had: %v", err)
	}
}

func TestZeroAndObserve(t *testing.T) {
	k := fakekernel.New()
	if err := k.Load("-A -t 203.0.113.1:80 -s rr"); err != nil {
		t.Fatal(err)
	}
	foreign := reconcile.AddrKey(reconcile.TCP, addrPort("203.0.113.1:80"))
	r := newReconciler(t, reconcile.Config{Kernel: k})
	s := web("192.0.2.10:80", 1)
	converge(t, r, desired(s))
	counted := reconcile.Counters{Connections: 7, BytesIn: 900, ConnectionRate: 3}
	for _, key := range []reconcile.Key{s.Key, foreign} {
		if err := k.Count(key, netip.AddrPort{}, counted); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 4, 2); err != nil {
		t.Fatal(err)
	}
	a, err := r.Observe(t.Context())
	if err != nil || len(a.Services) != 1 || a.Services[0].Counters != counted || a.Services[0].Destinations[0].Active != 4 ||
		len(a.Foreign) != 1 || len(a.VIPs()) != 1 || a.IPVS.Version == "" {
		t.Errorf("%+v, %v", a, err)
	}
	if err := r.Zero(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "not among the services that are ours") {
		t.Errorf("zero of someone else's: %v", err)
	}
	if err := r.Zero(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[reconcile.Key]reconcile.Counters{s.Key: {}, foreign: counted} {
		if got, err := k.Service(t.Context(), key); err != nil || got.Counters != want {
			t.Errorf("%s: %+v, %v", key, got.Counters, err)
		}
	}
}

// A drain by weight 0 that has a deadline of its own ends then.
func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, reports := running(t, reconcile.Config{Kernel: k})
		s := web("192.0.2.10:80", 0, 1)
		converge(t, r, desired(s))
		if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 2, 0); err != nil {
			t.Fatal(err)
		}
		s.Until = map[netip.AddrPort]time.Time{s.Destinations[0].AddrPort(): time.Now().Add(90 * time.Second)}
		converge(t, r, desired(s))
		time.Sleep(89 * time.Second)
		reports()
		if got := k.Dump(); !strings.Contains(got, "10.1.0.1:8080") {
			t.Errorf("deleted too early:\n%s", got)
		}
		time.Sleep(2 * time.Second)
		if got := reports(); len(got) != 1 || !got[0].Converged || got[0].Operations != 1 || got[0].Repaired != 0 {
			t.Errorf("%+v", got)
		}
		if got := k.Dump(); strings.Contains(got, "10.1.0.1:8080") {
			t.Errorf("left:\n%s", got)
		}
		if rep := converge(t, r, desired(s)); rep.Operations != 0 {
			t.Errorf("made again: %+v", rep)
		}
	})
}

func TestWarnsOfVIPsOnASegment(t *testing.T) {
	eth0 := reconcile.Link{Name: "eth0", Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.77/24"), netip.MustParsePrefix("2001:db8::77/64")}}
	services := []reconcile.DesiredService{web("192.0.2.10:80", 1), web("192.0.2.11:80", 1), web("192.0.2.77:81", 1), web("203.0.113.1:80", 1)}
	for _, c := range []struct {
		cfg  reconcile.Config
		want []string
	}{
		{reconcile.Config{}, []string{"so this host answers ARP for it; if other directors carry it too"}},
		{reconcile.Config{SoleDirector: true}, nil},
		{reconcile.Config{SoleDirector: true, ARPQuiet: true}, []string{"kept from answering ARP"}},
	} {
		k := fakekernel.New()
		k.SetLink(eth0)
		c.cfg.Kernel = k
		rep := converge(t, newReconciler(t, c.cfg), desired(services...))
		if len(rep.Warnings) != len(c.want) {
			t.Errorf("warnings %v", rep.Warnings)
			continue
		}
		for i, w := range c.want {
			if got := rep.Warnings[i].String(); !strings.Contains(got, w) || !strings.Contains(got, "192.0.2.10: it is in 192.0.2.0/24 of interface eth0") ||
				!strings.Contains(got, "1 other VIP") {
				t.Errorf("%q lacks %q", got, w)
			}
		}
		v, _ := k.Sysctl(t.Context(), "net/ipv4/conf/all/arp_ignore")
		if want := map[bool]string{true: "1", false: "0"}[c.cfg.ARPQuiet]; v != want {
			t.Errorf("arp_ignore is %s", v)
		}
	}
}

// Only ports that a service has are open on a VIP. The rules change before a
// service is there, and after it is gone.
func TestProtectVIPs(t *testing.T) {
	k := fakekernel.New()
	cfg := reconcile.Config{Kernel: k, Journal: new(memory), ProtectVIPs: true, Marks: reconcile.MarkRange{First: 1, Last: 9}}
	r := newReconciler(t, cfg)
	chain := func() string {
		t.Helper()
		c, err := k.Chain(t.Context(), reconcile.ChainKey{Table: reconcile.Filter, Family: reconcile.IPv4})
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, r := range c.Rules {
			lines = append(lines, string(r))
		}
		return strings.Join(lines, "\n")
	}
	a, b := web("192.0.2.10:80", 1), web("192.0.2.10:443", 1)
	mark := web("192.0.2.11:0", 1)
	mark.Key = reconcile.MarkKey(reconcile.IPv4, 3)
	order := operations(k)
	converge(t, r, desired(a, b, mark))
	want := `-m mark --mark 0x3 -j RETURN
-d 192.0.2.10/32 -p tcp -m multiport --dports 80,443 -j RETURN
-d 192.0.2.10/32 -p tcp -j REJECT --reject-with tcp-reset
-d 192.0.2.10/32 -p udp -j REJECT --reject-with icmp-port-unreachable
-d 192.0.2.10/32 -p sctp -j REJECT --reject-with icmp-port-unreachable`
	if got := chain(); got != want {
		t.Errorf("rules:\n%s\nwant:\n%s", got, want)
	}
	if all := strings.Join(*order, "\n"); strings.Index(all, "protection ipv4") > strings.Index(all, "add address") {
		t.Errorf("a VIP is bound before it is protected:\n%s", all)
	}
	*order = nil
	converge(t, r, desired(a, mark))
	if got := strings.Join(*order, "\n"); got != "delete service tcp/192.0.2.10:443\nset chain protection ipv4: 5 rules" {
		t.Errorf("a service that goes:\n%s", got)
	}
	// The VIP stays, and so does its protection.
	converge(t, r, desired())
	if got := chain(); strings.Contains(got, "RETURN") || strings.Count(got, "REJECT") != 3 {
		t.Errorf("without services:\n%s", got)
	}
	if rep := converge(t, r, desired()); rep.Operations != 0 {
		t.Errorf("the second sync did %d operations", rep.Operations)
	}
	// Switched off, also by another process, the chain goes.
	cfg.ProtectVIPs = false
	if rep := converge(t, newReconciler(t, cfg), desired()); rep.Operations != 1 {
		t.Errorf("switched off: %+v", rep)
	}
	if c, _ := k.Chain(t.Context(), reconcile.ChainKey{Table: reconcile.Filter, Family: reconcile.IPv4}); c.Exists {
		t.Errorf("left: %+v", c)
	}
}
