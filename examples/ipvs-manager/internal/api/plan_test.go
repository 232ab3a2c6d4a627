package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

const shop = `
checks:
- {name: up, check: {type: http, path: /up}}
services:
- name: web
  vip: 192.0.2.10
  port: 80
  health_check: {use: up}
  backends:
  - {address: 10.1.0.1, port: 8080, weight: 9}
  - {address: 10.1.0.2, port: 8080}
`

func (w *world) plan(query, yaml string) lbstate.Plan {
	w.t.Helper()
	var p lbstate.Plan
	w.do(http.MethodPost, "/api/v1/plan"+query, yaml, "Content-Type: "+mediaYAML).ok(http.StatusOK, &p)
	return p
}

func TestPlanAndApply(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	w.put("/api/v1/services/old", `{"vip": "192.0.2.11", "port": 80, "backends": [{"address": "10.1.0.7"}]}`)
	p := w.plan("", shop)
	if len(p.Steps) != 2 || p.Steps[0].Action != lbstate.ActionCreate || p.Steps[1].Action != lbstate.ActionChange || p.Revision != 2 || p.Hash == "" {
		t.Errorf("%+v", p)
	}
	var fields []string
	for _, f := range p.Steps[1].Fields {
		fields = append(fields, f.Path)
	}
	if !sameWords(strings.Join(fields, " "), "backends[10.1.0.1:8080].weight backends[10.1.0.2:8080] health_check") {
		t.Errorf("%+v", p.Steps[1])
	}
	pruned := w.plan("?prune=true", shop)
	if len(pruned.Steps) != 3 || pruned.Hash == p.Hash {
		t.Errorf("%+v", pruned)
	}
	if again := w.plan("", shop); again.Hash != p.Hash {
		t.Errorf("the same plan has hash %s, then %s", p.Hash, again.Hash)
	}

	// What happens is what was reviewed, or nothing.
	apply := func(query, hash string) answer {
		return w.do(http.MethodPost, "/api/v1/apply?hash="+hash+query, shop, "Content-Type: "+mediaYAML)
	}
	if p := apply("&prune=true", p.Hash).problem(http.StatusConflict); p.Type != typePlan || p.Plan == nil || p.Plan.Hash != pruned.Hash || p.Outcome != notApplied {
		t.Errorf("%v", p)
	}
	w.put("/api/v1/services/web/backends/10.1.0.1:8080", `{"weight": 5}`) // revision 3
	changed := apply("", p.Hash).problem(http.StatusConflict)
	if changed.Plan == nil || changed.Plan.Revision != 3 {
		t.Fatalf("%v", changed)
	}
	var res lbstate.BatchResult
	apply("&reason=the+shop+grows", changed.Plan.Hash).ok(http.StatusOK, &res)
	if res.Revision != 4 || len(res.Objects) != 2 || res.Outcome != lbstate.Changed {
		t.Errorf("%+v", res)
	}
	// Applied again there is nothing to do, which the plan in the answer says.
	if p := apply("", changed.Plan.Hash).problem(http.StatusConflict); p.Plan == nil || len(p.Plan.Steps) != 0 {
		t.Errorf("%v", p)
	}
	empty := w.plan("", shop)
	var twice lbstate.BatchResult
	keyed := func(into *lbstate.BatchResult) {
		w.do(http.MethodPost, "/api/v1/apply?hash="+empty.Hash, shop, "Content-Type: "+mediaYAML, `Idempotency-Key: "once"`).ok(http.StatusOK, into)
	}
	keyed(&res)
	if res.Outcome != lbstate.Unchanged || res.Revision != 4 || res.Objects == nil {
		t.Errorf("%+v", res)
	}
	apply("&prune=true", w.plan("?prune=true", shop).Hash).ok(http.StatusOK, &res)
	w.do(http.MethodGet, "/api/v1/services/old", "").problem(http.StatusNotFound)
	var list historyList
	w.do(http.MethodGet, "/api/v1/history?limit=2", "").ok(http.StatusOK, &list)
	if len(list.History) != 2 || list.History[1].Reason != "the shop grows" {
		t.Errorf("%+v", list)
	}
	w.put("/api/v1/services/web/backends/10.1.0.1:8080", `{"weight": 6}`)
	if keyed(&twice); twice.Revision != 4 || twice.Outcome != lbstate.Unchanged {
		t.Errorf("repeated under its key: %+v", twice)
	}
}

