package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// An agent is released by name, on whichever server, and the account says by
// whom and why.
func TestReleaseOfAnAgent(t *testing.T) {
	const held = "4 of 5 services would vanish"
	leader := newWorld(t, func(c *Config) {
		c.Agents = func() []agent.AgentInfo { return []agent.AgentInfo{{Name: "far", Held: held}, {Name: "well"}} }
	})
	w := follower(t, leader)
	const path = "/api/v1/agents/far/release"
	for body, paths := range map[string]string{`{}`: "reason", `{"reason": " "}`: "reason", `{"reason": "` + strings.Repeat("x", 501) + `"}`: "reason"} {
		if p := w.do(http.MethodPost, path, body).problem(http.StatusUnprocessableEntity); p.paths() != paths {
			t.Errorf("%s: %v", body, p)
		}
	}
	w.do(http.MethodPost, path, `{"reason": "x", "more": 1}`).problem(http.StatusBadRequest)
	w.do(http.MethodPost, "/api/v1/agents/nobody/release", `{"reason": "x"}`).problem(http.StatusNotFound)
	if p := w.do(http.MethodPost, "/api/v1/agents/well/release", `{"reason": "x"}`).problem(http.StatusConflict); p.Outcome != notApplied {
		t.Errorf("%v", p)
	}
	if len(w.account.all) != 0 {
		t.Fatalf("released: %+v", w.account.all)
	}
	var got releaseView
	w.do(http.MethodPost, path, `{"reason": "the services are to go"}`).ok(http.StatusOK, &got)
	if got.Agent != "far" || got.Held != held || got.By != "127.0.0.1" || got.Reason != "the services are to go" || got.At.IsZero() {
		t.Errorf("%+v", got)
	}
	var list struct{ Releases []releaseView }
	w.do(http.MethodGet, "/api/v1/releases", "").ok(http.StatusOK, &list)
	if len(list.Releases) != 1 || list.Releases[0] != got {
		t.Errorf("%+v", list)
	}
	w.account.err = raftstore.ErrNoLeader
	if p := w.do(http.MethodPost, path, `{"reason": "again"}`).problem(http.StatusServiceUnavailable); p.Outcome != notApplied {
		t.Errorf("%v", p)
	}
	w.do(http.MethodGet, "/api/v1/releases", "").problem(http.StatusServiceUnavailable)

	// A server that does not answer may be the one that knows the agent.
	leader.server.Close()
	if p := w.do(http.MethodPost, path, `{"reason": "x"}`).problem(http.StatusServiceUnavailable); !strings.Contains(p.Detail, "node0 did not answer") {
		t.Errorf("%v", p)
	}
}

func TestReleaseOfAPredecessor(t *testing.T) {
	w := newWorld(t)
	const path = "/api/v1/cluster/release-predecessor"
	if p := w.do(http.MethodPost, path, `{"cluster": "00000000000000c0", "reason": "x"}`).problem(http.StatusUnprocessableEntity); !strings.Contains(p.String(), "was not restored") {
		t.Errorf("%v", p)
	}
	w.members.set(func(m *members) { m.view.Predecessor = "00000000000000c0" })
	for _, body := range []string{`{"reason": "x"}`, `{"cluster": "00000000000000c1", "reason": "x"}`, `{"cluster": "00000000000000c0"}`} {
		w.do(http.MethodPost, path, body).problem(http.StatusUnprocessableEntity)
	}
	var got releaseView
	w.do(http.MethodPost, path, `{"cluster": "00000000000000c0", "reason": "restored after the fire"}`).ok(http.StatusOK, &got)
	if got.Cluster != "00000000000000c0" || len(w.account.all) != 1 || w.account.all[0].Cluster != 0xc0 || w.account.all[0].Reason != "restored after the fire" {
		t.Errorf("%+v, %+v", got, w.account.all)
	}
	var v ClusterView
	w.do(http.MethodGet, "/api/v1/cluster", "").ok(http.StatusOK, &v)
	if v.Predecessor != "00000000000000c0" {
		t.Errorf("%+v", v)
	}
}
