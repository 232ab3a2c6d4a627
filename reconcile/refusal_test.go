package reconcile_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// What must not be programmed is named, and does not stop the others. INV-25.
func TestRefused(t *testing.T) {
	edit := func(f func(*reconcile.DesiredService)) reconcile.DesiredService {
		s := web("192.0.2.10:80", 100)
		f(&s)
		return s
	}
	for _, c := range []struct {
		name, want string
		service    reconcile.DesiredService
	}{
		{"mark outside", "firewall mark 7 is outside of the range that is ours (100 to 200)", edit(func(s *reconcile.DesiredService) { s.Key = reconcile.MarkKey(reconcile.IPv4, 7) })},
		{"prefix", "in none of the allowed prefixes", web("203.0.113.1:80", 1)},
		{"loopback", "cannot be a VIP", web("127.0.0.1:80", 1)},
		{"port 0", "needs persistence", web("192.0.2.10:0", 1)},
		{"protocol", "is not balanced", edit(func(s *reconcile.DesiredService) { s.Protocol = 47 })},
		{"scheduler", "a name of 1 to 15 characters", edit(func(s *reconcile.DesiredService) { s.Scheduler = "" })},
		{"timeout", "whole seconds", edit(func(s *reconcile.DesiredService) { s.Flags = reconcile.Persistent; s.Timeout = 1500e6 })},
		{"no timeout", "at least 1s", edit(func(s *reconcile.DesiredService) { s.Flags = reconcile.Persistent })},
		{"one-packet", "is for udp", edit(func(s *reconcile.DesiredService) { s.Flags = reconcile.OnePacket })},
		{"mixed families", "reaches only backends of family ipv4", edit(func(s *reconcile.DesiredService) { s.Destinations[0].Addr = addr("2001:db8::1") })},
		{"dr port", "cannot change the port", edit(func(s *reconcile.DesiredService) { s.Destinations[0].Forwarding = reconcile.DR })},
		{"thresholds", "above the upper", edit(func(s *reconcile.DesiredService) { s.Destinations[0].Lower = 5 })},
		{"twice", "is there twice", edit(func(s *reconcile.DesiredService) { s.Destinations = append(s.Destinations, s.Destinations[0]) })},
		{"gue", "needs the receiver's port", edit(func(s *reconcile.DesiredService) {
			s.Destinations[0].Forwarding, s.Destinations[0].Port, s.Destinations[0].Encap = reconcile.Tunnel, 80, reconcile.GUE
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := fakekernel.New()
			r := newReconciler(t, reconcile.Config{
				Kernel: k, Marks: reconcile.MarkRange{First: 100, Last: 200},
				AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("127.0.0.0/8")},
			})
			rep := sync(t, r, desired(c.service, web("192.0.2.11:80", 1)))
			if rep.Converged || len(rep.Failures) != 1 || !strings.Contains(rep.Failures[0].Error(), c.want) ||
				rep.Failures[0].Object != c.service.Key.String() || rep.Failures[0].Service != "web" {
				t.Errorf("failures %v; want one with %q", rep.Failures, c.want)
			}
			if got := k.Dump(); !strings.HasPrefix(got, "-A -t 192.0.2.11:80") || strings.Count(got, "-A") != 1 {
				t.Errorf("programmed:\n%s", got)
			}
		})
	}
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k})
	second := web("192.0.2.10:80", 1)
	second.Name = "second"
	if rep := sync(t, r, desired(web("192.0.2.10:80", 100), second)); len(rep.Failures) != 1 || rep.Failures[0].Service != "second" {
		t.Errorf("the same key twice: %v", rep.Failures)
	}
}

