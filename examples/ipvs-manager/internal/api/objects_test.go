package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	up   = `{"check": {"type": "http", "path": "/up"}, "notes": "of the shop"}`
	edge = `{"agents": {"zone": "a"}, "timeouts": {"tcp": "900s"}, "allowed_prefixes": ["192.0.2.0/24"], "guard": {}}`
)

// each object of its own path, with a change of it and what a patch makes of it.
var objects = []struct {
	path, body string
	patch      string // a change
	says       string // of the patched object, as compact YAML
	bad        string // a body that is refused
	faults     string
}{
	{"/api/v1/services/web", web, `{"labels": {"team": "shop"}, "backends": [{"address": "10.1.0.9"}]}`, "team: shop", `{"vip": "192.0.2.10", "port": 0, "scheduler": "best"}`, "port scheduler"},
	{"/api/v1/checks/up", up, `{"check": {"rise": 5}, "notes": null}`, "rise: 5", `{"check": {"type": "http", "path": "/up", "rise": 999, "fall": -1}}`, "check.rise check.fall"},
	{"/api/v1/profiles/edge", edge, `{"priority": 3, "guard": null}`, "priority: 3", `{"timeouts": {"tcp": "1.5s"}, "snat": "maybe"}`, "timeouts.tcp snat"},
	{"/api/v1/settings", `{"history_revisions": 500}`, `{"history_age": "720h"}`, "history_age: 720h0m0s", `{"history_revisions": -1, "idempotency_keys": -1}`, "history_revisions idempotency_keys"},
}

