package reconcile_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// What the kernel tells of is repaired at once, not when Run would look.
func TestRunHearsOfChangedInterfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r, reports := running(t, reconcile.Config{Kernel: k, DriftInterval: time.Hour, FullInterval: time.Hour})
		converge(t, r, desired(web("192.0.2.10:80", 1), web("192.0.2.11:80", 1)))
		time.Sleep(time.Second)
		if got := reports(); len(got) != 0 {
			t.Errorf("reports of our own changes: %+v", got)
		}
		for _, op := range []reconcile.Op{
			{Kind: reconcile.DelAddress, Link: "ipvs-manager", Addr: addr("192.0.2.10")},
			{Kind: reconcile.DelLink, Link: "ipvs-manager"},
		} {
			k.Do(t.Context(), []reconcile.Op{op})
			time.Sleep(200 * time.Millisecond)
			if got := reports(); len(got) != 1 || got[0].Repaired == 0 || !got[0].Converged {
				t.Errorf("%s: %+v", op, got)
			}
		}
		// A change of someone else's interface is no drift.
		k.SetLink(reconcile.Link{Name: "eth1", Up: true})
		time.Sleep(time.Minute)
		for _, rep := range reports() {
			if rep.Operations > 0 {
				t.Errorf("%+v", rep)
			}
		}
	})
}
