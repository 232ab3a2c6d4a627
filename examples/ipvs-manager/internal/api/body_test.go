package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

func TestMediaTypes(t *testing.T) {
	w := newWorld(t)
	for _, typ := range []string{
		"", "text/plain", "text/yaml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
		"application/json; charset=latin1", "application/json;;", "nonsense",
	} {
		a := w.do(http.MethodPut, "/api/v1/services/web", web, "Content-Type:")
		if typ != "" {
			a = w.do(http.MethodPut, "/api/v1/services/web", web, "Content-Type: "+typ)
		}
		if p := a.problem(http.StatusUnsupportedMediaType); !strings.Contains(p.Detail, mediaJSON) || !strings.Contains(a.header.Get("Accept"), mediaYAML) {
			t.Errorf("%s: %v, %v", typ, p, a.header)
		}
	}
	// YAML that calls itself JSON is not JSON.
	w.do(http.MethodPut, "/api/v1/services/web", "vip: 192.0.2.10\nport: 80").problem(http.StatusBadRequest)
	w.do(http.MethodPut, "/api/v1/services/web", web, `Content-Type: application/json; charset="UTF-8"`).ok(http.StatusCreated, nil)
}

func TestLargeBodies(t *testing.T) {
	w := newWorld(t)
	large := `{"vip": "192.0.2.10", "port": 80` + strings.Repeat(" ", maxBody) + `}`
	for _, path := range []string{"/api/v1/services/web", "/api/v1/services/web/backends/10.1.0.1:80"} {
		if p := w.do(http.MethodPut, path, large).problem(http.StatusRequestEntityTooLarge); !strings.Contains(p.Detail, "1048576") {
			t.Errorf("%v", p)
		}
	}
	w.do(http.MethodPost, "/api/v1/cluster/members", large).problem(http.StatusRequestEntityTooLarge)
	w.do(http.MethodPut, "/api/v1/services/web", large[:maxBody-1]+"}").ok(http.StatusCreated, nil)
}

// JSON is taken as JSON has it, where YAML spells differently.
func TestJSONThatYAMLReadsDifferently(t *testing.T) {
	w := newWorld(t)
	body := "{\n\t\"vip\": \"192.0.2.10\",\n\t\"port\": 80, \"labels\": {\"smile\": \"\\ud83d\\ude00\", \"path\": \"\\/a\", \"yes\": \"no\", \"e\": \"\\u00e9\\\"\\\\\", \"del\": \"\x7f\", \"line\": \"\u2028\"}}"
	w.do(http.MethodPut, "/api/v1/services/web", body).ok(http.StatusCreated, nil)
	var s lbstate.Service
	w.do(http.MethodGet, "/api/v1/services/web", "").ok(http.StatusOK, &s)
	for k, want := range map[string]string{"smile": "\U0001F600", "path": "/a", "yes": "no", "e": `é"\`, "del": "\x7f", "line": "\u2028"} {
		if s.Labels[k] != want {
			t.Errorf("label %s is %q, want %q", k, s.Labels[k], want)
		}
	}
}

// FuzzRespell: the same JSON before and after.
func FuzzRespell(f *testing.F) {
	for _, s := range []string{`{}`, `"\/\ud83d\ude00"`, `["\\", "\"", "a\u0000"]`, "\"\x7f\"", `{"\/": [1e2, "\ud800"]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			return
		}
		out := respell(data)
		var before, after any
		if err := json.Unmarshal(data, &before); err != nil {
			return // a number that does not fit
		}
		if err := json.Unmarshal(out, &after); err != nil {
			t.Fatalf("%q became %q: %v", data, out, err)
		}
		a, _ := json.Marshal(before)
		b, _ := json.Marshal(after)
		if string(a) != string(b) {
			t.Fatalf("%q became %q", data, out)
		}
	})
}

