package reconcile_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// step is a change of what is wanted, in whose middle the process is killed.
type step struct {
	name string
	want reconcile.Desired
}

// steps visit every kind of operation.
func steps() []step {
	v6 := web("[2001:db8::10]:80")
	v6.Destinations = []reconcile.Destination{{Addr: addr("2001:db8:1::1"), Port: 8080, Weight: 1}}
	all := web("192.0.2.11:80", 1)
	all.SNAT = reconcile.SNATAll
	sticky := web("192.0.2.10:80", 1, 5)
	sticky.Flags, sticky.Timeout, sticky.Scheduler = reconcile.Persistent, time.Minute, "wlc"
	with := func(d reconcile.Desired) reconcile.Desired {
		d.Timeouts.UDP = 100 * time.Second
		d.Daemons = []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth0"}}
		return d
	}
	return []step{
		{"from nothing", desired(web("192.0.2.10:80", 1, 1), v6)},
		{"more", with(desired(sticky, v6, all))},
		{"a backend replaced", with(desired(web("192.0.2.10:80", -1, 1, 1), v6, all))},
		{"weights", with(desired(web("192.0.2.10:80", -1, 0, 7), all))},
		{"less", desired(web("192.0.2.10:80", -1, -1, 7))},
		{"nothing", desired()},
	}
}

// state is all that a kernel in memory holds.
func state(t *testing.T, k *fakekernel.Kernel) string {
	t.Helper()
	links, _ := k.Links(t.Context())
	ipvs, _ := k.IPVS(t.Context())
	out := fmt.Sprintf("%s%v\n%v\n", k.Dump(), links, ipvs)
	for _, table := range []reconcile.Table{reconcile.NAT, reconcile.Filter} {
		for _, f := range []reconcile.Family{reconcile.IPv4, reconcile.IPv6} {
			c, _ := k.Chain(t.Context(), reconcile.ChainKey{Table: table, Family: f})
			out += fmt.Sprintln(c)
		}
	}
	return out
}

// A process that is killed before any operation, or after it without knowing that
// it was done, converges when it is started again, to the same as one that was
// not; what drains goes on draining until the deadline that it had. INV-22, INV-24.
func TestKilledBetweenAnyTwoOperations(t *testing.T) {
	cfg := func(k *fakekernel.Kernel, journal reconcile.Journal) reconcile.Config {
		return reconcile.Config{Kernel: k, Journal: journal, ProtectVIPs: true, ReleaseVIPs: true, DrainServices: true}
	}
	connect := func(k *fakekernel.Kernel) {
		// Everything has a connection, so that everything that goes drains.
		list, _ := k.Services(context.Background())
		for _, s := range list {
			for _, d := range s.Destinations {
				_ = k.Connect(s.Key, d.AddrPort(), 1, 0)
			}
		}
	}
	all := steps()
	for i, last := range all {
		for killed := 0; ; killed++ {
			k, journal := fakekernel.New(), new(memory)
			r := newReconciler(t, cfg(k, journal))
			for _, s := range all[:i] {
				converge(t, r, s.want)
				connect(k)
			}
			ctx, kill := context.WithCancel(t.Context())
			n := 0
			// Even: before the operation; odd: after it.
			k.Inject(func(reconcile.Op) error {
				if n++; killed%2 == 0 && n > killed/2 {
					kill()
					return context.Canceled
				}
				return nil
			})
			k.Watch(func(reconcile.Op, error) {
				if killed%2 == 1 && n > killed/2 {
					kill()
				}
			})
			_, err := r.Sync(ctx, last.want)
			kill()
			k.Inject(nil)
			k.Watch(nil)
			if err == nil {
				// It ended before that operation.
				if n == 0 || killed < 2*n {
					t.Fatalf("%s: %d operations, not killed at %d", last.name, n, killed)
				}
				t.Logf("%s: %d kills", last.name, killed)
				break
			}
			connected := k.Dump()
			again := newReconciler(t, cfg(k, journal))
			rep := converge(t, again, last.want)
			if next := converge(t, again, last.want); next.Operations != 0 {
				t.Fatalf("%s, killed at %d: the second sync did %d operations", last.name, killed, next.Operations)
			}
			want := undisturbed(t, all[:i+1], cfg, connect)
			if got := state(t, k); got != want {
				t.Fatalf("%s, killed at %d (%+v), then:\n%s\nbecame:\n%s\nwant:\n%s", last.name, killed, rep, connected, got, want)
			}
		}
	}
}

func undisturbed(t *testing.T, steps []step, cfg func(*fakekernel.Kernel, reconcile.Journal) reconcile.Config, connect func(*fakekernel.Kernel)) string {
	t.Helper()
	k := fakekernel.New()
	r := newReconciler(t, cfg(k, new(memory)))
	for i, s := range steps {
		converge(t, r, s.want)
		if i < len(steps)-1 {
			connect(k)
		}
	}
	return state(t, k)
}
