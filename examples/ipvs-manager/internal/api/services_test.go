package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ipvskit/ipvskit/lbstate"
)

func TestServiceIsWrittenReadAndDeleted(t *testing.T) {
	w := newWorld(t)
	var list serviceList
	w.do(http.MethodGet, "/api/v1/services", "").ok(http.StatusOK, &list)
	if list.Services == nil || len(list.Services) != 0 {
		t.Errorf("an empty list is %+v, not []", list)
	}

	var res lbstate.WriteResult
	a := w.do(http.MethodPut, "/api/v1/services/web", web)
	a.ok(http.StatusCreated, &res)
	if res.Outcome != lbstate.Created || res.Revision == 0 || a.header.Get("Location") != "/api/v1/services/web" {
		t.Errorf("created: %+v, %v", res, a.header)
	}
	created := res.Revision

	var s lbstate.ServiceStatus
	a = w.do(http.MethodGet, "/api/v1/services/web", "")
	a.ok(http.StatusOK, &s)
	if s.Name != "web" || s.VIP != netip.MustParseAddr("192.0.2.10") || s.Scheduler != "wlc" || s.Revision != created ||
		len(s.Backends) != 1 || s.Backends[0].EffectiveWeight != 7 || s.Backends[0].Reason != lbstate.InService {
		t.Errorf("read back: %s", a.body)
	}
	if a.header.Get("ETag") == "" || a.header.Get("Vary") != "Accept" {
		t.Errorf("headers: %v", a.header)
	}

	// What is read can be written as it is, and changes nothing (but for what
	// the state makes of it, which is not configuration).
	w.do(http.MethodPut, "/api/v1/services/web", web).ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Unchanged || res.Revision != created {
		t.Errorf("an equal put: %+v", res)
	}
	w.do(http.MethodPut, "/api/v1/services/web", strings.Replace(web, "7", "8", 1)).ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Changed || res.Revision <= created {
		t.Errorf("a change: %+v", res)
	}
	w.do(http.MethodPut, "/api/v1/services/empty", `{"vip": "192.0.2.11", "port": 80}`).ok(http.StatusCreated, &res)
	if len(res.Warnings) != 1 || res.Warnings[0].Path != "backends" {
		t.Errorf("a service without backends: %+v", res)
	}

	w.do(http.MethodGet, "/api/v1/services", "").ok(http.StatusOK, &list)
	if len(list.Services) != 2 || list.Services[0].Name != "empty" || list.Services[1].Name != "web" || list.Revision != res.Revision {
		t.Errorf("list: %+v", list)
	}
	w.do(http.MethodGet, "/api/v1/services?stale=true", "").ok(http.StatusOK, &list)

	w.do(http.MethodDelete, "/api/v1/services/web", "").ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Deleted {
		t.Errorf("deleted: %+v", res)
	}
	w.do(http.MethodDelete, "/api/v1/services/web", "").problem(http.StatusNotFound)
	p := w.do(http.MethodGet, "/api/v1/services/web", "").problem(http.StatusNotFound)
	if !strings.Contains(p.Detail, "web") || p.Instance != "/api/v1/services/web" {
		t.Errorf("%v", p)
	}
}

func TestServiceInYAML(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodPut, "/api/v1/services/web", "name: web\nvip: 192.0.2.10 # of the shop\nport: 80\nbackends:\n- {address: 10.1.0.1, port: 8080}\n",
		"Content-Type: application/yaml; charset=utf-8").ok(http.StatusCreated, nil)
	a := w.do(http.MethodGet, "/api/v1/services/web", "", "Accept: application/yaml")
	var s struct{ Name, VIP string }
	if err := yaml.Unmarshal(a.body, &s); err != nil || a.header.Get("Content-Type") != mediaYAML || strings.HasPrefix(string(a.body), "{") || s.Name != "web" {
		t.Errorf("%v: %v\n%s", a.header, err, a.body)
	}
	// Another representation has another tag.
	if tag := w.do(http.MethodGet, "/api/v1/services/web", "").header.Get("ETag"); tag == a.header.Get("ETag") {
		t.Errorf("YAML and JSON have the same tag, %s", tag)
	}
	// Either tag is good for a write.
	w.do(http.MethodDelete, "/api/v1/services/web", "", "If-Match: "+a.header.Get("ETag")).ok(http.StatusOK, nil)
}

