package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

const transactions = "/api/v1/transactions"

func TestTransactionIsWholeOrNotAtAll(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	var res lbstate.BatchResult
	w.do(http.MethodPost, transactions, `
reason: the shop moves
operations:
- put: {check: {name: up, check: {type: tcp}}}
- put: {service: {name: api, vip: 192.0.2.11, port: 80, snat: off, labels: {beta: yes}, health_check: {use: up}, backends: [{address: 10.1.0.3}]}}
  if_revision: 0
- put_backend: {service: web, backend: {address: 10.1.0.2, port: 8080}}
- delete_backend: {service: web, address: "[::ffff:10.1.0.1]:8080"}
  if_revision: 1
`, "Content-Type: "+mediaYAML).ok(http.StatusOK, &res)
	if res.Revision != 2 || res.Outcome != lbstate.Changed || len(res.Objects) != 3 ||
		res.Objects[1].Outcome != lbstate.Created || res.Objects[2] != (lbstate.ObjectOutcome{Ref: lbstate.Ref{Kind: "service", Name: "web"}, Outcome: lbstate.Changed, Revision: 2}) {
		t.Errorf("%+v", res)
	}
	var s lbstate.ServiceStatus
	w.do(http.MethodGet, "/api/v1/services/web", "").ok(http.StatusOK, &s)
	if len(s.Backends) != 1 || s.Backends[0].Key() != "10.1.0.2:8080" {
		t.Errorf("%+v", s.Backends)
	}
	w.do(http.MethodGet, "/api/v1/services/api", "").ok(http.StatusOK, &s)
	if s.SNAT != lbstate.SNATOff || s.Labels["beta"] != "yes" {
		t.Errorf("bare words of YAML: %+v", s.Service)
	}

	// The last operation fails, so the first has no effect.
	p := w.do(http.MethodPost, transactions, `{"operations": [
		{"delete": {"kind": "service", "name": "api"}},
		{"put": {"service": `+strings.Replace(web, "{", `{"name": "web", "revision": 1, `, 1)+`}}]}`).problem(http.StatusConflict)
	if p.Type != typeConflict || *p.Revision != 2 || !strings.Contains(p.Detail, "service web") {
		t.Errorf("%v", p)
	}
	w.do(http.MethodGet, "/api/v1/services/api", "").ok(http.StatusOK, nil)

	// A check cannot go while it is used; together with its user it can. Under
	// its key it is done once.
	w.do(http.MethodPost, transactions, `{"operations": [{"delete": {"kind": "check", "name": "up"}}]}`).problem(http.StatusUnprocessableEntity)
	for range 2 {
		w.do(http.MethodPost, transactions, `{"operations": [{"delete": {"kind": "check", "name": "up"}}, {"delete": {"kind": "service", "name": "api"}}]}`,
			"Idempotency-Key: gone").ok(http.StatusOK, &res)
		if res.Revision != 3 || len(res.Objects) != 2 || res.Objects[0].Outcome != lbstate.Deleted {
			t.Errorf("%+v", res)
		}
	}

	// Warnings come with the answer.
	w.do(http.MethodPost, transactions, `{"operations": [{"put": {"service": {"name": "idle", "vip": "192.0.2.12", "port": 80}}}, {"put": {"settings": {}}}, {"put": {"profile": {"name": "all"}}}]}`).ok(http.StatusOK, &res)
	if len(res.Warnings) != 1 || res.Warnings[0].Object != "service/idle" {
		t.Errorf("%+v", res)
	}
}

