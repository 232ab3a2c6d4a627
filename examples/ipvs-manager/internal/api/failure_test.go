package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/agent"
)

func nobody() []agent.AgentInfo { return nil }

// verdict is an error of a proposal that says whether it was applied.
type verdict struct {
	error
	notApplied bool
}

func (v verdict) NotApplied() bool { return v.notApplied }

// INV-2: 'not applied' and 'outcome unknown' are told apart.
func TestFailedWritesSayWhatBecameOfThem(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/web", web)
	for _, test := range []struct {
		name          string
		read, written error
		method, path  string
		typ, outcome  string
	}{
		{"not applied", nil, verdict{errors.New("queue is full"), true}, "PUT", "/api/v1/services/web", typeUnavailable, notApplied},
		{"unknown", nil, verdict{errors.New("leader died"), false}, "PUT", "/api/v1/services/web", typeUnknown, outcomeUnknown},
		{"unknown, no leader", nil, verdict{raftstore.ErrNoLeader, false}, "DELETE", "/api/v1/services/web", typeUnknown, outcomeUnknown},
		{"deadline", nil, verdict{context.DeadlineExceeded, false}, "DELETE", "/api/v1/services/web/backends/10.1.0.1:8080", typeUnknown, outcomeUnknown},
		{"says nothing", nil, errors.New("strange"), "PUT", "/api/v1/services/web", typeUnknown, outcomeUnknown},
		{"before the proposal", raftstore.ErrNoLeader, nil, "PUT", "/api/v1/services/web/backends/10.1.0.2:8080", typeUnavailable, notApplied},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.link.fail(test.read, test.written)
			defer w.link.fail(nil, nil)
			body := ""
			switch {
			case test.method == "PUT" && strings.Contains(test.path, "backends"):
				body = "{}"
			case test.method == "PUT":
				body = strings.Replace(web, "7", "9", 1)
			}
			a := w.do(test.method, test.path, body)
			p := a.problem(http.StatusServiceUnavailable)
			if p.Type != test.typ || p.Outcome != test.outcome || a.header.Get("Retry-After") == "" {
				t.Errorf("%v, Retry-After %q", p, a.header.Get("Retry-After"))
			}
		})
	}
}

func TestFailedReads(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		err    error
		status int
		says   string
	}{
		{raftstore.ErrNoLeader, 503, "?stale=true"},
		{raftstore.ErrStopped, 503, "stopped"},
		{context.DeadlineExceeded, 503, "no quorum answered within 5s"},
		{errors.New("page 7 is torn"), 500, "page 7 is torn"},
	} {
		w.link.fail(test.err, nil)
		for _, path := range []string{"/api/v1/services", "/api/v1/services/web", "/api/v1/services/web/backends/10.1.0.1:80", "/api/v1/watch"} {
			if p := w.do(http.MethodGet, path, "").problem(test.status); !strings.Contains(p.Detail, test.says) {
				t.Errorf("%s, %v: %v", path, test.err, p)
			}
		}
		// What this node has is still to be had, by name.
		w.do(http.MethodGet, "/api/v1/services?stale=true", "").ok(http.StatusOK, nil)
		w.do(http.MethodGet, "/api/v1/services/web?stale=1", "").problem(http.StatusNotFound)
		w.link.fail(nil, nil)
	}
	w.do(http.MethodGet, "/api/v1/services?stale=perhaps", "").problem(http.StatusBadRequest)
}

func TestHealthAndReadiness(t *testing.T) {
	forming := ""
	w := newWorld(t, func(c *Config) { c.Forming = func() string { return forming } })
	w.do(http.MethodGet, "/healthz", "").ok(http.StatusOK, nil)

	ready := func(status int, says string) {
		t.Helper()
		var s readiness
		w.do(http.MethodGet, "/readyz", "").ok(status, &s)
		if s.Ready != (status == http.StatusOK) || !strings.Contains(s.Reason, says) {
			t.Errorf("%+v, want %q", s, says)
		}
	}
	ready(http.StatusOK, "")
	w.link.fail(errors.New("no quorum"), nil)
	ready(http.StatusServiceUnavailable, "no quorum")
	w.link.fail(nil, nil)
	w.members.set(func(m *members) { m.view.Leader = "" })
	ready(http.StatusServiceUnavailable, "no leader")
	w.members.set(func(m *members) { m.view.ClusterID = "" })
	ready(http.StatusServiceUnavailable, "in no cluster yet")
	forming = "waiting for 127.0.0.1:9"
	ready(http.StatusServiceUnavailable, forming)

	// A write that fails meanwhile says the same.
	w.link.fail(nil, verdict{raftstore.ErrNoLeader, true})
	if p := w.do(http.MethodPut, "/api/v1/services/web", web).problem(http.StatusServiceUnavailable); !strings.Contains(p.Detail, forming) {
		t.Errorf("%v", p)
	}
	w.do(http.MethodGet, "/healthz", "").ok(http.StatusOK, nil)
}

func TestRequired(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an API without a store")
	}
	if w := newWorld(t); w.api.cfg.Timeout != 5*time.Second {
		t.Errorf("timeout %v", w.api.cfg.Timeout)
	}
}
