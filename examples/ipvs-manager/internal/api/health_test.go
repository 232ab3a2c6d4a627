package api

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
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

func (p *prober) Noted() ([]lbchecks.BackendStatus, error) {
	noted := make([]lbchecks.BackendStatus, 0, maxNoted+2)
	for i := range maxNoted + 2 {
		s := lbchecks.BackendStatus{Service: "web", Backend: netip.MustParseAddrPort("10.1.0.1:80")}
		if s.Last.Warning = "the certificate ends on 2026-01-02, in 9 days"; i%2 == 1 {
			s.Last = healthcheck.Result{Class: healthcheck.Local, Found: "programs are not allowed", Advice: "allow them"}
		}
		noted = append(noted, s)
	}
	return noted, p.err
}

func (p *prober) Events(after uint64) ([]lbchecks.Event, <-chan struct{}, error) {
	all := []lbchecks.Event{
		{Term: 7, Event: healthcheck.Event{Seq: 1, Kind: healthcheck.EventTransition, Check: "a", From: healthcheck.Up, To: healthcheck.Down, Result: healthcheck.Result{Class: healthcheck.Refused}}},
		{Term: 7, Event: healthcheck.Event{Seq: 2, Kind: healthcheck.EventWarning, Check: "a"}, Backends: make([]lbchecks.Backend, 100)},
		{Term: 7, Event: healthcheck.Event{Seq: 3, Kind: healthcheck.EventHoldBegan, Text: "2 of 4 fell", Count: 2}},
	}
	return all[min(after, 3):], nil, p.err
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
	if h.NotedAll != maxNoted+2 || len(h.Noted) != maxNoted || !strings.Contains(h.Noted[0].Text, "9 days") || !strings.Contains(h.Noted[1].Text, "allow them") {
		t.Errorf("%d of %d noted: %+v", len(h.Noted), h.NotedAll, h.Noted[:2])
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
	var told struct {
		Term   uint64
		Events []map[string]any
	}
	w.do(http.MethodGet, "/api/v1/health/events", "").ok(http.StatusOK, &told)
	if len(told.Events) != 3 || told.Term != 7 || told.Events[0]["from"] != "up" || told.Events[0]["to"] != "down" || told.Events[0]["result"] == nil {
		t.Errorf("%+v", told)
	}
	told.Events = nil
	w.do(http.MethodGet, "/api/v1/health/events?after=1", "").ok(http.StatusOK, &told)
	if len(told.Events) != 2 || len(told.Events[0]["backends"].([]any)) != maxEventBackends || told.Events[1]["kind"] != "hold began" || told.Events[1]["result"] != nil {
		t.Errorf("%+v", told)
	}
	w.do(http.MethodGet, "/api/v1/health/events?after=x", "").problem(http.StatusBadRequest)
	w.prober.err = lbchecks.ErrNotChecking
	for _, path := range []string{"/api/v1/health", "/api/v1/health/events", "/api/v1/services/web/checks"} {
		w.do(http.MethodGet, path, "").problem(http.StatusServiceUnavailable)
	}
}