// What ?view=config shows can be written as it is, and changes nothing.
func TestConfigurationCanBeWrittenAgain(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	w.put("/api/v1/services/dns", `{"vip": "2001:db8::53", "port": 53, "protocol": "udp", "one_packet": true, "agents": {"zone": "a"},
		"health_check": {"type": "tcp", "address": "2001:db8::99"}, "backends": [{"address": "2001:db8:1::1", "state": "drain"}, {"address": "2001:db8:1::2", "health_check": {"type": "http", "path": "/up"}}]}`)
	w.put("/api/v1/services/mark", `{"fwmark": 7, "family": "ipv6", "persistence": {"timeout": "300s"}, "scheduler": "sh", "scheduler_flags": ["sh-port"]}`)
	var list configurations
	w.do(http.MethodGet, "/api/v1/services?view=config", "").ok(http.StatusOK, &list)
	if len(list.Services) != 3 {
		t.Fatalf("%+v", list)
	}
	for _, s := range list.Services {
		for _, accept := range []string{mediaJSON, mediaYAML} {
			a := w.do(http.MethodGet, "/api/v1/services/"+s.Name+"?view=config", "", "Accept: "+accept)
			if status := w.do(http.MethodGet, "/api/v1/services/"+s.Name, "", "Accept: "+accept); status.header.Get("ETag") == a.header.Get("ETag") {
				t.Errorf("%s: configuration and status have one tag", s.Name)
			}
			var res lbstate.WriteResult
			w.do(http.MethodPut, "/api/v1/services/"+s.Name, string(a.body), "Content-Type: "+accept, "If-Match: "+a.header.Get("ETag")).ok(http.StatusOK, &res)
			if res.Outcome != lbstate.Unchanged {
				t.Errorf("%s as %s: %+v\n%s", s.Name, accept, res, a.body)
			}
		}
	}
	w.do(http.MethodGet, "/api/v1/services?view=all", "").problem(http.StatusBadRequest)
	w.do(http.MethodGet, "/api/v1/services/web?view=all", "").problem(http.StatusBadRequest)
}

// Each bad body is refused with the paths of all its faults, and nothing is
// written (INV-41).
func TestBadServicesAreRefused(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name, body string
		status     int
		paths      string
		says       string // part of the problem
	}{
		{"not JSON", `{"vip": `, 400, "", "line 1"},
		{"line and column", "{\n  \"vip\": x}", 400, "", "line 2, column 10"},
		{"empty", ` `, 400, "", "empty"},
		{"a list", `[]`, 400, "", "object"},
		{"null", `null`, 400, "", "object"},
		{"text after it", `{} {}`, 400, "", "not JSON"},
		{"a field twice", `{"port": 1, "port": 2}`, 400, "", "port"},
		{"unknown fields, each", `{"vip": "192.0.2.10", "hue": 1, "backends": [{"addr": "x"}]}`, 400, "backends[0].addr hue", "no such field"},
		{"unknown and wrong", `{"vip": 7, "hue": 1}`, 400, "hue vip", ""},
		{"types", `{"vip": "x", "port": "80", "backends": {}}`, 422, "backends port vip", "IP address"},
		{"nothing", `{}`, 422, "port vip", "missing"},
		{"ranges", `{"vip": "192.0.2.10", "port": 65536, "backends": [{"address": "10.1.0.1", "port": 80, "weight": 65536}]}`, 422, "backends[0].weight port", "65535"},
		{"fraction", `{"vip": "192.0.2.10", "port": 80.5}`, 422, "port", "whole"},
		{
			"checks", `{"vip": "192.0.2.10", "port": 80, "health_check": {"type": "http", "expect_body": "(", "expect_status": "999", "path": "x", "timeout": "1ns"}}`, 422,
			"health_check.expect_body health_check.expect_status health_check.path health_check.timeout", "RE2",
		},
		{"another name", `{"name": "other", "vip": "192.0.2.10", "port": 80}`, 422, "name", "renamed"},
		{"negative revision", `{"vip": "192.0.2.10", "port": 80, "revision": -1}`, 422, "revision", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := w.do(http.MethodPut, "/api/v1/services/web", test.body)
			a.t = t
			p := a.problem(test.status)
			if p.paths() != test.paths && !sameWords(p.paths(), test.paths) {
				t.Errorf("faults of %q, want %q: %v", p.paths(), test.paths, p)
			}
			if !strings.Contains(string(a.body), test.says) {
				t.Errorf("does not say %q: %s", test.says, a.body)
			}
			if test.paths != "" && p.Type != typeInvalid {
				t.Errorf("type %s", p.Type)
			}
		})
	}
	var list serviceList
	w.do(http.MethodGet, "/api/v1/services", "").ok(http.StatusOK, &list)
	if len(list.Services) != 0 || list.Revision != 0 {
		t.Errorf("something was written: %+v", list)
	}
}

