package reconcile_test

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

func TestUpdate(t *testing.T) { synctest.Test(t, testUpdate) }

func testUpdate(t *testing.T) {
	k := fakekernel.New()
	ctx := t.Context()
	r, reports := running(t, reconcile.Config{Kernel: k})
	reports() // Run looks after the kernel from now on
	if _, err := r.Update(ctx, reconcile.Change{}); err == nil || !strings.Contains(err.Error(), "before the first Sync") {
		t.Errorf("an Update first: %v", err)
	}
	a, b := web("192.0.2.10:80", 1, 1), web("192.0.2.11:80", 1)
	converge(t, r, desired(a, b))
	reads := 0
	k.InjectRead(func(string) error { reads++; return nil })
	ops := operations(k)
	update := func(c reconcile.Change) reconcile.Report {
		t.Helper()
		rep, err := r.Update(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	a = web("192.0.2.10:80", 1, 7)
	rep := update(reconcile.Change{Revision: 8, Set: []reconcile.DesiredService{a}})
	if !rep.Converged || rep.Revision != 8 || rep.Services != 2 || rep.Operations != 1 || len(*ops) != 1 || reads != 1 {
		t.Errorf("one weight: %+v, %q, %d reads", rep, *ops, reads)
	}
	if err := k.Connect(a.Key, a.Destinations[0].AddrPort(), 1, 0); err != nil {
		t.Fatal(err)
	}
	if rep := update(reconcile.Change{Set: []reconcile.DesiredService{web("192.0.2.10:80", -1, 7)}}); rep.Draining != 1 || !rep.Converged {
		t.Errorf("a drain: %+v", rep)
	}
	if rep := update(reconcile.Change{Set: []reconcile.DesiredService{web("192.0.2.11:80", 5)}}); rep.Draining != 1 || !rep.Converged {
		t.Errorf("another service meanwhile: %+v", rep)
	}
	k.Inject(func(op reconcile.Op) error {
		if op.Kind == reconcile.SetDestination {
			return syscall.ENOMEM
		}
		return nil
	})
	if rep := update(reconcile.Change{Set: []reconcile.DesiredService{web("192.0.2.11:80", 6)}}); rep.Converged || len(rep.Failures) != 1 {
		t.Errorf("a failure: %+v", rep)
	}
	k.Inject(nil)
	bad := web("192.0.2.12:80", 1)
	bad.Scheduler = ""
	if rep := update(reconcile.Change{Set: []reconcile.DesiredService{bad}}); len(rep.Failures) != 1 || rep.Failures[0].Object != bad.Key.String() {
		t.Errorf("a refusal: %+v", rep)
	}
	if rep := update(reconcile.Change{Set: []reconcile.DesiredService{web("192.0.2.11:80", 7)}}); len(rep.Failures) != 1 || !strings.Contains(k.Dump(), "-w 7") {
		t.Errorf("another one meanwhile: %+v", rep)
	}
	if rep := update(reconcile.Change{Removed: []reconcile.Key{bad.Key, a.Key}}); !rep.Converged || rep.Services != 1 {
		t.Errorf("removed: %+v\n%s", rep, k.Dump())
	}
}

// Any sequence of changes leaves what a Sync of the whole leaves.
func TestUpdatesEqualSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk(t)
		w.want = reconcile.Desired{Services: w.services("first")}
		if _, err := w.r.Sync(context.Background(), w.want); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 5).Draw(t, "changes") {
			var c reconcile.Change
			for _, s := range w.services("change") {
				c.Set = append(c.Set, s)
				w.want.Services = slices.DeleteFunc(slices.Clone(w.want.Services), func(o reconcile.DesiredService) bool { return o.Key == s.Key })
				w.want.Services = append(w.want.Services, s)
			}
			if rapid.Bool().Draw(t, "remove") && len(w.want.Services) > 0 {
				i := rapid.IntRange(0, len(w.want.Services)-1).Draw(t, "which")
				if key := w.want.Services[i].Key; !slices.ContainsFunc(c.Set, func(s reconcile.DesiredService) bool { return s.Key == key }) {
					c.Removed = append(c.Removed, key)
					w.want.Services = slices.Delete(slices.Clone(w.want.Services), i, i+1)
				}
			}
			rep, err := w.r.Update(context.Background(), c)
			if err != nil || !rep.Converged {
				t.Fatalf("%+v, %v", rep, err)
			}
			if again, err := w.r.Sync(context.Background(), w.want); err != nil || again.Operations != 0 || again.Draining != rep.Draining || again.Services != rep.Services {
				t.Fatalf("after an Update %+v a Sync did %+v, %v", rep, again, err)
			}
		}
		w.settle()
	})
}

// Without Run, Sync looks at all of it from time to time.
func TestSyncLooksAtAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		r := newReconciler(t, reconcile.Config{Kernel: k})
		d := desired(web("192.0.2.10:80", 1, 1))
		converge(t, r, d)
		k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.DelChain, Chain: &reconcile.Chain{ChainKey: reconcile.ChainKey{Family: reconcile.IPv4}}}})
		if rep := converge(t, r, d); rep.Operations != 0 {
			t.Errorf("at once: %s", rep)
		}
		time.Sleep(time.Minute)
		if rep := converge(t, r, d); rep.Operations != 1 {
			t.Errorf("after a minute: %s", rep)
		}
	})
}

// A Sync that asks for the same again looks for drift and does no more; one that
// differs in a few services touches them alone.
func TestSyncOfTheSame(t *testing.T) {
	k := fakekernel.New()
	r := newReconciler(t, reconcile.Config{Kernel: k})
	d := desired(web("192.0.2.10:80", 1, 1), web("192.0.2.11:80", 1))
	converge(t, r, d)
	var reads []string
	k.InjectRead(func(what string) error { reads = append(reads, what); return nil })
	for _, step := range []struct {
		name   string
		change func()
		ops    int
		reads  string
	}{
		{"nothing", func() {}, 0, "fingerprint links"},
		{"another revision", func() { d.Revision = 99 }, 0, "fingerprint links"},
		{"a weight, in the caller's own slice", func() { d.Services[0].Destinations[1].Weight = 9 }, 1, "fingerprint links service"},
		{"another order", func() { slices.Reverse(d.Services) }, 0, "fingerprint links"},
		{"a destination deleted by others", func() {
			k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.DelDestination, Service: d.Services[0].Service, Dest: d.Services[0].Destinations[0]}})
		}, 1, "fingerprint links services"},
		{"a VIP deleted by others", func() {
			k.Do(t.Context(), []reconcile.Op{{Kind: reconcile.DelAddress, Link: "ipvs-manager", Addr: addr("192.0.2.10")}})
		}, 1, "fingerprint links"},
	} {
		step.change()
		reads = nil
		rep := converge(t, r, d)
		if rep.Operations != step.ops || rep.Revision != d.Revision || rep.Services != 2 || !strings.HasPrefix(strings.Join(reads, " "), step.reads) {
			t.Errorf("%s: %s; read %q", step.name, rep, reads)
		}
		if again := converge(t, r, d); again.Operations != 0 {
			t.Errorf("%s: again: %s", step.name, again)
		}
	}
}
