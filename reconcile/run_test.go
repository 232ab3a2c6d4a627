package reconcile_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// running runs a Reconciler in a bubble of time until the end of the test, and
// collects its reports.
func running(t *testing.T, cfg reconcile.Config) (*reconcile.Reconciler, func() []reconcile.Report) {
	var reports []reconcile.Report
	cfg.OnReport = func(r reconcile.Report) { reports = append(reports, r) }
	r := newReconciler(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r, func() []reconcile.Report {
		synctest.Wait()
		out := reports
		reports = nil
		return out
	}
}

func TestRunRepairsWhatOthersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, reports := running(t, reconcile.Config{Kernel: k})
		s := web("192.0.2.10:80", 100, 50)
		converge(t, r, desired(s))
		want := k.Dump()
		time.Sleep(time.Minute)
		if got := reports(); len(got) != 0 {
			t.Errorf("reports although nothing happened: %+v", got)
		}
		for _, change := range []struct {
			name string
			op   reconcile.Op
			in   time.Duration
		}{
			{"a service deleted", reconcile.Op{Kind: reconcile.DelService, Service: s.Service}, 6 * time.Second},
			{"a weight", reconcile.Op{Kind: reconcile.SetDestination, Service: s.Service, Dest: reconcile.Destination{Addr: addr("10.1.0.1"), Port: 8080, Weight: 1}}, 6 * time.Second},
			{"the VIP", reconcile.Op{Kind: reconcile.DelAddress, Link: "ipvs-manager", Addr: addr("192.0.2.10")}, 6 * time.Second},
			{"the interface", reconcile.Op{Kind: reconcile.DelLink, Link: "ipvs-manager"}, 6 * time.Second},
			{"thresholds", reconcile.Op{Kind: reconcile.SetDestination, Service: s.Service, Dest: reconcile.Destination{Addr: addr("10.1.0.1"), Port: 8080, Weight: 100, Upper: 5}}, 66 * time.Second},
			{"the packet filter", reconcile.Op{Kind: reconcile.DelChain, Chain: &reconcile.Chain{ChainKey: reconcile.ChainKey{Family: reconcile.IPv4}}}, 66 * time.Second},
			{"a setting", reconcile.Op{Kind: reconcile.SetSysctl, Name: "net/ipv4/ip_forward", Value: "0"}, 66 * time.Second},
		} {
			if errs := k.Do(t.Context(), []reconcile.Op{change.op}); len(errs) > 0 {
				t.Fatal(errs)
			}
			time.Sleep(change.in)
			got := reports()
			if len(got) != 1 || got[0].Repaired == 0 || !got[0].Converged {
				t.Errorf("%s: reports %+v", change.name, got)
			}
			if k.Dump() != want {
				t.Errorf("%s: not repaired:\n%s", change.name, k.Dump())
			}
		}
		if rep := r.Status(); !rep.Converged || rep.Revision != 7 {
			t.Errorf("status %+v", rep)
		}
	})
}

func TestRunTriesAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, reports := running(t, reconcile.Config{Kernel: k, RetryMin: time.Second, RetryMax: 8 * time.Second})
		began := time.Now()
		var tries []time.Duration
		k.Inject(func(op reconcile.Op) error {
			if op.Kind != reconcile.AddDestination || op.Dest.Addr != addr("10.1.0.2") {
				return nil
			}
			tries = append(tries, time.Since(began))
			return syscall.ENOMEM
		})
		rep := sync(t, r, desired(web("192.0.2.10:80", 100, 50)))
		if rep.Converged || len(rep.Failures) != 1 || rep.Failures[0].Object != "tcp/192.0.2.10:80 -> 10.1.0.2:8080" ||
			rep.Failures[0].Service != "web" || !strings.Contains(rep.Failures[0].Err.Error(), "out of memory") {
			t.Fatalf("report %+v", rep)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		want := []time.Duration{0, 1, 3, 7, 15, 23}
		if len(tries) != len(want) {
			t.Fatalf("tried at %v", tries)
		}
		for i := range want {
			if d := tries[i] - want[i]*time.Second; d < 0 || d > 200*time.Millisecond {
				t.Errorf("try %d at %s, want %d s", i, tries[i], want[i])
			}
		}
		reports()
		k.Inject(nil)
		time.Sleep(9 * time.Second)
		if got := reports(); len(got) != 1 || !got[0].Converged || got[0].Repaired != 0 {
			t.Errorf("once it can be done: %+v", got)
		}
	})
}

func TestRunEndsDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, reports := running(t, reconcile.Config{Kernel: k, DrainTimeout: time.Minute})
		s := web("192.0.2.10:80", 1, 1, 1)
		converge(t, r, desired(s))
		for _, d := range s.Destinations[:2] {
			if err := k.Connect(s.Key, d.AddrPort(), 3, 1); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if rep := converge(t, r, desired(web("192.0.2.10:80", -1, -1, 1))); rep.Draining != 2 {
			t.Fatalf("draining %d", rep.Draining)
		}
		time.Sleep(10 * time.Second)
		if got := reports(); len(got) != 0 {
			t.Errorf("reports while nothing ends: %+v", got)
		}
		// One ends by itself, the other by its deadline.
		if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 0, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := reports(); len(got) != 1 || got[0].Draining != 1 {
			t.Errorf("when connections end: %+v", got)
		}
		for r.Status().Draining > 0 {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < time.Minute || took > 65*time.Second {
			t.Errorf("the deadline was after %s", took)
		}
		if got, want := k.Dump(), "-A -t 192.0.2.10:80 -s wrr\n-a -t 192.0.2.10:80 -r 10.1.0.3:8080 -m -w 1\n"; got != want {
			t.Errorf("left:\n%s", got)
		}
	})
}

// UDP has no end of a connection, so a client that goes on sending from one port
// would hold a drain for ever: it lasts one UDP timeout at most.
func TestDrainOfUDPIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, _ := running(t, reconcile.Config{Kernel: k, DrainTimeout: time.Hour})
		dns := func(weights ...int) reconcile.DesiredService {
			s := web("192.0.2.10:53", weights...)
			s.Protocol = reconcile.UDP
			return s
		}
		s := dns(1, 1)
		converge(t, r, desired(s))
		if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 0, 5); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		converge(t, r, desired(dns(-1, 1)))
		for r.Status().Draining > 0 {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < 5*time.Minute || took > 5*time.Minute+5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// A UDP timeout that is asked for bounds drains of UDP, too.
func TestDrainOfUDPByTheTimeoutAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, _ := running(t, reconcile.Config{Kernel: k, DrainTimeout: time.Hour})
		s := web("192.0.2.10:53", 1, 1)
		s.Protocol = reconcile.UDP
		d := desired(s)
		d.Timeouts.UDP = 30 * time.Second
		converge(t, r, d)
		if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 0, 5); err != nil {
			t.Fatal(err)
		}
		d.Services[0].Destinations = s.Destinations[1:]
		began := time.Now()
		converge(t, r, d)
		for r.Status().Draining > 0 {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < 30*time.Second || took > 35*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestReturningDestinationIsOneEdit(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k})
	s := web("192.0.2.10:80", 1, 1)
	converge(t, r, desired(s))
	if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 1, 0); err != nil {
		t.Fatal(err)
	}
	converge(t, r, desired(web("192.0.2.10:80", -1, 1)))
	ops := operations(k)
	if rep := converge(t, r, desired(s)); rep.Draining != 0 || len(*ops) != 1 ||
		(*ops)[0] != "set destination tcp/192.0.2.10:80 -> 10.1.0.1:8080 masq weight 1" {
		t.Errorf("%+v\n%s", rep, strings.Join(*ops, "\n"))
	}
}

func TestRemovedServiceDrainsIfAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, _ := running(t, reconcile.Config{Kernel: k, DrainServices: true, ReleaseVIPs: true})
		s := web("192.0.2.10:80", 1, 1)
		converge(t, r, desired(s))
		if err := k.Connect(s.Key, s.Destinations[0].AddrPort(), 1, 0); err != nil {
			t.Fatal(err)
		}
		if rep := converge(t, r, desired()); rep.Draining != 1 {
			t.Fatalf("%+v", rep)
		}
		if got := k.Dump(); !strings.Contains(got, "10.1.0.1:8080 -m -w 0") {
			t.Errorf("while it drains:\n%s", got)
		}
		for r.Status().Draining > 0 {
			time.Sleep(time.Second)
		}
		if got := k.Dump(); got != "" {
			t.Errorf("left:\n%s", got)
		}
		links, _ := k.Links(t.Context())
		for _, l := range links {
			if l.Name == "ipvs-manager" && len(l.Addresses) != 0 {
				t.Errorf("the VIP was not released: %v", l)
			}
		}
	})
}