func sameWords(a, b string) bool {
	seen := map[string]int{}
	for _, s := range strings.Fields(a) {
		seen[s]++
	}
	for _, s := range strings.Fields(b) {
		seen[s]--
	}
	for _, n := range seen {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestConflictsNameTheOtherService(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	p := w.do(http.MethodPut, "/api/v1/services/other", web).problem(http.StatusUnprocessableEntity)
	if !strings.Contains(p.String(), "web") {
		t.Errorf("%v", p)
	}
}

func TestNamesInPaths(t *testing.T) {
	w := newWorld(t)
	for path, status := range map[string]int{
		"/api/v1/services/UPPER":                      422,
		"/api/v1/services/a%2Fb":                      422,
		"/api/v1/services/%20":                        422,
		"/api/v1/services/%00":                        422,
		"/api/v1/services/" + strings.Repeat("a", 64): 422,
		"/api/v1/services/" + strings.Repeat("a", 63): 201,
		"/api/v1/services/":                           404,
		"/api/v1/services":                            405,
		"/api/v1":                                     404,
		"/api/v2/services/web":                        404,
		"/api/v1/services/web/backends":               404,
		"/nothing":                                    404,
	} {
		a := w.do(http.MethodPut, path, web)
		if status == http.StatusCreated {
			a.ok(status, nil)
			continue
		}
		a.problem(status)
	}
}

func TestMethodsThatAreNotAllowed(t *testing.T) {
	w := newWorld(t)
	for path, allow := range map[string]string{
		"/api/v1/services":                            "GET, HEAD, OPTIONS",
		"/api/v1/services/web":                        "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
		"/api/v1/services/web/backends/10.1.0.1:8080": "DELETE, GET, HEAD, OPTIONS, PUT",
		"/api/v1/checks":                              "GET, HEAD, OPTIONS",
		"/api/v1/checks/up":                           "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
		"/api/v1/profiles":                            "GET, HEAD, OPTIONS",
		"/api/v1/profiles/edge":                       "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
		"/api/v1/settings":                            "GET, HEAD, OPTIONS, PATCH, PUT",
		"/api/v1/transactions":                        "OPTIONS, POST",
		"/api/v1/history":                             "GET, HEAD, OPTIONS",
		"/api/v1/history/3":                           "GET, HEAD, OPTIONS",
		"/api/v1/diff":                                "GET, HEAD, OPTIONS",
		"/api/v1/config":                              "GET, HEAD, OPTIONS",
		"/api/v1/rollback":                            "OPTIONS, POST",
		"/api/v1/plan":                                "OPTIONS, POST",
		"/api/v1/apply":                               "OPTIONS, POST",
		"/api/v1/import/ipvsadm":                      "OPTIONS, POST",
		"/api/v1/watch":                               "GET, HEAD, OPTIONS",
		"/api/v1/agents":                              "GET, HEAD, OPTIONS",
		"/api/v1/cluster":                             "GET, HEAD, OPTIONS",
		"/api/v1/cluster/members":                     "OPTIONS, POST",
		"/api/v1/cluster/members/node0":               "DELETE, OPTIONS, PATCH",
		"/healthz":                                    "GET, HEAD, OPTIONS",
		"/readyz":                                     "GET, HEAD, OPTIONS",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodPatch, "BREW"} {
			if strings.Contains(allow, method) {
				continue
			}
			a := w.do(method, path, "")
			if p := a.problem(http.StatusMethodNotAllowed); !strings.Contains(p.Detail, allow) {
				t.Errorf("%s %s: %v", method, path, p)
			}
			if got := a.header.Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow %q, want %q", method, path, got, allow)
			}
		}
		if a := w.do(http.MethodOptions, path, ""); a.status != http.StatusNoContent || a.header.Get("Allow") != allow {
			t.Errorf("OPTIONS %s: %d %v", path, a.status, a.header)
		}
	}
}

