package reconcile_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// Traffic is that of the services that were applied, by their names.
func TestTraffic(t *testing.T) {
	kernel := fakekernel.New()
	r, err := reconcile.New(reconcile.Config{Kernel: kernel, Journal: reconcile.FileJournal(filepath.Join(t.TempDir(), "scope"))})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Traffic(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("before anything is applied: %v, %v", got, err)
	}
	addr := netip.MustParseAddr
	web := lbstate.Desired(lbstate.Effective(lbstate.Service{
		Name: "web", VIP: addr("192.0.2.10"), Port: 80, Backends: []lbstate.Backend{{Address: addr("10.1.0.1")}, {Address: addr("10.1.0.2")}},
	}.WithDefaults(), nil, nil, 1))
	if _, err := r.Apply(t.Context(), lbstate.View{Cluster: 7, Revision: 1, Services: []lbstate.DesiredService{web}}); err != nil {
		t.Fatal(err)
	}
	key := reconcile.AddrKey(reconcile.TCP, netip.MustParseAddrPort("192.0.2.10:80"))
	second := netip.MustParseAddrPort("10.1.0.2:80")
	if err := kernel.Connect(key, second, 3, 1); err != nil {
		t.Fatal(err)
	}
	if err := kernel.Count(key, second, reconcile.Counters{Connections: 9, PacketsIn: 8, PacketsOut: 7, BytesIn: 6, BytesOut: 5}); err != nil {
		t.Fatal(err)
	}
	if err := kernel.Count(key, netip.AddrPort{}, reconcile.Counters{Connections: 10}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Traffic(t.Context())
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if want := (lbstate.Traffic{Service: "web", Connections: 10, Active: 3}); got[0] != want {
		t.Errorf("%+v, want %+v", got[0], want)
	}
	if want := (lbstate.Traffic{Service: "web", Backend: second, Connections: 9, PacketsIn: 8, PacketsOut: 7, BytesIn: 6, BytesOut: 5, Active: 3}); got[2] != want {
		t.Errorf("%+v, want %+v", got[2], want)
	}
}
