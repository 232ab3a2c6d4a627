package lbstate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func configuration(t testing.TB, text string) Configuration {
	t.Helper()
	c, err := DecodeConfiguration([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const site = `
checks:
  - {name: probe, check: {type: tcp}}
services:
  - name: web
    vip: 192.0.2.10
    port: 80
    health_check: {use: probe}
    backends: [{address: 10.1.0.1}, {address: 10.1.0.2}]
`

func (p Plan) text() string {
	var lines []string
	for _, s := range p.Steps {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Action, s.Ref, strings.Trim(fmt.Sprint(s.Fields), "[]"))))
	}
	return strings.Join(lines, "; ")
}

func TestPlanAndApply(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.putOn(t, "old", 99, "")
	want := func(set Configuration, o PlanOptions, text string) Plan {
		t.Helper()
		p, err := n.Plan(ctx, set, o)
		if err != nil {
			t.Fatal(err)
		}
		if p.text() != text {
			t.Errorf("plan %s\nwant %s", p.text(), text)
		}
		return p
	}
	set := configuration(t, site)
	p := want(set, PlanOptions{}, "create check/probe; create service/web")
	pruning := want(set, PlanOptions{Prune: true}, "create check/probe; create service/web; delete service/old")
	if p.Hash == pruning.Hash {
		t.Error("two plans have the same hash")
	}
	before := n.digest(t)
	var changed *PlanChangedError
	if _, err := n.ApplyPlan(ctx, set, PlanOptions{Prune: true}, p.Hash, WriteOptions{}); !errors.As(err, &changed) || changed.Plan.Hash != pruning.Hash || !NotApplied(err) {
		t.Error(err)
	}
	if n.digest(t) != before {
		t.Error("something was written")
	}
	res, err := n.ApplyPlan(ctx, set, PlanOptions{Prune: true}, pruning.Hash, WriteOptions{Author: "ann"})
	if err != nil || res.Revision != 2 || len(res.Objects) != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	p = want(set, PlanOptions{Prune: true}, "")
	if res, err = n.ApplyPlan(ctx, set, PlanOptions{Prune: true}, p.Hash, WriteOptions{}); err != nil || res.Outcome != Unchanged {
		t.Errorf("%+v, %v", res, err)
	}

	// Field by field.
	set.Services[0].Backends[0].State = Drain
	set.Services[0].Port = 8080
	p = want(set, PlanOptions{}, `change service/web backends[10.1.0.1:80]: {"address":"10.1.0.1","forwarding":"masq","port":80,"state":"active","weight":100} → nothing `+
		`backends[10.1.0.1:8080]: nothing → {"address":"10.1.0.1","forwarding":"masq","port":8080,"state":"drain","weight":100} `+
		`backends[10.1.0.2:80]: {"address":"10.1.0.2","forwarding":"masq","port":80,"state":"active","weight":100} → nothing `+
		`backends[10.1.0.2:8080]: nothing → {"address":"10.1.0.2","forwarding":"masq","port":8080,"state":"active","weight":100} port: 80 → 8080`)
	// What was reviewed is what happens: someone else's change to the service
	// makes it another plan, one to other objects does not.
	n.putOn(t, "another", 98, "")
	if again := want(set, PlanOptions{}, p.text()); again.Hash != p.Hash {
		t.Error("another object's change moved the hash")
	}
	if _, err := n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.3")}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ApplyPlan(ctx, set, PlanOptions{}, p.Hash, WriteOptions{}); !errors.As(err, &changed) {
		t.Error(err)
	}
	between := &interrupter{Replicator: n.local, before: func() { n.putOn(t, "web", 1, "") }}
	p, err = n.Plan(ctx, set, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var conflict *ConflictError
	if _, err := NewStore(n.state, between).ApplyPlan(ctx, set, PlanOptions{}, p.Hash, WriteOptions{}); !errors.As(err, &conflict) {
		t.Error(err)
	}

	// The checks go after the services that use them.
	want(Configuration{}, PlanOptions{Prune: true}, "delete service/another; delete service/web; delete check/probe")
}