func TestHeadHasHeadersAlone(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	for _, path := range []string{"/api/v1/services", "/api/v1/services/web", "/api/v1/checks", "/api/v1/settings", "/api/v1/history", "/api/v1/history/1", "/api/v1/diff?from=0", "/api/v1/config", "/api/v1/watch", "/api/v1/agents", "/api/v1/cluster", "/healthz", "/readyz"} {
		if a := w.do(http.MethodHead, path, ""); a.status != http.StatusOK || len(a.body) != 0 || a.header.Get("Content-Type") == "" {
			t.Errorf("HEAD %s: %d %v %s", path, a.status, a.header, a.body)
		}
	}
}

func TestPreconditions(t *testing.T) {
	w := newWorld(t)
	const path = "/api/v1/services/web"
	put := func(body string, headers ...string) answer { return w.do(http.MethodPut, path, body, headers...) }

	p := put(web, `If-Match: "3"`).problem(http.StatusPreconditionFailed)
	if p.Type != typeConflict || p.Revision == nil || *p.Revision != 0 || !strings.Contains(p.Detail, "does not exist") {
		t.Errorf("If-Match of what does not exist: %v", p)
	}
	put(web, "If-None-Match: *").ok(http.StatusCreated, nil)
	p = put(web, "If-None-Match: *").problem(http.StatusPreconditionFailed)
	if p.Revision == nil || *p.Revision != 1 || !strings.Contains(p.Detail, "exists already") {
		t.Errorf("If-None-Match of what exists: %v", p)
	}

	a := w.do(http.MethodGet, path, "")
	tag := a.header.Get("ETag")
	second := strings.Replace(web, "7", "8", 1)
	a = put(second, "If-Match: "+tag)
	a.ok(http.StatusOK, nil)
	p = put(web, "If-Match: "+tag).problem(http.StatusPreconditionFailed)
	if p.Revision == nil || *p.Revision != 2 || !strings.Contains(p.Detail, "read it again") {
		t.Errorf("If-Match of an older revision: %v", p)
	}
	// The tag of a write's answer is good for the next.
	a = put(web, "If-Match: "+a.header.Get("ETag"))
	a.ok(http.StatusOK, nil)
	w.do(http.MethodDelete, path, "", "If-Match: "+tag).problem(http.StatusPreconditionFailed)

	// The revision in the body is a precondition too; it fails with 409, since
	// no header asked for it.
	var s lbstate.ServiceStatus
	w.do(http.MethodGet, path, "").ok(http.StatusOK, &s)
	revision := func(n uint64) string { return strings.Replace(web, "{", fmt.Sprintf(`{"revision": %d, `, n), 1) }
	p = put(revision(s.Revision - 1)).problem(http.StatusConflict)
	if p.Type != typeConflict || p.Revision == nil || *p.Revision != s.Revision {
		t.Errorf("an older revision in the body: %v", p)
	}
	put(strings.Replace(revision(s.Revision), `"weight": 7`, `"weight": 9`, 1)).ok(http.StatusOK, nil)
	// A header wins over the body.
	w.do(http.MethodGet, path, "").ok(http.StatusOK, &s)
	put(revision(1), fmt.Sprintf(`If-Match: "%d"`, s.Revision)).ok(http.StatusOK, nil)

	for _, headers := range [][]string{
		{"If-Match: x"},
		{`If-Match: W/"1"`},
		{`If-Match: "1", "2"`},
		{`If-Match: "-1"`},
		{`If-Match: ""`},
		{`If-None-Match: "1"`},
		{`If-Match: "1"`, "If-None-Match: *"},
	} {
		if p := put(web, headers...).problem(http.StatusBadRequest); !strings.Contains(p.Detail, "If-") {
			t.Errorf("%v: %v", headers, p)
		}
	}

	// Backends are guarded by the revision of their service.
	w.do(http.MethodGet, path, "").ok(http.StatusOK, &s)
	backend := path + "/backends/10.1.0.1:8080"
	w.do(http.MethodPut, backend, `{"weight": 3}`, fmt.Sprintf(`If-Match: "%d"`, s.Revision-1)).problem(http.StatusPreconditionFailed)
	w.do(http.MethodPut, backend, `{"weight": 3}`, fmt.Sprintf(`If-Match: "%d"`, s.Revision)).ok(http.StatusOK, nil)
	w.do(http.MethodDelete, backend, "", fmt.Sprintf(`If-Match: "%d"`, s.Revision)).problem(http.StatusPreconditionFailed)
}

