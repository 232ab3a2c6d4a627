package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// The leader's checks are seen, and tried once, by any server.
func TestChecksAreSeen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := newNode(t, "a")
	p := start(t, n, n.args()...)
	p.ready()
	body := fmt.Sprintf(`{"vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1"}],
		"health_check": {"type": "tcp", "address": "127.0.0.1", "port": %d, "interval": "100ms", "timeout": "90ms"}}`,
		netip.MustParseAddrPort(l.Addr().String()).Port())
	if status, text := do(t, http.MethodPut, p.url+"/api/v1/services/web", body); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	eventually(t, "the check is up", func() (string, bool) {
		_, text := do(t, http.MethodGet, p.url+"/api/v1/services/web/checks", "")
		return text, strings.Contains(text, `"state": "up"`) && strings.Contains(text, `"p50"`)
	})
	probe := p.url + "/api/v1/services/web/backends/10.1.0.1:80/probe"
	if status, text := do(t, http.MethodPost, probe, ""); status != http.StatusOK || !strings.Contains(text, `"ok": true`) {
		t.Errorf("%d %s", status, text)
	}
	l.Close()
	if status, text := do(t, http.MethodPost, probe, ""); status != http.StatusOK || !strings.Contains(text, "refused") {
		t.Errorf("%d %s", status, text)
	}
	eventually(t, "the leader counts it as down", func() (string, bool) {
		_, text := do(t, http.MethodGet, p.url+"/api/v1/health", "")
		return text, strings.Contains(text, `"down": 1`)
	})
	p.terminate()
}
