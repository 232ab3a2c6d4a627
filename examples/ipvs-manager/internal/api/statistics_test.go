package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent"
)

// An agent's statistics come from the server that it is connected to.
func TestStatisticsOfAnAgent(t *testing.T) {
	answer := agent.Statistics{Series: []agent.Series{{Service: "web", Samples: []agent.Sample{{Seconds: 10, Connections: 4}}}}}
	var asked string
	var err error
	leader := newWorld(t, func(c *Config) {
		c.Agents = func() []agent.AgentInfo {
			return []agent.AgentInfo{{Name: "far", Server: "node0", Connected: true}, {Name: "gone", Server: "node0"}}
		}
		c.Statistics = func(_ context.Context, name, service string, since time.Time) (agent.Statistics, error) {
			if name != "far" {
				return agent.Statistics{}, agent.ErrNotConnected
			}
			asked = fmt.Sprint(service, " ", time.Since(since).Round(time.Minute))
			return answer, err
		}
	})
	w := follower(t, leader)
	const path = "/api/v1/agents/far/statistics"
	for query, want := range map[string]string{
		"": " 1h0m0s", "?service=web": "web 1h0m0s", "?since=10m": " 10m0s", "?since=3h": " 1h0m0s",
		"?since=" + time.Now().Add(-20*time.Minute).UTC().Format(time.RFC3339): " 20m0s",
	} {
		var got statistics
		w.do(http.MethodGet, path+query, "").ok(http.StatusOK, &got)
		if asked != want || got.Agent != "far" || got.Server != "node0" || len(got.Series) != 1 || got.Series[0].Samples[0].Connections != 4 {
			t.Errorf("%s: asked for %q, %+v", query, asked, got)
		}
	}
	for _, query := range []string{"?since=x", "?since=-10m", "?since=2200-01-02T15:04:05Z"} {
		if p := w.do(http.MethodGet, path+query, "").problem(http.StatusUnprocessableEntity); p.paths() != "since" {
			t.Errorf("%s: %v", query, p)
		}
	}
	w.do(http.MethodGet, "/api/v1/agents/nobody/statistics", "").problem(http.StatusNotFound)
	w.do(http.MethodGet, "/api/v1/agents/gone/statistics", "").problem(http.StatusServiceUnavailable)
	err = agent.ErrBusy
	if a := w.do(http.MethodGet, path, ""); a.problem(http.StatusTooManyRequests).Detail == "" || a.header.Get("Retry-After") != "1" {
		t.Errorf("%v", a.header)
	}
	err = agent.ErrNoStatistics
	if p := w.do(http.MethodGet, path, "").problem(http.StatusNotFound); !strings.Contains(p.Detail, "no statistics") {
		t.Errorf("%v", p)
	}
}