func TestReadsAreConditional(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	for _, path := range []string{"/api/v1/services", "/api/v1/services/web", "/api/v1/services/web/backends/10.1.0.1:8080"} {
		tag := w.do(http.MethodGet, path, "").header.Get("ETag")
		for _, known := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
			if a := w.do(http.MethodGet, path, "", "If-None-Match: "+known); a.status != http.StatusNotModified || len(a.body) != 0 || a.header.Get("ETag") != tag {
				t.Errorf("%s, %s: %d %s", path, known, a.status, a.body)
			}
		}
		if a := w.do(http.MethodGet, path, "", "If-None-Match: "+tag, "Accept: application/yaml"); a.status != http.StatusOK {
			t.Errorf("%s: JSON's tag stands for YAML too", path)
		}
		w.put("/api/v1/services/web/backends/10.1.0.1:8080", fmt.Sprintf(`{"weight": %d}`, 100+len(path)))
		if a := w.do(http.MethodGet, path, "", "If-None-Match: "+tag); a.status != http.StatusOK {
			t.Errorf("%s: %d after a change", path, a.status)
		}
	}
}

// Health changes the tag, but not what a precondition compares.
func TestHealthDoesNotFailPreconditions(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", `{"vip": "192.0.2.10", "port": 80, "health_check": {"type": "tcp"}, "backends": [{"address": "10.1.0.1"}]}`)
	a := w.do(http.MethodGet, "/api/v1/services/web", "")
	var s lbstate.ServiceStatus
	a.ok(http.StatusOK, &s)
	if s.Backends[0].Reason != lbstate.NotYetUp || s.Backends[0].EffectiveWeight != 0 {
		t.Errorf("before its first success (INV-30): %+v", s.Backends[0])
	}
	stored, err := w.api.cfg.Store.Service(t.Context(), "web", lbstate.ReadOptions{})
	if err != nil || len(stored.Checks()) != 1 {
		t.Fatalf("checks %+v, %v", stored.Checks(), err)
	}
	check := stored.Checks()[0]
	if err := w.api.cfg.Store.ReportHealth(t.Context(), []lbstate.HealthTransition{{
		Service: "web", Backend: check.Backend, CheckHash: check.Hash, Term: 1, To: lbstate.Up, At: time.Now(),
	}}); err != nil {
		t.Fatal(err)
	}
	b := w.do(http.MethodGet, "/api/v1/services/web", "")
	b.ok(http.StatusOK, &s)
	if s.Backends[0].Reason != lbstate.Healthy || a.header.Get("ETag") == b.header.Get("ETag") {
		t.Errorf("%+v, tag %s before and %s after", s.Backends[0], a.header.Get("ETag"), b.header.Get("ETag"))
	}
	w.do(http.MethodDelete, "/api/v1/services/web", "", "If-Match: "+a.header.Get("ETag")).ok(http.StatusOK, nil)
}