func TestBadPlansAreRefused(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	for _, test := range []struct {
		body, query string
		status      int
		paths       string
	}{
		{`{`, "", 400, ""},
		{`[]`, "", 400, ""},
		{`{"service": []}`, "", 400, "service"},
		{`{"services": [{"name": "a", "hue": 1}], "checks": [7]}`, "", 400, "services[0].hue checks[0]"},
		{`{"services": [{"name": "a", "vip": "x"}]}`, "", 422, "services[0].vip"},
		{`{"services": [{"name": "a", "vip": "192.0.2.9", "port": 99999}, {"name": "b", "vip": "192.0.2.8", "port": 80}, {"name": "b", "vip": "192.0.2.7", "port": 80}]}`, "", 422, "port name"},
		{`{"services": [{"name": "a", "vip": "192.0.2.10", "port": 80}]}`, "", 422, "vip"},
		{`{"services": [{"name": "a", "vip": "192.0.2.9", "port": 80, "health_check": {"use": "none"}}]}`, "", 422, "health_check.use"},
		{`{}`, "&prune=x", 400, ""},
	} {
		for _, path := range []string{"/api/v1/plan?x=y", "/api/v1/apply?hash=x"} {
			if p := w.do(http.MethodPost, path+test.query, test.body).problem(test.status); !sameWords(p.paths(), test.paths) {
				t.Errorf("%s %s: faults of %q, want %q: %v", path, test.body, p.paths(), test.paths, p)
			}
		}
	}
	w.do(http.MethodPost, "/api/v1/plan", `{}`, "Content-Type: text/plain").problem(http.StatusUnsupportedMediaType)
	if p := w.do(http.MethodPost, "/api/v1/apply", `{}`).problem(http.StatusBadRequest); !strings.Contains(p.Detail, "/api/v1/plan") {
		t.Errorf("%v", p)
	}
	w.do(http.MethodPost, "/api/v1/apply?hash=x", `{}`, `If-Match: "1"`).problem(http.StatusBadRequest)
	w.do(http.MethodPost, "/api/v1/apply?hash=x", `{}`).problem(http.StatusConflict)

	// So many are read at once, and no more.
	for range maxReading {
		w.api.reading <- struct{}{}
	}
	a := w.do(http.MethodPost, "/api/v1/plan", `{}`)
	if p := a.problem(http.StatusServiceUnavailable); p.Type != typeUnavailable || p.Outcome != notApplied || a.header.Get("Retry-After") == "" {
		t.Errorf("%v, %v", p, a.header)
	}
	<-w.api.reading
	w.do(http.MethodPost, "/api/v1/plan", `{}`).ok(http.StatusOK, nil)
	w.do(http.MethodPost, "/api/v1/plan", `{}`).ok(http.StatusOK, nil) // a place is given back
}

// A story: a service is put and changed, the history is read, what was done is
// undone, then a file is planned, reviewed and applied, as one revision each.
func TestStory(t *testing.T) {
	w := newWorld(t)
	var written lbstate.WriteResult
	a := w.do(http.MethodPut, "/api/v1/services/web?reason=open", web, "If-None-Match: *")
	a.ok(http.StatusCreated, &written)
	opened := written.Revision
	w.do(http.MethodPatch, "/api/v1/services/web?reason=drain", `{"backends": [{"address": "10.1.0.1", "port": 8080, "weight": 7, "state": "drain"}]}`,
		"Content-Type: "+mediaPatch, "If-Match: "+a.header.Get("ETag")).ok(http.StatusOK, &written)

	var list historyList
	w.do(http.MethodGet, "/api/v1/history?object=service/web", "").ok(http.StatusOK, &list)
	if revisions(list.History) != "2 1" || list.History[0].Reason != "drain" || list.History[1].Reason != "open" {
		t.Fatalf("%+v", list)
	}
	var d diff
	w.do(http.MethodGet, "/api/v1/diff?from=1&to=2", "").ok(http.StatusOK, &d)
	if len(d.Diff) != 1 || len(d.Diff[0].Fields) != 1 || d.Diff[0].Fields[0].String() != `backends[10.1.0.1:8080].state: "active" → "drain"` {
		t.Fatalf("%+v", d)
	}

	var done lbstate.BatchResult
	config := w.do(http.MethodGet, "/api/v1/config", "")
	w.do(http.MethodPost, "/api/v1/rollback", `{"revision": 1, "reason": "a mistake"}`, "If-Match: "+config.header.Get("ETag")).ok(http.StatusOK, &done)
	var s lbstate.ServiceStatus
	w.do(http.MethodGet, "/api/v1/services/web", "").ok(http.StatusOK, &s)
	if s.Backends[0].State != lbstate.Active || s.Revision != done.Revision || opened != 1 {
		t.Fatalf("%+v after %+v", s, done)
	}

	file := string(w.do(http.MethodGet, "/api/v1/config", "", "Accept: "+mediaYAML).body)
	file = strings.Replace(file, "weight: 7", "weight: 70", 1)
	p := w.plan("?prune=true", file)
	if len(p.Steps) != 1 || len(p.Steps[0].Fields) != 1 || p.Steps[0].Fields[0].Path != "backends[10.1.0.1:8080].weight" {
		t.Fatalf("%+v", p)
	}
	w.do(http.MethodPost, "/api/v1/apply?prune=true&reason=from+the+file&hash="+p.Hash, file, "Content-Type: "+mediaYAML).ok(http.StatusOK, &done)
	w.do(http.MethodGet, "/api/v1/history", "").ok(http.StatusOK, &list)
	if revisions(list.History) != "4 3 2 1" || list.History[0].Reason != "from the file" || list.History[1].Reason != "a mistake" {
		t.Fatalf("%+v", list)
	}
}
