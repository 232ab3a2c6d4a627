package reconcile_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// web is a masqueraded TCP service with one destination per weight.
func web(vip string, weights ...int) reconcile.DesiredService {
	s := reconcile.DesiredService{
		Name:    "web",
		Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, addrPort(vip)), Scheduler: "wrr"},
	}
	for i, w := range weights {
		if w >= 0 {
			s.Destinations = append(s.Destinations, reconcile.Destination{
				Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), Port: 8080, Weight: uint32(w),
			})
		}
	}
	return s
}

func desired(services ...reconcile.DesiredService) reconcile.Desired {
	return reconcile.Desired{Revision: 7, Services: services}
}

func newReconciler(t *testing.T, cfg reconcile.Config) *reconcile.Reconciler {
	t.Helper()
	r, err := reconcile.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sync(t *testing.T, r *reconcile.Reconciler, d reconcile.Desired) reconcile.Report {
	t.Helper()
	rep, err := r.Sync(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func converge(t *testing.T, r *reconcile.Reconciler, d reconcile.Desired) reconcile.Report {
	t.Helper()
	rep := sync(t, r, d)
	if !rep.Converged {
		t.Fatalf("not converged: %v", rep.Failures)
	}
	return rep
}

// operations records what is done to a kernel.
func operations(k *fakekernel.Kernel) *[]string {
	var ops []string
	k.Watch(func(op reconcile.Op, err error) {
		text := op.String()
		if err != nil {
			text += ": " + err.Error()
		}
		ops = append(ops, text)
	})
	return &ops
}

func TestFirstSyncIsInOrderAndTheSecondSendsNothing(t *testing.T) {
	k := fakekernel.New()
	ops := operations(k)
	r := newReconciler(t, reconcile.Config{Kernel: k})
	rep := converge(t, r, desired(web("192.0.2.10:80", 100, 50)))
	want := []string{
		"set sysctl net/ipv4/vs/expire_nodest_conn=1 (connections of a deleted destination end at once instead of hanging)",
		"set sysctl net/ipv4/vs/conntrack=1 (IPVS connections can be SNATed)",
		"set sysctl net/ipv4/ip_forward=1 (answers of masqueraded backends are forwarded)",
		"set chain snat ipv4: 2 rules",
		`add link ipvs-manager alias "ipvskit"`,
		"link up ipvs-manager",
		"add service tcp/192.0.2.10:80 wrr",
		"add destination tcp/192.0.2.10:80 -> 10.1.0.1:8080 masq weight 100",
		"add destination tcp/192.0.2.10:80 -> 10.1.0.2:8080 masq weight 50",
		"add address 192.0.2.10 to ipvs-manager",
	}
	if got, want := strings.Join(*ops, "\n"), strings.Join(want, "\n"); got != want {
		t.Fatalf("operations:\n%s\nwant:\n%s", got, want)
	}
	if rep.Revision != 7 || !rep.Simulated || rep.Services != 1 || rep.Operations != len(want) || len(rep.Host) != 3 {
		t.Errorf("report %+v", rep)
	}
	*ops = nil
	if rep := converge(t, r, desired(web("192.0.2.10:80", 100, 50))); len(*ops) != 0 || rep.Operations != 0 {
		t.Errorf("the second sync did %v", *ops)
	}
}
