package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
)

// told is a world with a history: revisions 1 to 5.
func told(t *testing.T) *world {
	w := newWorld(t)
	w.put("/api/v1/services/web?reason=opening", web)
	w.put("/api/v1/checks/up", up)
	w.put("/api/v1/services/web/backends/10.1.0.1:8080?reason=it+is+slow", `{"weight": 3}`)
	w.put("/api/v1/services/dns", `{"vip": "192.0.2.53", "port": 53, "protocol": "udp"}`)
	w.do(http.MethodDelete, "/api/v1/checks/up", "").ok(http.StatusOK, nil)
	return w
}

func revisions(entries []lbstate.HistoryEntry) string {
	var list []string
	for _, e := range entries {
		list = append(list, fmt.Sprint(e.Revision))
	}
	return strings.Join(list, " ")
}

func TestHistory(t *testing.T) {
	w := told(t)
	for query, want := range map[string]struct {
		revisions string
		next      uint64
	}{
		"":                            {"5 4 3 2 1", 0},
		"?stale=true":                 {"5 4 3 2 1", 0},
		"?limit=2":                    {"5 4", 4},
		"?limit=2&before=4":           {"3 2", 2},
		"?limit=2&before=2":           {"1", 0},
		"?limit=5":                    {"5 4 3 2 1", 0},
		"?limit=1000":                 {"5 4 3 2 1", 0},
		"?before=1":                   {"", 0},
		"?before=9223372036854775807": {"5 4 3 2 1", 0},
		"?object=service/web":         {"3 1", 0},
		"?object=check/up&limit=1":    {"5", 5},
		"?object=profile/none":        {"", 0},
	} {
		var list historyList
		a := w.do(http.MethodGet, "/api/v1/history"+query, "")
		a.ok(http.StatusOK, &list)
		if revisions(list.History) != want.revisions || list.Next != want.next || list.History == nil {
			t.Errorf("%s: %q, next %d: %s", query, revisions(list.History), list.Next, a.body)
		}
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "before=-1", "before=9223372036854775808", "object=web", "object=thing/web", "object=service/", "stale=x"} {
		w.do(http.MethodGet, "/api/v1/history?"+query, "").problem(http.StatusBadRequest)
	}

	// One revision says who, why, and what.
	var e historyEntry
	w.do(http.MethodGet, "/api/v1/history/3", "").ok(http.StatusOK, &e)
	if e.Revision != 3 || e.Author != "127.0.0.1" || e.Reason != "it is slow" || e.At.IsZero() || len(e.Objects) != 1 ||
		len(e.Diff) != 1 || e.Diff[0].Action != lbstate.ActionChange || len(e.Diff[0].Fields) != 1 ||
		e.Diff[0].Fields[0].String() != "backends[10.1.0.1:8080].weight: 7 → 3" {
		t.Errorf("%+v", e)
	}
	w.do(http.MethodGet, "/api/v1/history/1?stale=1", "").ok(http.StatusOK, &e)
	if len(e.Diff) != 1 || e.Diff[0].Action != lbstate.ActionCreate {
		t.Errorf("%+v", e)
	}
	for path, status := range map[string]int{"0": 404, "6": 404, "x": 400, "-1": 400, "9223372036854775808": 400, "3?stale=x": 400} {
		w.do(http.MethodGet, "/api/v1/history/"+path, "").problem(status)
	}
	// Health is no configuration.
	w.put("/api/v1/services/web", strings.Replace(web, "{", `{"health_check": {"type": "tcp"}, `, 1)) // revision 6
	w.report("web", lbstate.Down)
	if p := w.do(http.MethodGet, "/api/v1/history/7", "").problem(http.StatusNotFound); !strings.Contains(p.Detail, "changed no configuration") {
		t.Errorf("%v", p)
	}
}

// report stores the health of a service's first backend.
func (w *world) report(service string, to lbstate.HealthState) {
	w.t.Helper()
	s, err := w.api.cfg.Store.Service(w.t.Context(), service, lbstate.ReadOptions{})
	if err != nil || len(s.Checks()) == 0 {
		w.t.Fatalf("%+v, %v", s, err)
	}
	c := s.Checks()[0]
	if err := w.api.cfg.Store.ReportHealth(w.t.Context(), []lbstate.HealthTransition{{Service: service, Backend: c.Backend, CheckHash: c.Hash, Term: 1, To: to}}); err != nil {
		w.t.Fatal(err)
	}
}

