package lbchecks_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
)

var at = netip.MustParseAddrPort("10.1.0.1:8080") // where put's backends are

func TestStatus(t *testing.T) {
	b := newBackend(t)
	w := newWorld(t)
	w.put("a", 80, http, b)
	w.put("b", 81, http, b)
	w.put("c", 82, tcp, b)
	w.until("a", lbstate.Up)
	w.until("b", lbstate.Up)
	w.until("c", lbstate.Up)
	b.wait(4)
	all, err := w.Status()
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, s := range all {
		if s.Service != string(rune('a'+i)) || s.Backend != at || s.State != healthcheck.Up || s.Successes == 0 || s.Target != at ||
			s.LastAt.IsZero() || s.Last.Class != healthcheck.OK || s.P50 == 0 {
			t.Errorf("%+v", s)
		}
	}
	if all[0].ID != all[1].ID || all[0].ID == all[2].ID {
		t.Errorf("checks %q, %q and %q: a and b share one, c has its own", all[0].ID, all[1].ID, all[2].ID)
	}
	one, err := w.ServiceStatus("c")
	if err != nil || len(one) != 1 || one[0].Service != "c" {
		t.Errorf("%+v, %v", one, err)
	}
	if none, err := w.ServiceStatus("nobody"); err != nil || len(none) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
	if s, err := w.Stats(); err != nil || s.Up != 2 {
		t.Errorf("%+v, %v: want the two checks", s, err)
	}
	if h, err := w.Hold(); err != nil || h.Active {
		t.Errorf("%+v, %v", h, err)
	}
	if was, err := w.ReleaseHold(); err != nil || was {
		t.Errorf("%v, %v", was, err)
	}

	events, _, err := w.Events(0)
	if err != nil || len(events) < 2 || events[0].Term != 1 || events[0].Kind != healthcheck.EventTransition {
		t.Errorf("%+v, %v", events, err)
	}
	for _, ev := range events {
		if ev.Check == all[0].ID && !slices.Equal(ev.Backends, []lbchecks.Backend{{Service: "a", Address: at}, {Service: "b", Address: at}}) {
			t.Errorf("%+v", ev)
		}
	}
	if after, _, err := w.Events(events[0].Seq); err != nil || len(after) == 0 || after[0].Seq != events[0].Seq+1 {
		t.Errorf("%+v, %v", after, err)
	}
	if noted, err := w.Noted(); err != nil || len(noted) > 0 {
		t.Errorf("%+v, %v", noted, err)
	}

	w.leads.set(false, 2)
	for _, err := w.Status(); !errors.Is(err, lbchecks.ErrNotChecking); _, err = w.Status() {
		time.Sleep(time.Millisecond)
	}
	_, e1 := w.Stats()
	_, e2 := w.Hold()
	_, e3 := w.ReleaseHold()
	_, e4 := w.ServiceStatus("a")
	_, _, e5 := w.Events(0)
	_, e6 := w.Noted()
	for _, err := range []error{e1, e2, e3, e4, e5, e6} {
		if !errors.Is(err, lbchecks.ErrNotChecking) {
			t.Error(err)
		}
	}
}

// Any node can try a check, and it counts for nothing.
func TestProbeNow(t *testing.T) {
	b := newBackend(t)
	w := newWorld(t)
	w.leads.set(false, 2)
	w.put("a", 80, http, b)
	ctx := t.Context()
	if res, err := w.ProbeNow(ctx, "a", at); err != nil || !res.OK() {
		t.Errorf("%+v, %v", res, err)
	}
	b.close()
	if res, err := w.ProbeNow(ctx, "a", at); err != nil || res.Class != healthcheck.Refused {
		t.Errorf("%+v, %v", res, err)
	}
	if h := w.health("a"); h.State != lbstate.Unknown {
		t.Errorf("%+v", h)
	}
	if _, err := w.ProbeNow(ctx, "nobody", at); err == nil {
		t.Error("a service that there is not")
	}
	if _, err := w.ProbeNow(ctx, "a", netip.MustParseAddrPort("10.1.0.2:80")); !errors.Is(err, lbchecks.ErrNoCheck) {
		t.Errorf("a backend that there is not: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.ProbeNow(ended, "a", at); err == nil {
		t.Error("with a context that has ended")
	}
}

// Half of many backends fall at once: those that are held stay in service, and
// the state says so; rules that are set stay for later terms.
func TestHeldBackendsAreShown(t *testing.T) {
	const n = 12
	b := newBackend(t)
	w := newWorldOf(t, healthcheck.Config{Hold: healthcheck.Hold{Min: 4, Limit: time.Hour}})
	for i := range n {
		w.putAt(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), fmt.Sprintf("s%02d", i), 80+i, tcp, b)
	}
	states := func() (up, held, down int) {
		t.Helper()
		list, _, err := w.store.Services(t.Context(), lbstate.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			switch h := s.Backends[0].Health; {
			case h.Held && (h.State != lbstate.Up || s.Backends[0].EffectiveWeight == 0 || s.Backends[0].Reason != lbstate.Held || h.Message == ""):
				t.Errorf("held: %+v", s.Backends[0])
			case h.Held:
				held++
			case h.State == lbstate.Up:
				up++
			case h.State == lbstate.Down:
				down++
			}
		}
		return up, held, down
	}
	until := func(what string, ok func(up, held, down int) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for up, held, down := states(); !ok(up, held, down); up, held, down = states() {
			if time.Now().After(deadline) {
				h, err := w.Hold()
				t.Fatalf("%s: %d up, %d held, %d down; %+v, %v", what, up, held, down, h, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	until("at first", func(up, _, _ int) bool { return up == n })
	b.close()
	until("after the fall", func(up, held, down int) bool { return up == 0 && held > 0 && down > 0 })
	if h, err := w.Hold(); err != nil || !h.Active {
		t.Errorf("%+v, %v", h, err)
	}
	if was, err := w.ReleaseHold(); err != nil || !was {
		t.Errorf("%v, %v", was, err)
	}
	until("after the release", func(up, held, down int) bool { return down == n })
	b.open()
	until("after the return", func(up, held, down int) bool { return up == n })

	if err := w.SetHold(healthcheck.Hold{Min: -1}); err == nil {
		t.Error("faulty rules were taken")
	}
	if err := w.SetHold(healthcheck.Hold{Share: 1}); err != nil {
		t.Fatal(err)
	}
	w.local.SetTerm(2)
	w.leads.set(true, 2)
	b.close()
	until("without holds", func(up, held, down int) bool { return down == n })
}

func TestFaultsOfAConfig(t *testing.T) {
	w := newWorld(t)
	for _, cfg := range []lbchecks.Config{
		{},
		{Store: w.store},
		{Leadership: lbchecks.Always{}},
		{Store: w.store, Leadership: lbchecks.Always{}, Engine: healthcheck.Config{Jitter: 1}},
		{Store: w.store, Leadership: lbchecks.Always{}, ExecDir: "checks"},
		{Store: w.store, Leadership: lbchecks.Always{}, ExecDir: "/etc/../bin"},
	} {
		if _, err := lbchecks.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	if leading, term, changed := (lbchecks.Always{}).Leadership(); !leading || term != 1 || changed != nil {
		t.Error("Always does not always lead")
	}
}
