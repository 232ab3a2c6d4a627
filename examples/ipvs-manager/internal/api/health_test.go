package api

import (
	"context"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
)

// prober is the health checks of which the test says everything.
type prober struct {
	err      error
	released int
}

func (p *prober) Stats() (healthcheck.Stats, error) {
	return healthcheck.Stats{Up: 3, Down: 1, Held: 2, Lag: 1500 * time.Millisecond}, p.err
}

func (p *prober) Hold() (healthcheck.HoldStatus, error) {
	return healthcheck.HoldStatus{Active: p.released == 0, Why: "2 of 4 fell"}, p.err
}

func (p *prober) ReleaseHold() (bool, error) {
	p.released++
	return p.released == 1, p.err
}

func (p *prober) ServiceStatus(service string) ([]lbchecks.BackendStatus, error) {
	return []lbchecks.BackendStatus{{
		Service: service, Backend: netip.MustParseAddrPort("10.1.0.1:80"),
		Status: healthcheck.Status{State: healthcheck.Up, Raw: healthcheck.Down, Failures: 3, P50: time.Millisecond, P99: 2 * time.Millisecond},
	}}, p.err
}

func (p *prober) ProbeNow(_ context.Context, _ string, backend netip.AddrPort) (healthcheck.Result, error) {
	if backend.Port() != 80 {
		return healthcheck.Result{}, lbchecks.ErrNoCheck
	}
	return healthcheck.Result{Class: healthcheck.Refused, Phase: "connect", Latency: time.Millisecond}, p.err
}

func TestHealthIsShownAndReleased(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", `{"vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1"}]}`)
	var h healthView
	w.do(http.MethodGet, "/api/v1/health", "").ok(http.StatusOK, &h)
	if h.Up != 3 || h.Down != 1 || h.Held != 2 || h.HostLate != "1.5s" || !h.Hold.Active || h.Hold.Why == "" || h.Server != "node0" {
		t.Errorf("%+v", h)
	}
	var released map[string]bool
	w.do(http.MethodDelete, "/api/v1/health/hold", "").ok(http.StatusOK, &released)
	if !released["released"] || w.prober.released != 1 {
		t.Errorf("released %v", released)
	}
	var checks struct{ Checks []map[string]any }
	w.do(http.MethodGet, "/api/v1/services/web/checks", "").ok(http.StatusOK, &checks)
	if len(checks.Checks) != 1 || checks.Checks[0]["state"] != "up" || checks.Checks[0]["raw"] != "down" || checks.Checks[0]["p99"] != "2ms" {
		t.Errorf("%+v", checks)
	}
	var probed struct {
		OK     bool
		Result map[string]any
	}
	w.do(http.MethodPost, "/api/v1/services/web/backends/10.1.0.1:80/probe", "").ok(http.StatusOK, &probed)
	if probed.OK || probed.Result["class"] != "refused" {
		t.Errorf("%+v", probed)
	}
	w.do(http.MethodGet, "/api/v1/services/mail/checks", "").problem(http.StatusNotFound)
	w.do(http.MethodPost, "/api/v1/services/web/backends/10.1.0.1:81/probe", "").problem(http.StatusNotFound)
	w.do(http.MethodPost, "/api/v1/services/web/backends/here/probe", "").problem(http.StatusBadRequest)
	w.prober.err = lbchecks.ErrNotChecking
	for _, path := range []string{"/api/v1/health", "/api/v1/services/web/checks"} {
		w.do(http.MethodGet, path, "").problem(http.StatusServiceUnavailable)
	}
}