func TestDiff(t *testing.T) {
	w := told(t)
	for query, want := range map[string]string{
		"from=0&to=1":            "create service/web",
		"from=1&to=3":            "create check/up, change service/web",
		"from=1":                 "create service/dns, change service/web",
		"from=5&to=1":            "delete service/dns, change service/web",
		"from=5&to=5":            "",
		"from=2&to=5":            "delete check/up, create service/dns, change service/web",
		"from=2&to=5&stale=true": "delete check/up, create service/dns, change service/web",
	} {
		var d diff
		a := w.do(http.MethodGet, "/api/v1/diff?"+query, "")
		a.ok(http.StatusOK, &d)
		var got []string
		for _, o := range d.Diff {
			got = append(got, fmt.Sprintf("%s %s", o.Action, o.Ref))
		}
		if strings.Join(got, ", ") != want || d.Diff == nil {
			t.Errorf("%s: %q, want %q: %s", query, got, want, a.body)
		}
	}
	for query, status := range map[string]int{"": 400, "to=1": 400, "from=x": 400, "from=1&to=x": 400, "from=1&to=6": 404, "from=1&stale=x": 400} {
		w.do(http.MethodGet, "/api/v1/diff?"+query, "").problem(status)
	}
}

func TestConfiguration(t *testing.T) {
	w := told(t)
	var c lbstate.Configuration
	a := w.do(http.MethodGet, "/api/v1/config", "")
	a.ok(http.StatusOK, &c)
	if len(c.Services) != 2 || len(c.Checks) != 0 || a.header.Get("ETag") != `"5"` {
		t.Errorf("%v: %s", a.header, a.body)
	}
	if b := w.do(http.MethodGet, "/api/v1/config", "", `If-None-Match: "5"`); b.status != http.StatusNotModified {
		t.Errorf("with its tag: %d", b.status)
	}
	a = w.do(http.MethodGet, "/api/v1/config?revision=2&stale=true", "")
	var old lbstate.Configuration
	a.ok(http.StatusOK, &old)
	if len(old.Services) != 1 || len(old.Checks) != 1 || a.header.Get("ETag") != `"2"` {
		t.Errorf("%v: %s", a.header, a.body)
	}
	var none lbstate.Configuration
	w.do(http.MethodGet, "/api/v1/config?revision=0", "").ok(http.StatusOK, &none)
	if len(none.Objects()) != 0 {
		t.Errorf("%+v", none)
	}
	// YAML, as a file has it, and read back by a plan.
	a = w.do(http.MethodGet, "/api/v1/config", "", "Accept: "+mediaYAML)
	if a.header.Get("Content-Type") != mediaYAML || !strings.Contains(string(a.body), "services:\n- ") {
		t.Errorf("%v: %s", a.header, a.body)
	}
	var p lbstate.Plan
	w.do(http.MethodPost, "/api/v1/plan?prune=true", string(a.body), "Content-Type: "+mediaYAML).ok(http.StatusOK, &p)
	if len(p.Steps) != 0 {
		t.Errorf("%+v", p)
	}
	for query, status := range map[string]int{"revision=x": 400, "revision=6": 404, "stale=x": 400} {
		w.do(http.MethodGet, "/api/v1/config?"+query, "").problem(status)
	}
}