func TestKernelsAnswersAreExplained(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k})
	odd := web("192.0.2.10:80", 1)
	odd.Scheduler = "twos"
	rep := sync(t, r, desired(odd, web("192.0.2.11:80", 1)))
	if len(rep.Failures) != 1 || !errors.Is(rep.Failures[0], syscall.ENOENT) || !strings.Contains(rep.Failures[0].Error(), "modprobe ip_vs_twos") {
		t.Errorf("unknown scheduler: %v", rep.Failures)
	}
	links, _ := k.Links(t.Context())
	for _, l := range links {
		if l.Name == "ipvs-manager" && len(l.Addresses) != 1 {
			t.Errorf("a VIP without a service is bound: %v", l.Addresses)
		}
	}
	k.WithoutFilter(reconcile.IPv4, errors.New("no table nat"))
	r = newReconciler(t, reconcile.Config{Kernel: k})
	rep = sync(t, r, desired(web("192.0.2.11:80", 5)))
	if len(rep.Failures) != 1 || rep.Failures[0].Object != "snat ipv4" || !strings.Contains(rep.Failures[0].Error(), "no table nat") {
		t.Errorf("no packet filter: %v", rep.Failures)
	}
	if !strings.Contains(k.Dump(), "-w 5") {
		t.Errorf("the rest was not done:\n%s", k.Dump())
	}
	k.WithoutFilter(reconcile.IPv4, nil)
	converge(t, r, desired(web("192.0.2.11:80", 5)))
}

// When every destination that should get connections fails, the old one keeps
// its weight. INV-22.
func TestHeldBack(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k, DrainTimeout: -1})
	converge(t, r, desired(web("192.0.2.10:80", 100)))
	k.Inject(func(op reconcile.Op) error {
		if op.Kind == reconcile.AddDestination {
			return syscall.ENOMEM
		}
		return nil
	})
	rep := sync(t, r, desired(web("192.0.2.10:80", -1, 100)))
	if len(rep.Failures) != 2 || !strings.Contains(rep.Failures[1].Error(), "held back") || !strings.Contains(k.Dump(), "10.1.0.1:8080 -m -w 100") {
		t.Errorf("%v\n%s", rep.Failures, k.Dump())
	}
	k.Inject(nil)
	converge(t, r, desired(web("192.0.2.10:80", -1, 100)))
	if strings.Contains(k.Dump(), "10.1.0.1") {
		t.Errorf("left:\n%s", k.Dump())
	}
}