// Every kind of object is written, read, patched and deleted in the same way.
func TestObjects(t *testing.T) {
	for _, test := range objects {
		t.Run(strings.TrimPrefix(test.path, "/api/v1/"), func(t *testing.T) {
			w := newWorld(t)
			single := test.path == "/api/v1/settings"
			if !single {
				w.do(http.MethodGet, test.path, "").problem(http.StatusNotFound)
				w.do(http.MethodPatch, test.path, test.patch, "Content-Type: "+mediaPatch).problem(http.StatusNotFound)
			}

			var res lbstate.WriteResult
			a := w.do(http.MethodPut, test.path+"?reason=first", test.body, "If-None-Match: *")
			a.ok(http.StatusCreated, &res)
			if res.Outcome != lbstate.Created || res.Revision != 1 || a.header.Get("Location") != test.path || a.header.Get("ETag") != `"1"` {
				t.Errorf("created: %+v, %v", res, a.header)
			}
			w.do(http.MethodPut, test.path, test.body, "If-None-Match: *").problem(http.StatusPreconditionFailed)

			// What is read can be written as it is, and changes nothing.
			view := test.path
			if strings.Contains(view, "services") {
				view += "?view=config"
			}
			for _, accept := range []string{mediaJSON, mediaYAML} {
				a = w.do(http.MethodGet, view, "", "Accept: "+accept)
				if a.status != http.StatusOK || a.header.Get("Content-Type") != accept {
					t.Fatalf("%d %v: %s", a.status, a.header, a.body)
				}
				w.do(http.MethodPut, test.path, string(a.body), "Content-Type: "+accept, "If-Match: "+a.header.Get("ETag")).ok(http.StatusOK, &res)
				if res.Outcome != lbstate.Unchanged {
					t.Errorf("%s again: %+v\n%s", accept, res, a.body)
				}
				if b := w.do(http.MethodGet, view, "", "Accept: "+accept, "If-None-Match: "+a.header.Get("ETag")); b.status != http.StatusNotModified {
					t.Errorf("with its tag: %d", b.status)
				}
			}

			// A patch changes what it names.
			w.do(http.MethodPatch, test.path, test.patch, "Content-Type: "+mediaPatch, `If-Match: "7"`).problem(http.StatusPreconditionFailed)
			w.do(http.MethodPatch, test.path, test.patch, "Content-Type: "+mediaPatch, `If-Match: "1"`).ok(http.StatusOK, &res)
			if res.Outcome != lbstate.Changed || res.Revision != 2 {
				t.Errorf("patched: %+v", res)
			}
			asYAML, err := yaml.JSONToYAML([]byte(test.patch))
			if err != nil {
				t.Fatal(err)
			}
			w.do(http.MethodPatch, test.path, string(asYAML), "Content-Type: "+mediaYAML).ok(http.StatusOK, &res)
			if res.Outcome != lbstate.Unchanged {
				t.Errorf("patched again, in YAML: %+v", res)
			}
			a = w.do(http.MethodGet, test.path, "", "Accept: "+mediaYAML)
			if !strings.Contains(string(a.body), test.says) {
				t.Errorf("patched to\n%s", a.body)
			}

			// What is bad is refused with all its faults.
			for _, method := range []string{http.MethodPut, http.MethodPatch} {
				typ := "Content-Type: " + mediaJSON
				if method == http.MethodPatch {
					typ = "Content-Type: " + mediaPatch
				}
				if p := w.do(method, test.path, test.bad, typ).problem(http.StatusUnprocessableEntity); !sameWords(p.paths(), test.faults) {
					t.Errorf("%s: faults of %q, want %q: %v", method, p.paths(), test.faults, p)
				}
				if p := w.do(method, test.path, `{"hue": 1, "revision": 2}`, typ).problem(http.StatusBadRequest); p.paths() != "hue" {
					t.Errorf("%s: %v", method, p)
				}
				if !single {
					if p := w.do(method, test.path, `{"name": "other"}`, typ).problem(http.StatusUnprocessableEntity); !strings.Contains(p.paths(), "name") {
						t.Errorf("%s: %v", method, p)
					}
				}
			}
			w.do(http.MethodPatch, test.path, `{"revision": 1}`, "Content-Type: "+mediaPatch).problem(http.StatusConflict)
			w.do(http.MethodPatch, test.path, `[]`, "Content-Type: "+mediaPatch).problem(http.StatusBadRequest)
			w.do(http.MethodPatch, test.path, `{`, "Content-Type: "+mediaPatch).problem(http.StatusBadRequest)
			a = w.do(http.MethodPatch, test.path, test.patch, "Content-Type: "+mediaJSON)
			if a.problem(http.StatusUnsupportedMediaType); a.header.Get("Accept-Patch") != mediaPatch+", "+mediaYAML {
				t.Errorf("%v", a.header)
			}
			if a = w.do(http.MethodOptions, test.path, ""); a.header.Get("Accept-Patch") == "" {
				t.Errorf("OPTIONS: %v", a.header)
			}
			w.do(http.MethodPatch, test.path, `{"notes": "`+strings.Repeat("x", maxBody)+`"}`, "Content-Type: "+mediaPatch).problem(http.StatusRequestEntityTooLarge)
			w.do(http.MethodPut, test.path+"?reason="+strings.Repeat("x", maxReason+1), test.body).problem(http.StatusBadRequest)

			if single {
				w.do(http.MethodDelete, test.path, "").problem(http.StatusMethodNotAllowed)
				return
			}
			w.do(http.MethodDelete, test.path, "", `If-Match: "1"`).problem(http.StatusPreconditionFailed)
			w.do(http.MethodDelete, test.path, "", `If-Match: "2"`).ok(http.StatusOK, &res)
			if res.Outcome != lbstate.Deleted || res.Revision != 3 {
				t.Errorf("deleted: %+v", res)
			}
			w.do(http.MethodDelete, test.path, "").problem(http.StatusNotFound)
		})
	}
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct{ path, field, object, body string }{
		{"/api/v1/checks", "checks", "/api/v1/checks/up", up},
		{"/api/v1/profiles", "profiles", "/api/v1/profiles/edge", edge},
	} {
		a := w.do(http.MethodGet, test.path, "")
		a.ok(http.StatusOK, nil)
		if !strings.Contains(string(a.body), `"`+test.field+`": []`) {
			t.Errorf("an empty list: %s", a.body)
		}
		w.put(test.object, test.body)
		var list map[string]any
		a = w.do(http.MethodGet, test.path+"?stale=true", "")
		a.ok(http.StatusOK, &list)
		if found, _ := list[test.field].([]any); len(found) != 1 || list["revision"] == 0.0 {
			t.Errorf("%s", a.body)
		}
		if b := w.do(http.MethodGet, test.path, "", "If-None-Match: "+a.header.Get("ETag")); b.status != http.StatusNotModified {
			t.Errorf("with its tag: %d", b.status)
		}
		w.do(http.MethodGet, test.path+"?stale=x", "").problem(http.StatusBadRequest)
		w.do(http.MethodGet, test.object+"?stale=x", "").problem(http.StatusBadRequest)
	}
}

// A check that is used cannot go, and the answer says by whom.
func TestSharedCheckThatIsUsed(t *testing.T) {
	w := newWorld(t)
	body := strings.Replace(web, "{", `{"health_check": {"use": "up"}, `, 1)
	if p := w.do(http.MethodPut, "/api/v1/services/web", body).problem(http.StatusUnprocessableEntity); !strings.Contains(p.String(), "up") {
		t.Errorf("%v", p)
	}
	w.put("/api/v1/checks/up", up)
	w.put("/api/v1/services/web", body)
	if p := w.do(http.MethodDelete, "/api/v1/checks/up", "").problem(http.StatusUnprocessableEntity); !strings.Contains(p.String(), "web") {
		t.Errorf("%v", p)
	}
	var s lbstate.ServiceStatus
	w.do(http.MethodGet, "/api/v1/services/web", "").ok(http.StatusOK, &s)
	if c := s.Backends[0].Check; c == nil || c.Path != "/up" {
		t.Errorf("%+v", s.Backends[0])
	}
}