func TestRollback(t *testing.T) {
	const path = "/api/v1/rollback"
	w := told(t)
	for _, test := range []struct {
		body, header string
		status       int
		paths        string
	}{
		{`{}`, "", 422, "revision"},
		{`{"revision": "1"}`, "", 422, "revision"},
		{`{"revision": -1}`, "", 422, "revision"},
		{`{"revision": 1.5}`, "", 422, "revision"},
		{`{"revision": 1, "reason": 7, "hue": 1}`, "", 400, "reason hue"},
		{`{"revision": 1, "reason": "` + strings.Repeat("x", maxReason+1) + `"}`, "", 400, ""},
		{`[]`, "", 400, ""},
		{`{"revision": 6}`, "", 404, ""},
		{`{"revision": 1}`, `If-Match: "4"`, 412, ""},
		{`{"revision": 1}`, `If-Match: 5x`, 400, ""},
	} {
		var headers []string
		if test.header != "" {
			headers = append(headers, test.header)
		}
		if p := w.do(http.MethodPost, path, test.body, headers...).problem(test.status); !sameWords(p.paths(), test.paths) {
			t.Errorf("%s: faults of %q, want %q: %v", test.body, p.paths(), test.paths, p)
		}
	}
	var res lbstate.BatchResult
	tag := w.do(http.MethodGet, "/api/v1/config", "", "Accept: "+mediaYAML).header.Get("ETag")
	w.do(http.MethodPost, path, `{"revision": 2, "reason": "as it was"}`, "If-Match: "+tag, "Idempotency-Key: back").ok(http.StatusOK, &res)
	if res.Revision != 6 || res.Outcome != lbstate.Changed || len(res.Objects) != 3 {
		t.Errorf("%+v", res)
	}
	w.do(http.MethodPost, path, `{"revision": 2, "reason": "as it was"}`, "If-Match: "+tag, "Idempotency-Key: back").ok(http.StatusOK, &res)
	if res.Revision != 6 {
		t.Errorf("under the same key: %+v", res)
	}
	w.do(http.MethodPost, path, "revision: 2", "Content-Type: "+mediaYAML).ok(http.StatusOK, &res)
	if res.Outcome != lbstate.Unchanged {
		t.Errorf("%+v", res)
	}
	var d diff
	w.do(http.MethodGet, "/api/v1/diff?from=2", "").ok(http.StatusOK, &d)
	if len(d.Diff) != 0 {
		t.Errorf("%+v", d)
	}
	w.do(http.MethodPost, path, `{"revision": 5}`).ok(http.StatusOK, &res)
	var e historyEntry
	w.do(http.MethodGet, "/api/v1/history/7", "").ok(http.StatusOK, &e)
	if e.Reason != "rollback to revision 5" {
		t.Errorf("%+v", e)
	}
}

// What the history no longer has is gone, and the answer says how far it goes.
func TestHistoryThatIsNoLongerKept(t *testing.T) {
	w := told(t)
	w.put("/api/v1/settings", `{"history_revisions": 2}`) // revision 6; leaves 5 and 6
	for path, method := range map[string]string{
		"/api/v1/history/3":         http.MethodGet,
		"/api/v1/diff?from=1&to=6":  http.MethodGet,
		"/api/v1/config?revision=1": http.MethodGet,
		"/api/v1/rollback":          http.MethodPost,
	} {
		body := ""
		if method == http.MethodPost {
			body = `{"revision": 1}`
		}
		if p := w.do(method, path, body).problem(http.StatusGone); p.Type != typeCompacted || !strings.Contains(p.Detail, "goes back to 4") {
			t.Errorf("%s: %v", path, p)
		}
	}
	w.do(http.MethodGet, "/api/v1/history/5", "").ok(http.StatusOK, nil)
}

func TestFailuresOfHistoryAndPlans(t *testing.T) {
	w := told(t)
	w.link.fail(raftstore.ErrNoLeader, raftstore.ErrNoLeader)
	for _, path := range []string{"/api/v1/history", "/api/v1/history/3", "/api/v1/diff?from=1", "/api/v1/config", "/api/v1/checks", "/api/v1/checks/up", "/api/v1/settings"} {
		if p := w.do(http.MethodGet, path, "").problem(http.StatusServiceUnavailable); !strings.Contains(p.Detail, "stale") {
			t.Errorf("%s: %v", path, p)
		}
	}
	for _, path := range []string{"/api/v1/plan", "/api/v1/apply?hash=x"} {
		if p := w.do(http.MethodPost, path, `{}`).problem(http.StatusServiceUnavailable); strings.Contains(p.Detail, "stale") || !strings.Contains(p.Detail, "nothing was changed") {
			t.Errorf("%s: %v", path, p)
		}
	}
	w.link.fail(nil, verdict{errors.New("leader died"), false})
	for path, body := range map[string]string{"/api/v1/rollback": `{"revision": 1}`, "/api/v1/transactions": `{"operations": [{"delete": {"kind": "service", "name": "web"}}]}`} {
		if p := w.do(http.MethodPost, path, body).problem(http.StatusServiceUnavailable); p.Outcome != outcomeUnknown {
			t.Errorf("%s: %v", path, p)
		}
	}
}
