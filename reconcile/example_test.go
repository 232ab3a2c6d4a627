package reconcile_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

func shop(weights ...uint32) reconcile.Desired {
	s := reconcile.DesiredService{
		Name:    "shop",
		Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, netip.MustParseAddrPort("192.0.2.10:443")), Scheduler: "wlc"},
	}
	for i, w := range weights {
		s.Destinations = append(s.Destinations, reconcile.Destination{
			Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), Port: 8443, Weight: w,
		})
	}
	return reconcile.Desired{Revision: 1, Services: []reconcile.DesiredService{s}}
}

// On Linux the kernel is reconcile.NewLinux's.
func ExampleReconciler_Sync() {
	k := fakekernel.New()
	r, err := reconcile.New(reconcile.Config{Kernel: k})
	if err != nil {
		fmt.Println(err)
		return
	}
	rep, err := r.Sync(context.Background(), shop(100, 50))
	fmt.Println(rep.Converged, rep.Operations, err)
	rep, err = r.Sync(context.Background(), shop(100, 50))
	fmt.Println(rep.Converged, rep.Operations, err)
	fmt.Print(k.Dump())
	// Output:
	// true 10 <nil>
	// true 0 <nil>
	// -A -t 192.0.2.10:443 -s wlc
	// -a -t 192.0.2.10:443 -r 10.1.0.1:8443 -m -w 100
	// -a -t 192.0.2.10:443 -r 10.1.0.2:8443 -m -w 50
}

// A dry run: what would be done, in the order in which it would be.
func ExampleReconciler_Plan() {
	r, err := reconcile.New(reconcile.Config{Kernel: fakekernel.New(), LeaveSysctls: []string{"*"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := r.Sync(context.Background(), shop(100, 50)); err != nil {
		fmt.Println(err)
		return
	}
	ops, failures, err := r.Plan(context.Background(), shop(0, 80, 100))
	for _, op := range ops {
		fmt.Println(op)
	}
	fmt.Println(len(failures), err)
	// Output:
	// set destination tcp/192.0.2.10:443 -> 10.1.0.2:8443 masq weight 80
	// add destination tcp/192.0.2.10:443 -> 10.1.0.3:8443 masq weight 100
	// set destination tcp/192.0.2.10:443 -> 10.1.0.1:8443 masq weight 0
	// 0 <nil>
}

// One bad service is named, and does not stop the others.
func ExampleReport() {
	k := fakekernel.New()
	r, err := reconcile.New(reconcile.Config{Kernel: k})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := shop(100)
	bad := d.Services[0]
	bad.Name, bad.Port, bad.Scheduler = "admin", 8080, "twos"
	d.Services = append(d.Services, bad)
	rep, err := r.Sync(context.Background(), d)
	rep.Took = 0
	fmt.Println(rep)
	fmt.Println(rep.Failures[0].Service, err)
	// Output:
	// revision 1: partial, 1 services, 9 operations in 0s, 1 failures, simulated; add service tcp/192.0.2.10:8080: no such file or directory: this kernel has no scheduler "twos"; try `modprobe ip_vs_twos` or choose another
	// admin <nil>
}