// Settings are there before anyone writes them, and can be patched.
func TestFirstSettings(t *testing.T) {
	const path = "/api/v1/settings"
	w := newWorld(t)
	var s lbstate.Settings
	a := w.do(http.MethodGet, path, "")
	a.ok(http.StatusOK, &s)
	if s != (lbstate.Settings{}.WithDefaults()) || a.header.Get("ETag") != `"0"` {
		t.Errorf("%+v, %v", s, a.header)
	}
	var res lbstate.WriteResult
	patch := func(body string, headers ...string) answer {
		return w.do(http.MethodPatch, path, body, append(headers, "Content-Type: "+mediaPatch)...)
	}
	if p := patch(`{"history_age": "1h"}`, `If-Match: "3"`).problem(http.StatusPreconditionFailed); p.Revision == nil || *p.Revision != 0 {
		t.Errorf("%v", p)
	}
	patch(`{"history_age": "x"}`).problem(http.StatusUnprocessableEntity)
	patch(`{"hue": 1}`).problem(http.StatusBadRequest)
	for range 2 { // the second has no effect
		patch(`{"history_age": "1h"}`, "Idempotency-Key: a").ok(http.StatusCreated, &res)
		if res.Outcome != lbstate.Created || res.Revision != 1 {
			t.Errorf("%+v", res)
		}
	}
	if p := patch(`{"history_age": "2h"}`, "Idempotency-Key: a").problem(http.StatusUnprocessableEntity); p.Type != typeKey {
		t.Errorf("%v", p)
	}
	patch(`{"history_revisions": 900}`, `If-Match: "1"`).ok(http.StatusOK, &res)
	w.do(http.MethodGet, path, "").ok(http.StatusOK, &s)
	if s.HistoryRevisions != 900 || s.HistoryAge.String() != "1h0m0s" || s.Revision != 2 {
		t.Errorf("%+v", s)
	}
}

// A write that is repeated under its key has no effect, and the same answer.
func TestIdempotencyKeys(t *testing.T) {
	w := newWorld(t)
	second := strings.Replace(web, "7", "8", 1)
	for i, test := range []struct {
		method, path, body, typ string
		status                  int
	}{
		{http.MethodPut, "/api/v1/services/web", web, mediaJSON, 201},
		{http.MethodPatch, "/api/v1/services/web", `{"notes": "x"}`, mediaPatch, 200},
		{http.MethodPut, "/api/v1/services/web/backends/10.1.0.2:80", `{}`, mediaJSON, 200},
		{http.MethodDelete, "/api/v1/services/web/backends/10.1.0.2:80", "", "", 200},
		{http.MethodPut, "/api/v1/checks/up", up, mediaJSON, 201},
		{http.MethodDelete, "/api/v1/checks/up", "", "", 200},
		{http.MethodPut, "/api/v1/settings", `{"history_revisions": 5}`, mediaJSON, 201},
	} {
		key := fmt.Sprintf(`Idempotency-Key: "key %d"`, i)
		var first, again lbstate.WriteResult
		w.do(test.method, test.path, test.body, "Content-Type: "+test.typ, key).ok(test.status, &first)
		w.do(test.method, test.path, test.body, "Content-Type: "+test.typ, key).ok(test.status, &again)
		if first.Revision != again.Revision || first.Outcome != again.Outcome || first.Revision != uint64(i+1) {
			t.Errorf("%s %s: %+v, then %+v", test.method, test.path, first, again)
		}
		// The key without quotes is the same key.
		p := w.do(http.MethodPut, "/api/v1/services/web", second, strings.ReplaceAll(key, `"`, "")).problem(http.StatusUnprocessableEntity)
		if p.Type != typeKey || p.Outcome != notApplied {
			t.Errorf("another change under the key: %v", p)
		}
	}
	for _, key := range []string{`""`, `"`, "a,b", `"a\b"`, "\xff", strings.Repeat("x", maxIdempotencyKey+1)} {
		if p := w.do(http.MethodPut, "/api/v1/services/web", second, "Idempotency-Key: "+key).problem(http.StatusBadRequest); !strings.Contains(p.Detail, "Idempotency-Key") {
			t.Errorf("%q: %v", key, p)
		}
	}
	w.do(http.MethodPut, "/api/v1/services/web", second, "Idempotency-Key: "+strings.Repeat("x", maxIdempotencyKey)).ok(http.StatusOK, nil)
}