func TestBadTransactionsAreRefused(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	for _, test := range []struct {
		name, body string
		status     int
		paths      string
	}{
		{"syntax", `{"operations": [`, 400, ""},
		{"a list", `[]`, 400, ""},
		{"empty", ` `, 400, ""},
		{"a field twice", `{"operations": [], "operations": []}`, 400, ""},
		{"nothing", `{}`, 422, "operations"},
		{"no operations", `{"operations": []}`, 422, "operations"},
		{"no list", `{"operations": {}, "reason": 7}`, 422, "operations operations reason"},
		{"unknown fields, each", `{"operations": [{"put": {"service": {"hue": 1, "backends": [{"addr": 1}]}}, "iff": 1}], "hue": 1}`, 400, "operations[0].put.service.backends[0].addr operations[0].put.service.hue operations[0].iff hue"},
		{"unknown and wrong", `{"operations": [{"put": {"service": {"port": "x", "hue": 1}}}]}`, 400, "operations[0].put.service.hue operations[0].put.service.port"},
		{"types", `{"operations": [7, {"put": []}, {"delete": "service/web"}, {"if_revision": -1, "put_backend": {"service": 7}}]}`, 422, "operations[0] operations[1].put operations[1] operations[2].delete operations[2] operations[3].if_revision operations[3].put_backend.service operations[3].put_backend.backend"},
		{"two at once", `{"operations": [{"put": {"check": {"name": "a"}, "profile": {"name": "b"}}, "delete": {"kind": "service", "name": "web"}}]}`, 422, "operations[0] operations[0].put"},
		{"nothing named", `{"operations": [{}, {"put": {}}, {"delete": {}}, {"delete_backend": {}}]}`, 422, "operations[0] operations[1].put operations[2].delete.kind operations[2].delete.name operations[3].delete_backend.address"},
		{"a number that is none", `{"operations": [{"put": {"service": {"port": 1e999}}}]}`, 422, "operations[0].put.service.port"},
		{"a fraction", `{"operations": [{"put": {"service": {"port": 1.5}}}]}`, 422, "operations[0].put.service.port"},
		{"a zone", `{"operations": [{"delete_backend": {"service": "web", "address": "[fe80::1%eth0]:80"}}]}`, 422, "operations[0].delete_backend.address"},
		{"ranges", `{"operations": [{"put": {"service": {"name": "web", "port": 0, "vip": "192.0.2.10"}}}]}`, 422, "port"},
		{"what does not exist", `{"operations": [{"delete": {"kind": "service", "name": "none"}}]}`, 404, ""},
		{"reason", `{"reason": "` + strings.Repeat("x", maxReason+1) + `", "operations": [{"delete": {"kind": "service", "name": "web"}}]}`, 400, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := w.do(http.MethodPost, transactions, test.body)
			a.t = t
			if p := a.problem(test.status); !sameWords(p.paths(), test.paths) {
				t.Errorf("faults of %q, want %q: %v", p.paths(), test.paths, p)
			}
		})
	}
	many := `{"operations": [` + strings.Repeat(`{},`, maxOperations) + `{}]}`
	w.do(http.MethodPost, transactions, many).problem(http.StatusUnprocessableEntity)
	w.do(http.MethodPost, transactions, strings.Repeat(" ", maxTransaction+1)).problem(http.StatusRequestEntityTooLarge)
	one := `{"operations": [{"delete": {"kind": "service", "name": "web"}}]}`
	for _, header := range []string{`If-Match: "1"`, "If-None-Match: *"} {
		if p := w.do(http.MethodPost, transactions, one, header).problem(http.StatusBadRequest); !strings.Contains(p.Detail, "if_revision") {
			t.Errorf("%v", p)
		}
	}
	w.do(http.MethodPost, transactions, one, "Content-Type: text/plain").problem(http.StatusUnsupportedMediaType)
	var list serviceList
	w.do(http.MethodGet, "/api/v1/services", "").ok(http.StatusOK, &list)
	if len(list.Services) != 1 || list.Revision != 1 {
		t.Errorf("something was written: %+v", list)
	}
}

// FuzzOperations: what is read without a fault is operations of which each
// names one thing; what is not has a fault.
func FuzzOperations(f *testing.F) {
	for _, s := range []string{
		`{"operations": [{"put": {"service": ` + web + `}, "if_revision": 0}]}`,
		"operations:\n- put: {check: {name: up, check: {type: tcp}}}\n- delete: {kind: check, name: up}\n",
		`{"operations": [{"put_backend": {"service": "web", "backend": {"address": "10.1.0.1"}}}, {"delete_backend": {"service": "web", "address": "[::1]:80"}}], "reason": "x"}`,
		"a: &a [x]\noperations: [*a, *a]\n", "? x\n: y", "operations: [{put: {settings: {history_age: off}}}]", `{"operations": [{"if_revision": 1e400}]}`, "<<: {operations: []}", "---\n---\n", "!!binary x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in, p := parseFields(body)
		if p != nil {
			if len(p.Faults) == 0 {
				t.Fatalf("%q: refused without a fault", body)
			}
			return
		}
		ops := operations(in)
		var o lbstate.WriteOptions
		if p := in.end(&o); p != nil {
			if _, err := json.Marshal(p); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		for i, op := range ops {
			named := 0
			for _, is := range []bool{op.Put != (lbstate.Object{}), op.Delete != (lbstate.Ref{}), op.PutBackend != nil, op.DeleteBackend != nil} {
				if is {
					named++
				}
			}
			if named != 1 {
				t.Fatalf("%q: operation %d is %+v", body, i, op)
			}
		}
	})
}
