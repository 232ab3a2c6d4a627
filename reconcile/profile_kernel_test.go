//go:build kernel && linux

package reconcile_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
)

// A profile that comes, changes and goes while connections are open sets the
// kernel's timeouts, sync daemons and settings up and back, and loses none of
// them. INV-20, INV-23, INV-27.
func TestKernelProfile(t *testing.T) {
	n := newNetwork(t, 2)
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel})
	d := desired(n.serviceAt(reconcile.TCP, vip4, 1, 1), n.serviceAt(reconcile.TCP, vip6, 1, 1))
	converge(t, r, d)
	setup := func() string {
		t.Helper()
		state, err := n.kernel.IPVS(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text := state.Timeouts.String()
		for _, s := range state.Daemons {
			text += fmt.Sprintf("; %s on %s id %d", s.Role, s.Interface, s.ID)
		}
		for _, name := range []string{"sync_retries", "sync_threshold", "drop_entry"} {
			v, err := n.kernel.Sysctl(t.Context(), "net/ipv4/vs/"+name)
			if err != nil {
				t.Fatal(err)
			}
			text += fmt.Sprintf("; %s %q", name, v)
		}
		return text
	}
	before := setup()
	var conns []*conn
	for range 4 {
		for _, vip := range []string{vip4, vip6} {
			c, err := open(n.client, "tcp", at(vip))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if c.backend, _, err = c.ask(); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
	}
	timeout := func(tcp, udp int) lbstate.Timeouts {
		return lbstate.Timeouts{TCP: lbstate.Duration(time.Duration(tcp) * time.Second), UDP: lbstate.Duration(time.Duration(udp) * time.Second)}
	}
	for _, step := range []struct {
		profile *lbstate.DesiredProfile
		want    string
	}{
		{&lbstate.DesiredProfile{
			Name: "edge", Revision: 1, Timeouts: timeout(600, 30), SyncDaemons: []lbstate.SyncDaemon{{Role: "master", Interface: "client", ID: 7}},
			Sysctls: map[string]string{"net.ipv4.vs.sync_retries": "1", "net.ipv4.vs.sync_threshold": "4 60", "net.ipv4.vs.drop_entry": "0"}, SNAT: lbstate.SNATAll,
		}, `tcp 10m0s, tcp-fin 2m0s, udp 30s; master on client id 7; sync_retries "1"; sync_threshold "4\t60"; drop_entry "0"`},
		{&lbstate.DesiredProfile{
			Name: "edge", Revision: 2, Timeouts: timeout(300, 0), SyncDaemons: []lbstate.SyncDaemon{{Role: "master", Interface: "client", ID: 8}, {Role: "backup", Interface: "client", ID: 8}},
			Sysctls: map[string]string{"net.ipv4.vs.sync_retries": "2", "net.ipv4.vs.drop_entry": "3"},
		}, `tcp 5m0s, tcp-fin 2m0s, udp 5m0s; master on client id 8; backup on client id 8; sync_retries "2"; sync_threshold "3\t50"; drop_entry "3"`},
		{nil, before},
	} {
		d.Profile = step.profile
		rep := converge(t, r, d)
		if got := setup(); got != step.want {
			t.Errorf("%+v:\n%s, want\n%s", step.profile, got, step.want)
		}
		if again := converge(t, r, d); rep.Operations == 0 || again.Operations != 0 {
			t.Errorf("%d operations, then %d", rep.Operations, again.Operations)
		}
		for i, c := range conns {
			if backend, _, err := c.ask(); err != nil || backend != c.backend {
				t.Errorf("connection %d: answered by %q, at first by %q: %v", i, backend, c.backend, err)
			}
		}
	}
}
