package lbstate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// states is what a service's backends are, in their order: "up, down, -".
func (n *node) states(t testing.TB, service string) string {
	t.Helper()
	var words []string
	for _, b := range n.service(t, service).Backends {
		switch {
		case b.Health == nil:
			words = append(words, "-")
		case b.Health.Held:
			words = append(words, "held")
		default:
			words = append(words, string(b.Health.State))
		}
	}
	return strings.Join(words, ", ")
}

func (n *node) wantStates(t testing.TB, service, want string) {
	t.Helper()
	if got := n.states(t, service); got != want {
		t.Errorf("the backends of %s are %s, not %s", service, got, want)
	}
}

const checkedWeb = `{name: web, vip: 192.0.2.10, port: 80, health_check: {type: tcp}, backends: [{address: 10.1.0.1}, {address: 10.1.0.2}]}`

// What becomes of the health when the configuration changes. INV-30, INV-31.
func TestHealthSurvivesChanges(t *testing.T) {
	n := newNode(t)
	n.put(t, checkedWeb)
	n.wantStates(t, "web", "unknown, unknown")
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	n.report(t, "web", "10.1.0.2:80", Down, func(tr *HealthTransition) { tr.Message = "refused" })
	n.wantStates(t, "web", "up, down")

	// Another check: the old verdict stands until the new one's.
	n.put(t, strings.Replace(checkedWeb, "type: tcp", "type: tcp, fall: 9", 1))
	n.wantStates(t, "web", "up, down")
	// A new backend is unknown, one that goes takes its health along.
	n.put(t, strings.Replace(checkedWeb, "10.1.0.2", "10.1.0.3", 1))
	n.wantStates(t, "web", "up, unknown")
	n.put(t, checkedWeb)
	n.wantStates(t, "web", "up, unknown")
	// Disabled and enabled again.
	n.put(t, strings.Replace(checkedWeb, "10.1.0.1", "10.1.0.1, state: disabled", 1))
	n.put(t, checkedWeb)
	n.wantStates(t, "web", "up, unknown")
	// Another weight or listener.
	n.put(t, strings.Replace(checkedWeb, "port: 80", "port: 81", 1))
	n.wantStates(t, "web", "unknown, unknown") // the backends' ports, which are the service's, changed too
	n.put(t, checkedWeb)
	// Without a check, then with one again: in service all the while.
	n.put(t, strings.Replace(checkedWeb, "health_check: {type: tcp}, ", "", 1))
	n.wantStates(t, "web", "-, -")
	n.put(t, checkedWeb)
	n.wantStates(t, "web", "up, up")
	if h := n.service(t, "web").Backends[0].Health; h.Message != "in service before it had a check" || h.Since != n.clock.UnixMilli() {
		t.Errorf("health %+v", h)
	}
	// Deleted and created again: nothing is left.
	if _, err := n.DeleteService(t.Context(), "web", WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.put(t, checkedWeb)
	n.wantStates(t, "web", "unknown, unknown")
}

// Health never touches the revision of a service, and an unchanged one makes
// none of the state's.
func TestHealthRevisions(t *testing.T) {
	n := newNode(t)
	n.put(t, checkedWeb)
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	st := n.service(t, "web")
	if st.Revision != 1 || st.Version != 2 {
		t.Errorf("revision %d, version %d", st.Revision, st.Version)
	}
	n.report(t, "web", "10.1.0.1:80", Up, func(tr *HealthTransition) { tr.Message = "again" })
	if rev, err := n.Revision(t.Context(), ReadOptions{}); err != nil || rev != 2 {
		t.Errorf("revision %d, %v", rev, err)
	}
	n.report(t, "web", "10.1.0.1:80", Up, func(tr *HealthTransition) { tr.Held = true })
	n.wantStates(t, "web", "held, unknown")
	if st := n.service(t, "web"); st.Version != 3 || st.Backends[0].EffectiveWeight != 100 || st.Backends[0].Reason != Held {
		t.Errorf("version %d, %d %s", st.Version, st.Backends[0].EffectiveWeight, st.Backends[0].Reason)
	}
	n.report(t, "web", "10.1.0.1:80", Down, nil)
	n.wantStates(t, "web", "down, unknown")
}

// What is dropped when it is applied. INV-32.
func TestStaleTransitionsAreDropped(t *testing.T) {
	n := newNode(t)
	n.put(t, checkedWeb)
	for name, edit := range map[string]func(*HealthTransition){
		"another term":    func(tr *HealthTransition) { tr.Term++ },
		"another check":   func(tr *HealthTransition) { tr.CheckHash++ },
		"another backend": func(tr *HealthTransition) { tr.Backend = addrPort("10.1.0.9:80") },
		"another service": func(tr *HealthTransition) { tr.Service = "other" },
	} {
		n.report(t, "web", "10.1.0.1:80", Up, edit)
		if got := n.states(t, "web"); got != "unknown, unknown" {
			t.Errorf("%s: %s", name, got)
		}
	}
	n.local.SetTerm(2)
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	n.wantStates(t, "web", "up, unknown")
}

func TestReportHealthRefuses(t *testing.T) {
	n := newNode(t)
	for _, tr := range []HealthTransition{{To: Unknown}, {To: "sick"}, {To: Down, Held: true}} {
		tr.Backend = addrPort("10.1.0.1:80")
		var invalid *ValidationError
		if err := n.ReportHealth(context.Background(), []HealthTransition{tr}); !errors.As(err, &invalid) {
			t.Errorf("%+v: %v", tr, err)
		}
	}
	if err := n.ReportHealth(context.Background(), nil); err != nil {
		t.Error(err)
	}
	n.put(t, checkedWeb)
	n.report(t, "web", "10.1.0.1:80", Down, func(tr *HealthTransition) { tr.Message = "\xff" + strings.Repeat("ä", 1000) })
	if m := n.service(t, "web").Backends[0].Health.Message; len(m) != maxMessage-1 || !utf8.ValidString(m) || !strings.HasPrefix(m, "\uFFFDä") {
		t.Errorf("message of %d bytes", len(m))
	}
}

// A shared check is resolved where it is used, and its change is one of every
// service that uses it.
func TestSharedChecks(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	shared := SharedCheck{Name: "probe", Check: HealthCheck{Type: "tcp"}}
	if _, err := n.Put(ctx, Object{Check: &shared}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.put(t, strings.Replace(checkedWeb, "type: tcp", "use: probe", 1))
	n.put(t, `{name: other, vip: 192.0.2.11, port: 80, backends: [{address: 10.1.0.1}]}`)
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	checks := n.service(t, "web").Checks()
	if len(checks) != 2 || checks[0].Check.Type != "tcp" || checks[0].Check.Rise != 2 {
		t.Fatalf("checks %+v", checks)
	}
	rev, err := n.Revision(ctx, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := n.Watch(WatchOptions{From: rev})
	shared.Check.Rise = 7
	if _, err := n.Put(ctx, Object{Check: &shared}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	u, err := w.Next(ctx)
	if err != nil || len(u.Services) != 1 || u.Services[0].Name != "web" || u.Services[0].Version != rev+1 {
		t.Fatalf("update %+v, %v", u, err)
	}
	if c := u.Services[0].Checks()[0]; c.Check.Rise != 7 || c.Hash == checks[0].Hash {
		t.Errorf("check %+v", c)
	}
	n.wantStates(t, "web", "up, unknown")
	// The hash of before is not that of the check any more.
	n.report(t, "web", "10.1.0.2:80", Up, func(tr *HealthTransition) { tr.CheckHash = checks[1].Hash })
	n.wantStates(t, "web", "up, unknown")
	n.report(t, "web", "10.1.0.2:80", Up, nil)
	n.wantStates(t, "web", "up, up")
}

// Since when a backend drains is the state's to say, and lasts.
func TestDrainSince(t *testing.T) {
	n := newNode(t)
	draining := `{name: web, vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1, state: drain, drain_timeout: 5m, drain_since: 2001-01-01T00:00:00Z}, {address: 10.1.0.2}]}`
	n.put(t, draining)
	begun := n.clock
	n.clock = n.clock.Add(time.Minute)
	n.put(t, strings.Replace(draining, "5m", "7m", 1))
	b := n.service(t, "web").Backends[0]
	if !b.DrainSince.Equal(begun) || !b.DrainUntil.Equal(begun.Add(7*time.Minute)) {
		t.Errorf("since %v until %v", b.DrainSince, b.DrainUntil)
	}
	n.put(t, strings.Replace(draining, "state: drain, ", "", 1))
	if b := n.service(t, "web").Backends[0]; !b.DrainSince.IsZero() || !b.DrainUntil.IsZero() {
		t.Errorf("since %v until %v", b.DrainSince, b.DrainUntil)
	}
	n.put(t, draining)
	if b := n.service(t, "web").Backends[0]; !b.DrainSince.Equal(n.clock) {
		t.Errorf("since %v", b.DrainSince)
	}
}