func TestInterfaceOfOurName(t *testing.T) {
	vip := netip.MustParsePrefix("192.0.2.10/32")
	for _, c := range []struct {
		name string
		link reconcile.Link
		want string
	}{
		{"of an earlier program, with wanted addresses", reconcile.Link{Kind: "dummy", Addresses: []netip.Prefix{vip}}, ""},
		{"empty", reconcile.Link{Kind: "dummy"}, ""},
		{"with other addresses", reconcile.Link{Kind: "dummy", Addresses: []netip.Prefix{vip, netip.MustParsePrefix("203.0.113.5/32")}}, "addresses that no service has (203.0.113.5)"},
		{"not a dummy", reconcile.Link{Kind: "veth"}, `kind "veth"`},
		{"someone else's", reconcile.Link{Kind: "dummy", Alias: "theirs"}, `alias "theirs"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := fakekernel.New()
			c.link.Name = "ipvs-manager"
			k.SetLink(c.link)
			r := newReconciler(t, reconcile.Config{Kernel: k})
			rep := sync(t, r, desired(web("192.0.2.10:80", 1)))
			if c.want == "" {
				if !rep.Converged {
					t.Errorf("not adopted: %v", rep.Failures)
				}
				return
			}
			if len(rep.Failures) != 1 || !strings.Contains(rep.Failures[0].Error(), c.want) || len(rep.Collisions) != 1 {
				t.Errorf("%+v", rep)
			}
			links, _ := k.Links(t.Context())
			for _, l := range links {
				if l.Name == "ipvs-manager" && (l.Alias != c.link.Alias || len(l.Addresses) != len(c.link.Addresses)) {
					t.Errorf("it was touched: %+v", l)
				}
			}
		})
	}
}

// A VIP is in the journal before anything is done with it; a journal that cannot
// be written or read stops everything. INV-21.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "scope")
	k := fakekernel.New()
	k.Watch(func(op reconcile.Op, _ error) {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "192.0.2.10") {
			t.Errorf("%s before the journal: %s %v", op, b, err)
		}
	})
	r := newReconciler(t, reconcile.Config{Kernel: k, Journal: reconcile.FileJournal(path)})
	converge(t, r, desired(web("192.0.2.10:80", 1)))
	k.Watch(nil)

	// The interface is gone and the process has been restarted: what is in the
	// journal is still ours.
	k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.DelLink, Link: "ipvs-manager"}})
	r = newReconciler(t, reconcile.Config{Kernel: k, Journal: reconcile.FileJournal(path)})
	converge(t, r, desired())
	if got := k.Dump(); got != "" {
		t.Errorf("left:\n%s", got)
	}

	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := k.Operations()
	r = newReconciler(t, reconcile.Config{Kernel: k, Journal: reconcile.FileJournal(path)})
	if _, err := r.Sync(t.Context(), desired(web("192.0.2.10:80", 1))); err == nil || !strings.Contains(err.Error(), "the journal is damaged") {
		t.Errorf("a damaged journal: %v", err)
	}
	r = newReconciler(t, reconcile.Config{Kernel: k, Journal: &memory{fail: syscall.ENOSPC}})
	if _, err := r.Sync(t.Context(), desired(web("192.0.2.10:80", 1))); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a journal that cannot be written: %v", err)
	}
	if k.Operations() != done {
		t.Error("operations without a journal")
	}
}

func TestApply(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k, Marks: reconcile.MarkRange{First: 1, Last: 9}})
	got, err := r.Apply(t.Context(), lbstate.View{Cluster: 1, Revision: 42, Services: []lbstate.DesiredService{
		{
			Name: "web", VIP: addr("192.0.2.10"), Port: 80, Protocol: lbstate.TCP, Family: lbstate.IPv4, Scheduler: "sh",
			SchedulerFlags: []string{"sh-port", "sh-fallback"}, SNAT: lbstate.SNATAll,
			Persistence: &lbstate.Persistence{Timeout: lbstate.Duration(60e9), Prefix: 24},
			Backends: []lbstate.DesiredBackend{
				{Address: addr("10.1.0.1"), Port: 8080, Forwarding: lbstate.Masq, Weight: 100},
				{Address: addr("10.1.0.2"), Port: 80, Forwarding: lbstate.DR, Weight: 0},
			},
		},
		{
			Name: "dns", VIP: addr("2001:db8::10"), Port: 53, Protocol: lbstate.UDP, Family: lbstate.IPv6, Scheduler: "rr", OnePacket: true,
			SNAT: lbstate.SNATLocal, Backends: []lbstate.DesiredBackend{{Address: addr("10.1.0.3"), Port: 53, Forwarding: lbstate.Tunnel, Weight: 1}},
		},
		{Name: "mark", FWMark: 7, Family: lbstate.IPv6, Scheduler: "wlc", SNAT: lbstate.SNATOff},
		{Name: "odd", VIP: addr("192.0.2.11"), Port: 80, Protocol: "icmp", Scheduler: "rr"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != 42 || got.Converged || !got.Simulated || got.Services != 3 || len(got.Failures) != 1 || got.Failures[0].Object != "service odd" {
		t.Errorf("applied %+v", got)
	}
	want := `-A -t 192.0.2.10:80 -s sh -p 60 -M 255.255.255.0 -b sh-fallback,sh-port
-a -t 192.0.2.10:80 -r 10.1.0.1:8080 -m -w 100
-a -t 192.0.2.10:80 -r 10.1.0.2:80 -g -w 0
-A -u [2001:db8::10]:53 -s rr -o
-a -u [2001:db8::10]:53 -r 10.1.0.3:53 -i -w 1 --tun-type ipip
-A -f 7 -6 -s wlc
`
	if dump := k.Dump(); dump != want {
		t.Errorf("kernel:\n%s\nwant:\n%s", dump, want)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k, LeaveSysctls: []string{"net/ipv4/ip_forward"}})
	ops, failures, err := r.Plan(t.Context(), desired(web("192.0.2.10:80", 1)))
	if err != nil || len(failures) != 0 || len(ops) != 8 || k.Operations() != 0 {
		t.Errorf("%d operations planned, %d done, %v %v", len(ops), k.Operations(), failures, err)
	}
	for _, op := range ops {
		if op.Name == "net/ipv4/ip_forward" {
			t.Errorf("%s although it must be left", op)
		}
	}
	if _, err := k.Services(t.Context()); err != nil {
		t.Error(err)
	}
}