// FuzzWrite: whatever comes is answered, with a JSON document; a body that is
// refused writes nothing (INV-41).
func FuzzWrite(f *testing.F) {
	for _, s := range []string{web, `{}`, `[`, "vip: 192.0.2.10\nport: 80\n", "a: &a [*a]\n", "a: &a [x]\nb: [*a, *a]\n", `{"name": "other"}`, "%YAML 2.0\n--- {}", "? x\n: y", "{\"port\": 1e99}", "---\n---\n"} {
		f.Add(mediaJSON, "web", []byte(s))
		f.Add(mediaYAML, "10.1.0.1:80", []byte(s))
		f.Add(mediaYAML, "members", []byte(s))
	}
	f.Add(mediaPatch, "PATCH /api/v1/services/web", []byte(`{"vip": "192.0.2.11", "notes": null}`))
	f.Add(mediaPatch, "PATCH /api/v1/settings", []byte(`{"history_age": "1h"}`))
	f.Add(mediaJSON, "PUT /api/v1/checks/up", []byte(up))
	f.Add(mediaYAML, "PUT /api/v1/profiles/edge", []byte(edge))
	f.Add(mediaYAML, "POST /api/v1/transactions", []byte("operations: [{put: {service: {name: web, vip: 192.0.2.10, port: 80}}}]"))
	f.Add(mediaYAML, "POST /api/v1/plan?prune=1", []byte(shop))
	f.Add(mediaYAML, "POST /api/v1/apply?hash=x", []byte(shop))
	f.Add(mediaText, "POST /api/v1/import/ipvsadm", []byte(saved))
	f.Add(mediaText, "POST /api/v1/import/keepalived?view=config", []byte(kept))
	f.Add(mediaJSON, "POST /api/v1/rollback", []byte(`{"revision": 1}`))
	f.Add(mediaJSON, "PUT /api/v1/access/users/bob", []byte(`{"role": "viewer", "password_hash": "x"}`))
	f.Add(mediaJSON, "POST /api/v1/access/tokens", []byte(`{"user": "bob", "expires": "2100-01-01T00:00:00Z"}`))
	f.Add(mediaYAML, "POST /api/v1/access/revocations", []byte("kind: serial\nname: 00:AB\nreason: lost"))
	f.Add(mediaYAML, "PUT /api/v1/access/credentials/lb1", []byte("labels: {zone: a}"))
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(f.TempDir(), state)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { local.Close() })
	store := lbstate.NewStore(state, local)
	api, err := New(Config{Store: store, Cluster: &members{}, Checks: &prober{}, Access: newAccess(f), Agents: nobody, Releases: &account{}, Statistics: noStatistics})
	if err != nil {
		f.Fatal(err)
	}
	mux := http.NewServeMux()
	api.Register(mux)
	f.Fuzz(func(t *testing.T, typ, name string, body []byte) {
		before, err := store.Revision(t.Context(), lbstate.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPut, "/api/v1/services/web", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", typ)
		method, path, other := strings.Cut(name, " ")
		switch {
		case other:
			u, err := url.ParseRequestURI(path)
			if err != nil {
				return
			}
			r.Method, r.URL = method, u
		case name == "members":
			r.Method, r.URL.Path = http.MethodPost, "/api/v1/cluster/members"
		case name == "web":
		default:
			r.URL.Path = "/api/v1/services/web/backends/" + name
		}
		w := httptest.NewRecorder()
		asked(mux).ServeHTTP(w, r)
		after, err := store.Revision(t.Context(), lbstate.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if w.Code >= 400 && after != before {
			t.Fatalf("status %d, but revision %d became %d", w.Code, before, after)
		}
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		if w.Code/100 != 3 && w.Code != http.StatusNoContent && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("status %d with %q", w.Code, w.Body)
		}
	})
}

// FuzzPath: no path and no query breaks anything, nor changes anything when it
// is only read.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/api/v1/services/web", "/api/v1/services/web/backends/[::1]:80", "/api/v1/services/a%2fb?stale=x", "/api/v1/watch?from=x", "/api/v1/history/9?before=1", "/api/v1/history?object=check/up&limit=3", "/api/v1/diff?from=0&to=0", "/api/v1/config?revision=0", "/api/v1/profiles/x", "//x", "/api/v1/../healthz", "/api/v1/cluster?local=maybe"} {
		f.Add(http.MethodGet, s, "lb.example")
		f.Add(http.MethodDelete, s, "127.0.0.1:80")
	}
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(f.TempDir(), state)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { local.Close() })
	api, err := New(Config{Store: lbstate.NewStore(state, local), Cluster: &members{}, Checks: &prober{}, Access: newAccess(f), Agents: nobody, Releases: &account{}, Statistics: noStatistics})
	if err != nil {
		f.Fatal(err)
	}
	api.Close() // no watch stays open
	mux := http.NewServeMux()
	api.Register(mux)
	guarded := Guard([]string{"lb.example"}, asked(mux))
	f.Fuzz(func(t *testing.T, method, target, host string) {
		r, err := http.NewRequest(method, "http://host"+target, nil)
		if err != nil {
			return
		}
		r.Host = host
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Fatalf("%s %s: %d: %s", method, target, w.Code, w.Body)
		}
		if w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %s: %d: %s", method, target, w.Code, w.Body)
		}
	})
}
