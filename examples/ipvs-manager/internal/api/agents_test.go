package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// Each server knows the agents that are connected to it; a list has each agent
// once, by the account of the one that it is connected to.
func TestAgentsOfAllServers(t *testing.T) {
	now := time.Now()
	mine := []agent.AgentInfo{
		{Name: "moved", Server: "node1", Connected: false, LastHeard: now},
		{Name: "mine", Server: "node1", Connected: true, LastHeard: now},
		{Name: "gone", Server: "node1", LastHeard: now.Add(-time.Minute)},
	}
	theirs := []agent.AgentInfo{
		{Name: "gone", Server: "node0", LastHeard: now.Add(-time.Second)},
		{
			Name: "moved", Server: "node0", Connected: true, LastHeard: now.Add(-time.Second),
			Applied: lbstate.Applied{Profile: &lbstate.AppliedProfile{Name: "edge", Revision: 7}},
		},
	}
	leader := newWorld(t, func(c *Config) { c.Agents = func() []agent.AgentInfo { return theirs } })
	w := follower(t, leader, func(c *Config) { c.Agents = func() []agent.AgentInfo { return mine } })

	list := func(query string) (names string, l agentList) {
		t.Helper()
		w.do(http.MethodGet, "/api/v1/agents"+query, "").ok(http.StatusOK, &l)
		for _, a := range l.Agents {
			names += fmt.Sprintf("%s by %s, ", a.Name, a.Server)
		}
		return names, l
	}
	if got, _ := list(""); got != "gone by node0, mine by node1, moved by node0, " {
		t.Error(got)
	}
	if got, l := list("?local=1"); got != "gone by node1, mine by node1, moved by node1, " || l.At.IsZero() {
		t.Error(got)
	}
	w.do(http.MethodGet, "/api/v1/agents?local=x", "").problem(http.StatusBadRequest)

	// One agent is shown by the same account, with its profile.
	var one agent.AgentInfo
	w.do(http.MethodGet, "/api/v1/agents/moved", "").ok(http.StatusOK, &one)
	if one.Server != "node0" || one.Applied.Profile == nil || one.Applied.Profile.Name != "edge" || one.Applied.Profile.Revision != 7 {
		t.Errorf("%+v", one)
	}
	w.do(http.MethodGet, "/api/v1/agents/moved?local=1", "").ok(http.StatusOK, &one)
	if one.Server != "node1" {
		t.Errorf("%+v", one)
	}
	w.do(http.MethodGet, "/api/v1/agents/nobody", "").problem(http.StatusNotFound)
	w.do(http.MethodGet, "/api/v1/agents/moved?local=x", "").problem(http.StatusBadRequest)

	// A server that does not answer is named; the rest is shown.
	leader.server.Close()
	got, l := list("")
	if got != "gone by node1, mine by node1, moved by node1, " || len(l.Unanswered) != 1 || l.Unanswered[0].Name != "node0" || l.Unanswered[0].Reason == "" {
		t.Errorf("%s, %+v", got, l.Unanswered)
	}
}

// A server that hangs, or answers nonsense, holds the list up for no longer
// than a second.
func TestAgentsOfAServerThatHangs(t *testing.T) {
	release := make(chan struct{})
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/agents" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))
	defer bad.Close()
	defer close(release)
	nonsense := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	defer nonsense.Close()
	w := newWorld(t)
	w.members.set(func(m *members) {
		m.view.Members = append(m.view.Members,
			MemberView{Name: "hangs", HTTPAddr: bad.Listener.Addr().String()},
			MemberView{Name: "nonsense", HTTPAddr: nonsense.Listener.Addr().String()})
	})
	start := time.Now()
	var l agentList
	w.do(http.MethodGet, "/api/v1/agents", "").ok(http.StatusOK, &l)
	if len(l.Unanswered) != 2 || l.Agents == nil || time.Since(start) > 4*askTimeout {
		t.Errorf("%+v after %v", l, time.Since(start))
	}
}
