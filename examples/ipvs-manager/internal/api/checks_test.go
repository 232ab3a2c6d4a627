package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

// checkTexts are checks of every type that a server takes by default.
var checkTexts = []struct{ kind, text string }{
	{"tcp", `{type: tcp, mode: full, send: 'PING\r\n', expect: '+PONG', via: {source: 10.0.0.1, interface: eth0, mark: 7}}`},
	{"tls", `{type: tls, tls: {server_name: a.example, min_days: 30}}`},
	{"http", `{type: http, path: /, method: POST, headers: {X-Probe: "on"}, http_version: 1.1, follow_redirects: 2}`},
	{"https", `{type: https, path: /, host: a.example, http_version: 2, expect: ok, tls: {skip_verify: true}}`},
	{"udp", `{type: udp, send: '\x01', expect: '\x02'}`},
	{"dns", `{type: dns, dns: {name: a.example, type: AAAA, expect_addresses: ["2001:db8::1"]}}`},
	{"icmp", `{type: icmp, packet_size: 100}`},
	{"smtp", `{type: smtp, tls: {implicit: true, server_name: mx.example}}`},
	{"grpc", `{type: grpc, grpc_service: a.b.C, tls: {server_name: a.example}}`},
	{"any", `{type: any, checks: [{type: tcp}, {type: all, checks: [{type: icmp}, {type: udp}]}]}`},
}

// Checks of every type are taken alone, in services, in transactions and whole
// configurations, as YAML and as what was shown.
func TestChecksOfEveryType(t *testing.T) {
	w := newWorld(t)
	asYAML := "Content-Type: " + mediaYAML
	for i, c := range checkTexts {
		kind, text := c.kind, c.text
		path := "/api/v1/checks/" + kind
		var res lbstate.WriteResult
		w.do(http.MethodPut, path, "check: "+text, asYAML).ok(http.StatusCreated, &res)
		var shown lbstate.SharedCheck
		w.do(http.MethodGet, path, "").ok(http.StatusOK, &shown)
		if shown.Check.Type != kind {
			t.Errorf("%+v", shown)
		}
		again, err := json.Marshal(shown)
		if err != nil {
			t.Fatal(err)
		}
		w.do(http.MethodPut, path, string(again)).ok(http.StatusOK, &res)
		if res.Outcome != lbstate.Unchanged {
			t.Errorf("what was shown is %s: %s", res.Outcome, again)
		}
		w.do(http.MethodPost, transactions, fmt.Sprintf(
			"operations:\n- put: {service: {name: %s, vip: 192.0.2.10, port: %d, backends: [{address: 10.1.0.1, health_check: %s}]}}\n", kind, 80+i, text), asYAML).ok(http.StatusOK, nil)
		var s lbstate.ServiceStatus
		w.do(http.MethodGet, "/api/v1/services/"+kind, "").ok(http.StatusOK, &s)
		if c := s.Backends[0].HealthCheck; c == nil || c.Type != kind || s.Checks()[0].Hash != lbstate.CheckHash(shown.Check, s.Checks()[0].Backend) {
			t.Errorf("%+v", c)
		}
	}
	config := w.do(http.MethodGet, "/api/v1/config", "", "Accept: "+mediaYAML)
	var plan struct{ Steps []any }
	w.do(http.MethodPost, "/api/v1/plan", string(config.body), asYAML).ok(http.StatusOK, &plan)
	if len(plan.Steps) != 0 {
		t.Errorf("what was shown would change %v", plan.Steps)
	}
}

// Every fault of a check has its path, and programs are refused by whatever way
// they come.
func TestFaultsOfChecks(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodPut, "/api/v1/checks/a", `{"check": {"type": "tcp"}}`).ok(http.StatusCreated, nil)
	web := func(check string) string {
		return `{"name": "web", "vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1", "health_check": ` + check + `}]}`
	}
	program := `{"type": "any", "checks": [{"type": "tcp"}, {"type": "exec", "exec": {"program": "check-it"}}]}`
	for _, c := range []struct {
		method, path, body string
		status             int
		paths              string
	}{
		{http.MethodPut, "/api/v1/checks/b", `{"check": {"type": "icmp", "send": "x", "tls": {}}}`, 422, "check.send check.tls"},
		{http.MethodPut, "/api/v1/checks/b", `{"check": {"type": "dns", "dns": {"nme": "a"}}}`, 400, "check.dns.nme"},
		{http.MethodPut, "/api/v1/services/web", web(`{"type": "exec", "exec": {"program": "/bin/sh"}}`), 422, "backends[0].health_check.exec.program"},
		{http.MethodPut, "/api/v1/services/web", web(program), 422, "backends[0].health_check"},
		{http.MethodPut, "/api/v1/checks/b", `{"check": ` + program + `}`, 422, "check"},
		{http.MethodPatch, "/api/v1/checks/a", `{"check": ` + program + `}`, 422, "check"},
		{http.MethodPost, transactions, `{"operations": [{"put": {"service": ` + web(program) + `}}]}`, 422, "backends[0].health_check"},
		{http.MethodPost, transactions, `{"operations": [{"put": {"service": ` + web(`{"type": "grpc", "grpc_service": 1}`) + `}}]}`, 422, "operations[0].put.service.backends[0].health_check.grpc_service"},
		{http.MethodPost, "/api/v1/plan", `{"services": [` + web(program) + `]}`, 422, "backends[0].health_check"},
	} {
		media := "application/json"
		if c.method == http.MethodPatch {
			media = "application/merge-patch+json"
		}
		p := w.do(c.method, c.path, c.body, "Content-Type: "+media).problem(c.status)
		if got := p.paths(); got != c.paths {
			t.Errorf("%s %s %s: faults at %q, want %q", c.method, c.path, c.body, got, c.paths)
		}
		if strings.Contains(c.body, "check-it") && !strings.Contains(p.Faults[0].Reason, "does not allow") {
			t.Errorf("%+v", p.Faults)
		}
	}
}