func TestBackends(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	w.put("/api/v1/services/six", `{"vip": "2001:db8::1", "port": 80}`)
	const base = "/api/v1/services/web/backends/"

	var b backendView
	w.do(http.MethodGet, base+"10.1.0.1:8080", "").ok(http.StatusOK, &b)
	if b.Service != "web" || b.Key() != "10.1.0.1:8080" || b.EffectiveWeight != 7 || b.Revision != 1 || b.Version == 0 {
		t.Errorf("%+v", b)
	}

	var res lbstate.WriteResult
	w.do(http.MethodPut, base+"10.1.0.2:8080", `{}`).ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Changed {
		t.Errorf("added: %+v", res)
	}
	w.do(http.MethodPut, base+"10.1.0.2:8080", `{"address": "10.1.0.2", "port": 8080, "weight": 100}`).ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Unchanged {
		t.Errorf("the same again, spelled out: %+v", res)
	}
	w.do(http.MethodPut, base+"10.1.0.2:8080", "state: drain", "Content-Type: application/yaml").ok(http.StatusOK, &res)
	w.do(http.MethodGet, base+"10.1.0.2:8080", "").ok(http.StatusOK, &b)
	if b.Reason != lbstate.Draining || b.EffectiveWeight != 0 {
		t.Errorf("draining: %+v", b)
	}
	w.do(http.MethodGet, base+"[::ffff:10.1.0.2]:8080", "").ok(http.StatusOK, &b) // the same address
	w.do(http.MethodPut, "/api/v1/services/six/backends/[2001:db8::2]:80", `{}`).ok(http.StatusOK, nil)
	w.do(http.MethodGet, "/api/v1/services/six/backends/%5B2001:db8:0::2%5D:80", "").ok(http.StatusOK, &b)

	for _, test := range []struct {
		method, path, body string
		status             int
		paths              string
	}{
		{http.MethodGet, base + "10.1.0.9:8080", "", 404, ""},
		{http.MethodGet, "/api/v1/services/none/backends/10.1.0.1:8080", "", 404, ""},
		{http.MethodPut, "/api/v1/services/none/backends/10.1.0.1:8080", "{}", 404, ""},
		{http.MethodDelete, "/api/v1/services/none/backends/10.1.0.1:8080", "", 404, ""},
		{http.MethodDelete, base + "10.1.0.9:8080", "", 404, ""},
		{http.MethodGet, base + "10.1.0.1", "", 400, ""},
		{http.MethodGet, base + "host:80", "", 400, ""},
		{http.MethodPut, base + "10.1.0.1:65536", "{}", 400, ""},
		{http.MethodDelete, base + "[fe80::1%25eth0]:80", "", 400, ""},
		{http.MethodPut, base + "10.1.0.3:8080", `{"addr": "10.1.0.3"}`, 400, "addr"},
		{http.MethodPut, base + "10.1.0.3:8080", `{"address": "10.1.0.4", "port": 80}`, 422, "address port"},
		{http.MethodPut, base + "10.1.0.3:8080", `{"weight": 99999, "state": "idle"}`, 422, "backends[0].state backends[0].weight"},
		{http.MethodPut, base + "127.0.0.1:8080", `{}`, 422, "backends[0].address"},
		{http.MethodPut, base + "10.1.0.3:8080", `{"weight": "x"}`, 422, "weight"},
	} {
		p := w.do(test.method, test.path, test.body).problem(test.status)
		got := strings.ReplaceAll(p.paths(), "backends[0].", "")
		if !sameWords(got, strings.ReplaceAll(test.paths, "backends[0].", "")) {
			t.Errorf("%s %s: faults of %q, want %q", test.method, test.path, p.paths(), test.paths)
		}
	}
	w.do(http.MethodDelete, base+"10.1.0.2:8080", "").ok(http.StatusOK, &res)
	w.do(http.MethodGet, base+"10.1.0.2:8080", "").problem(http.StatusNotFound)
}

func TestReasonIsBounded(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodPut, "/api/v1/services/web?reason=new+shop", web).ok(http.StatusCreated, nil)
	w.do(http.MethodPut, "/api/v1/services/web?reason="+strings.Repeat("x", 1025), web).problem(http.StatusBadRequest)
}