// INV-2: an apply that is repeated under its key does nothing more, and gets the
// answer of the first time, whatever the state has become since.
func TestApplyIsRepeatedUnderItsKey(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	set := configuration(t, `{services: [{name: a, vip: 192.0.2.10, port: 1}, {name: b, vip: 192.0.2.10, port: 2, backends: [{address: 10.1.0.1}]}]}`)
	p, err := n.Plan(ctx, set, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := WriteOptions{Key: "k1"}
	first, err := n.ApplyPlan(ctx, set, PlanOptions{}, p.Hash, key)
	if err != nil || len(first.Warnings) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	again := func(what string) {
		t.Helper()
		before := n.digest(t)
		res, err := n.ApplyPlan(ctx, set, PlanOptions{}, p.Hash, key)
		if diff := cmp.Diff(first, res); err != nil || diff != "" || n.digest(t) != before {
			t.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	again("at once")
	if _, err := n.DeleteService(ctx, "a", WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.putOn(t, "c", 1, "") // the set is no longer possible at all
	again("after others' changes")

	var reused *KeyReusedError
	if _, err := n.ApplyPlan(ctx, set, PlanOptions{Prune: true}, p.Hash, key); !errors.As(err, &reused) {
		t.Errorf("another apply under the key: %v", err)
	}
	var changed *PlanChangedError
	other := configuration(t, `{services: [{name: d, vip: 192.0.2.10, port: 4}]}`)
	if _, err := n.ApplyPlan(ctx, other, PlanOptions{}, p.Hash, WriteOptions{Key: "k2"}); !errors.As(err, &changed) {
		t.Errorf("a plan that was never done: %v", err)
	}
}

// Settings that were never written are patched over the defaults.
func TestPatchFirstSettings(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	res, err := n.Patch(ctx, settingsRef, []byte(`{history_age: 1h}`), WriteOptions{Key: "k"})
	if err != nil || res.Outcome != Created || res.Revision != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if again, err := n.Patch(ctx, settingsRef, []byte(`{history_age: 1h}`), WriteOptions{Key: "k"}); err != nil || again.Outcome != Created || again.Revision != 1 {
		t.Errorf("%+v, %v", again, err)
	}
	s, err := n.Settings(ctx, ReadOptions{})
	if want := (Settings{HistoryAge: Duration(time.Hour), Revision: 1}).WithDefaults(); err != nil || s != want {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := n.Patch(ctx, Ref{KindService, "web"}, []byte(`{port: 1}`), WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a service that is not there: %v", err)
	}
}

func TestPlanRefuses(t *testing.T) {
	n := newNode(t)
	n.putOn(t, "web", 80, "")
	for text, want := range map[string]string{
		`{services: [{name: a, vip: 192.0.2.10, port: 80}]}`:                                                    "vip: service web has the listener",
		`{services: [{name: a, vip: 192.0.2.10, port: 1}, {name: b, vip: 192.0.2.10, port: 1}]}`:                "vip: service b has the listener, vip: service a has the listener",
		`{services: [{name: a, vip: 192.0.2.10, port: 1}, {name: a, vip: 192.0.2.10, port: 70000}]}`:            "name: stands twice, port: 70000 is above",
		`{services: [{name: a, vip: 192.0.2.10, port: 1, health_check: {use: x}}], checks: [{name: X}]}`:        "check.type: , name: ",
		`{services: [{name: a, vip: 192.0.2.10, port: 1, health_check: {use: x}}]}`:                             `health_check.use: there is no check "x"`,
		`{settings: {history_revisions: -1}, profiles: [{name: p, snat: x}]}`:                                   "history_revisions: , snat: ",
		`{services: [{name: a, vip: 10.1.0.1, port: 1}, {name: b, vip: 192.0.2.11, port: 1, fail_open: true}]}`: "vip: 10.1.0.1 is a backend of service web",
	} {
		_, err := n.Plan(t.Context(), configuration(t, text), PlanOptions{})
		wantFaults(t, text, err, want)
	}
	_, err := DecodeConfiguration([]byte(`{services: [{nme: a}], check: [], settings: {x: 1}, profiles: [{sync_daemons: [{x: 1}]}]}`))
	wantFaults(t, "unknown fields", err, "check: , profiles[0].sync_daemons[0].x: , services[0].nme: , settings.x: ")
}

// A configuration comes back from its YAML, and from the state by a plan.
func TestConfigurationRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := newNode(t), newNode(t)
		cmds, terms := drawLog(rt)
		for i, cmd := range cmds {
			a.local.SetTerm(terms[i])
			if _, _, err := a.local.Propose(t.Context(), cmd); err != nil {
				rt.Fatal(err)
			}
		}
		c, _, err := a.Configuration(t.Context(), ReadOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		if c.Validate() != nil {
			return // a random command put what no Store would have let in
		}
		text, err := c.YAML()
		if err != nil {
			rt.Fatal(err)
		}
		set, err := DecodeConfiguration(text)
		if err != nil {
			rt.Fatalf("%v:\n%s", err, text)
		}
		for _, n := range []*node{a, b} {
			p, err := n.Plan(t.Context(), set, PlanOptions{Prune: true})
			if err != nil {
				rt.Fatalf("%v:\n%s", err, text)
			}
			if n == a && len(p.Steps) > 0 {
				rt.Fatalf("what was just read differs: %s", p.text())
			}
			if _, err := n.ApplyPlan(t.Context(), set, PlanOptions{Prune: true}, p.Hash, WriteOptions{}); err != nil {
				rt.Fatal(err)
			}
			got, _, err := n.Configuration(t.Context(), ReadOptions{})
			if err != nil {
				rt.Fatal(err)
			}
			if plainText(rt, got) != plainText(rt, c) {
				rt.Fatalf("got %s\nwant %s", plainText(rt, got), plainText(rt, c))
			}
		}
	})
}

func TestPatch(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.put(t, checkedWeb)
	ref := Ref{KindService, "web"}
	for _, c := range []struct{ patch, want string }{
		{`{notes: x, labels: {a: b, c: d}}`, `notes: nothing → "x", labels: nothing → {"a":"b","c":"d"}`},
		{`{"notes": null, "labels": {"a": null, "e": "f"}}`, `labels.a: "b" → nothing, labels.e: nothing → "f", notes: "x" → nothing`},
		{`{health_check: {interval: 5s}}`, `health_check.interval: "2s" → "5s"`},
		{`{health_check: null, persistence: {}}`, `health_check: , persistence: nothing → {"prefix":32,"timeout":"5m0s"}`},
		{`{backends: [{address: 10.1.0.9}]}`, `backends[10.1.0.1:80]: , backends[10.1.0.2:80]: , backends[10.1.0.9:80]: `},
		{`{scheduler: null}`, ""},
		{`{}`, ""},
	} {
		before, err := n.Object(ctx, ref, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		res, err := n.Patch(ctx, ref, []byte(c.patch), WriteOptions{})
		if err != nil {
			t.Errorf("%s: %v", c.patch, err)
			continue
		}
		after, err := n.Object(ctx, ref, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d, _, err := diffObjects(before, after)
		if err != nil {
			t.Fatal(err)
		}
		if (len(d.Fields) == 0) != (res.Outcome == Unchanged) {
			t.Errorf("%s: %s", c.patch, res.Outcome)
		}
		text := fmt.Sprint(d.Fields)
		for _, part := range strings.Split(c.want, ", ") {
			if !strings.Contains(text, part) {
				t.Errorf("%s: %s is not in %s", c.patch, part, text)
			}
		}
	}
	_, err := n.Patch(ctx, ref, []byte(`{name: other, port: 1}`), WriteOptions{})
	wantFaults(t, "rename", err, "name: cannot be changed")
	_, err = n.Patch(ctx, ref, []byte(`{prt: 1}`), WriteOptions{})
	wantFaults(t, "unknown field", err, "prt: there is no such field")
	_, err = n.Patch(ctx, ref, []byte(`{port: 70000, scheduler: x}`), WriteOptions{})
	wantFaults(t, "out of range", err, "port: , scheduler: ")
	_, err = n.Patch(ctx, ref, []byte(`[]`), WriteOptions{})
	wantFaults(t, "a list", err, ": not JSON or YAML")
	if _, err = n.Patch(ctx, Ref{KindService, "nobody"}, []byte(`{}`), WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	var conflict *ConflictError
	if _, err = n.Patch(ctx, ref, []byte(`{revision: 1, notes: again}`), WriteOptions{}); !errors.As(err, &conflict) {
		t.Error(err)
	}
	if _, err = n.Patch(ctx, ref, []byte(`{notes: again}`), WriteOptions{IfRevision: rev(1)}); !errors.As(err, &conflict) {
		t.Error(err)
	}
	for _, ref := range []Ref{{KindCheck, "c"}, {KindProfile, "p"}, settingsRef} {
		o := map[Kind]Object{KindCheck: {Check: &SharedCheck{Name: "c", Check: HealthCheck{Type: "tcp"}}}, KindProfile: {Profile: &DirectorProfile{Name: "p"}}, KindSettings: {Settings: &Settings{}}}[ref.Kind]
		if _, err := n.Put(ctx, o, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		patch := map[Kind]string{KindCheck: `{check: {fall: 9}}`, KindProfile: `{guard: {max_percent: 9}}`, KindSettings: `{history_age: 9h}`}[ref.Kind]
		if res, err := n.Patch(ctx, ref, []byte(patch), WriteOptions{}); err != nil || res.Outcome != Changed {
			t.Errorf("%s: %+v, %v", ref, res, err)
		}
	}

	// What others change meanwhile stays, and a repeated patch is one.
	between := &interrupter{Replicator: n.local}
	between.before = func() {
		between.before = nil
		n.putOn(t, "web", 7, "")
	}
	other := NewStore(n.state, between)
	const mine = `{notes: mine, backends: [{address: 10.1.0.7, health_check: {type: tcp}}]}`
	res, err := other.Patch(ctx, ref, []byte(mine), WriteOptions{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if s := n.service(t, "web"); s.Port != 7 || s.Notes != "mine" || len(s.Backends) != 1 || s.Backends[0].Check == nil {
		t.Errorf("%+v", s.Service)
	}
	n.putOn(t, "web", 8, "")
	if again, err := other.Patch(ctx, ref, []byte(mine), WriteOptions{Key: "k"}); err != nil || again.Revision != res.Revision {
		t.Errorf("%+v, %v", again, err)
	}
	if s := n.service(t, "web"); s.Port != 8 || s.Notes != "" {
		t.Errorf("%+v", s.Service)
	}
}

func TestProfileFor(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	for _, text := range []string{
		`{name: b}`, `{name: a}`,
		`{name: east, agents: {site: east}, priority: 10}`,
		`{name: first, agents: {site: east, role: first}, priority: 20}`,
	} {
		p, err := DecodeProfile([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Put(ctx, Object{Profile: &p}, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, "a"},
		{map[string]string{"site": "west"}, "a"},
		{map[string]string{"site": "east"}, "east"},
		{map[string]string{"site": "east", "role": "first"}, "first"},
	} {
		if p, ok, err := n.ProfileFor(ctx, c.labels, ReadOptions{}); err != nil || !ok || p.Name != c.want {
			t.Errorf("%v: %s, %v", c.labels, p.Name, err)
		}
	}
	if objects, rev, err := n.Objects(ctx, KindProfile, ReadOptions{}); err != nil || len(objects) != 4 || rev != 4 || objects[0].Ref().Name != "a" {
		t.Errorf("%v, %d, %v", objects, rev, err)
	}
	if _, _, err := n.Objects(ctx, "thing", ReadOptions{}); err == nil {
		t.Error("there is a kind that there is not")
	}
	if s, err := n.Settings(ctx, ReadOptions{}); err != nil || s.ChangeRevisions != 10_000 {
		t.Errorf("%+v, %v", s, err)
	}
}
