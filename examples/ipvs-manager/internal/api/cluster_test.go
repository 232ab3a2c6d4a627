package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
)

const joining = `{"name": "node9", "raft_addr": "127.0.0.1:9", "http_addr": "127.0.0.1:10", "incarnation": 13835058055282163713}`

func TestClusterIsShown(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Forming = func() string { return "waiting for 127.0.0.1:9" } })
	var v ClusterView
	w.do(http.MethodGet, "/api/v1/cluster", "").ok(http.StatusOK, &v)
	if v.ClusterID != "00000000000000c1" || v.Leader != "node0" || v.Server.Name != "node0" || len(v.Members) != 1 || v.At.IsZero() || v.Forming != "" {
		t.Errorf("%+v", v)
	}
	w.do(http.MethodGet, "/api/v1/cluster?local=perhaps", "").problem(http.StatusBadRequest)
	w.members.set(func(m *members) { m.view = ClusterView{} })
	a := w.do(http.MethodGet, "/api/v1/cluster", "")
	a.ok(http.StatusOK, &v)
	if !strings.Contains(string(a.body), `"members": []`) || v.Forming != "waiting for 127.0.0.1:9" {
		t.Errorf("without a cluster: %s", a.body)
	}
}

func TestMemberIsAdded(t *testing.T) {
	w := newWorld(t)
	var got raftstore.Membership
	w.do(http.MethodPost, "/api/v1/cluster/members", joining).ok(http.StatusCreated, &got)
	if len(got.Members) != 1 || got.Member != 7 {
		t.Errorf("%+v", got)
	}
	if n := w.members.added; len(n) != 1 || n[0].Incarnation != 13835058055282163713 || n[0].Name != "node9" {
		t.Errorf("added %+v", n)
	}
	for _, test := range []struct {
		body   string
		status int
		paths  string
	}{
		{`{}`, 422, "name raft_addr http_addr incarnation"},
		{`{"name": "a", "raft_addr": ":1", "http_addr": "x", "incarnation": 1}`, 422, "raft_addr http_addr"},
		{strings.Replace(joining, "{", `{"id": 3, `, 1), 422, "id"},
		{strings.Replace(joining, "{", `{"role": "leader", `, 1), 400, "role"},
		{strings.Replace(joining, "13835058055282163713", `"x"`, 1), 400, "incarnation"},
		{strings.Replace(joining, "13835058055282163713", `-1`, 1), 400, "incarnation"},
		{`[]`, 400, ""},
		{`{`, 400, ""},
	} {
		if p := w.do(http.MethodPost, "/api/v1/cluster/members", test.body).problem(test.status); strings.TrimSpace(p.paths()) != test.paths {
			t.Errorf("%s: faults of %q, want %q", test.body, p.paths(), test.paths)
		}
	}
	if n := len(w.members.added); n != 1 {
		t.Errorf("%d were added", n)
	}
}

func TestMemberChangesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodDelete, "/api/v1/cluster/members/node9", "").ok(http.StatusOK, nil)
	if n := w.members.removed; len(n) != 1 || n[0] != "node9" {
		t.Errorf("removed %v", n)
	}
	for _, test := range []struct {
		err          error
		status       int
		typ, outcome string
	}{
		{fmt.Errorf("%w: node9", raftstore.ErrNoMember), 404, "about:blank", ""},
		{raftstore.ErrNameInUse, 409, typeConflict, notApplied},
		{raftstore.ErrQuorum, 409, typeConflict, notApplied},
		{raftstore.ErrOlder, 409, typeConflict, notApplied},
		{raftstore.ErrRemoved, 409, typeConflict, notApplied},
		{raftstore.ErrNotLeader, 503, typeUnavailable, notApplied},
		{raftstore.ErrNoLeader, 503, typeUnavailable, notApplied},
		{verdict{context.DeadlineExceeded, false}, 503, typeUnknown, outcomeUnknown},
		{errors.New("strange"), 503, typeUnknown, outcomeUnknown},
	} {
		w.members.set(func(m *members) { m.err = test.err })
		for _, a := range []answer{
			w.do(http.MethodPost, "/api/v1/cluster/members", joining),
			w.do(http.MethodDelete, "/api/v1/cluster/members/node9", ""),
		} {
			if p := a.problem(test.status); p.Type != test.typ || p.Outcome != test.outcome {
				t.Errorf("%v: %v", test.err, p)
			}
		}
	}
}

// follower makes a second world whose node follows the first's.
func follower(t *testing.T, leader *world, options ...func(*Config)) *world {
	t.Helper()
	f := newWorld(t, append(options, func(c *Config) { c.About.Name = "node1" })...)
	view := ClusterView{ClusterID: "00000000000000c1", Leader: "node0", Term: 3, Members: []MemberView{
		{Name: "node0", HTTPAddr: leader.address(), Role: "leader"},
		{Name: "node1", HTTPAddr: f.address(), Role: "follower"},
	}}
	f.members.set(func(m *members) { m.view = view })
	leader.members.set(func(m *members) {
		m.view = view
		m.view.Members = []MemberView{
			{Name: "node0", HTTPAddr: leader.address(), Role: "leader", Progress: &Progress{Match: 42, Active: true}},
			{Name: "node1", HTTPAddr: f.address(), Role: "follower", Progress: &Progress{Match: 41, Active: true}},
		}
	})
	return f
}

// Any node takes a change of members, and shows what the leader alone knows.
func TestFollowerPassesOnToTheLeader(t *testing.T) {
	leader := newWorld(t)
	f := follower(t, leader)

	f.do(http.MethodPost, "/api/v1/cluster/members", joining).ok(http.StatusCreated, nil)
	f.do(http.MethodDelete, "/api/v1/cluster/members/node%209", "").ok(http.StatusOK, nil)
	if len(leader.members.added) != 1 || len(f.members.added) != 0 || leader.members.removed[0] != "node 9" {
		t.Errorf("leader %+v, follower %+v", leader.members, f.members)
	}
	// Faults are found before it is asked, and its refusals come back whole.
	f.do(http.MethodPost, "/api/v1/cluster/members", `{}`).problem(http.StatusUnprocessableEntity)
	leader.members.set(func(m *members) { m.err = raftstore.ErrQuorum })
	if p := f.do(http.MethodDelete, "/api/v1/cluster/members/node0", "").problem(http.StatusConflict); p.Type != typeConflict {
		t.Errorf("%v", p)
	}

	var v ClusterView
	f.do(http.MethodGet, "/api/v1/cluster", "").ok(http.StatusOK, &v)
	if v.Server.Name != "node1" || v.Members[0].Progress == nil || v.Members[1].Progress.Match != 41 {
		t.Errorf("%+v", v)
	}
	f.do(http.MethodGet, "/api/v1/cluster?local=true", "").ok(http.StatusOK, &v)
	f.do(http.MethodGet, "/api/v1/cluster?local=false", "").ok(http.StatusOK, &v)
	if v.Members[0].Progress == nil {
		t.Errorf("?local=false is taken for true: %+v", v)
	}
	// An answer of another cluster is not believed.
	leader.members.set(func(m *members) { m.view.ClusterID = "00000000000000c2" })
	v = ClusterView{}
	f.do(http.MethodGet, "/api/v1/cluster", "").ok(http.StatusOK, &v)
	if v.Members[0].Progress != nil {
		t.Errorf("another cluster's progress: %+v", v)
	}
}

// Two nodes that each take the other for the leader do not play ball.
func TestForwardingEnds(t *testing.T) {
	a := newWorld(t)
	b := follower(t, a)
	a.members.set(func(m *members) {
		m.view.Leader, m.err = "node1", raftstore.ErrNotLeader
	})
	b.members.set(func(m *members) { m.err = raftstore.ErrNotLeader })
	for _, w := range []*world{a, b} {
		if p := w.do(http.MethodDelete, "/api/v1/cluster/members/node9", "").problem(http.StatusServiceUnavailable); p.Outcome != notApplied {
			t.Errorf("%v", p)
		}
	}
	// A leader that is gone: nothing is known.
	a.server.Close()
	if p := b.do(http.MethodDelete, "/api/v1/cluster/members/node9", "").problem(http.StatusServiceUnavailable); !strings.Contains(p.Detail, "node0") {
		t.Errorf("%v", p)
	}
	// The view is this node's own then.
	b.do(http.MethodGet, "/api/v1/cluster", "").ok(http.StatusOK, nil)
}

// oneNode serves a store of one node as the program does.
type oneNode struct{ *raftstore.Store }

func (r oneNode) View() ClusterView {
	st := r.Status()
	v := ClusterView{Leader: st.LeaderName, Term: st.Term}
	if st.Cluster != 0 {
		v.ClusterID = fmt.Sprintf("%016x", st.Cluster)
	}
	for _, m := range r.Members() {
		v.Members = append(v.Members, MemberView{Name: m.Name, HTTPAddr: m.HTTPAddr})
	}
	return v
}

// The API on a real store, from before it is formed to after it has stopped.
func TestOnARealStore(t *testing.T) {
	state := lbstate.New(lbstate.Config{})
	store, err := raftstore.Open(raftstore.Config{
		Dir: t.TempDir(), Name: "node0", RaftAddr: "127.0.0.1:1", HTTPAddr: "127.0.0.1:2", TickInterval: 10 * time.Millisecond,
		StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	w := &world{t: t}
	w.serve(Config{
		Store: lbstate.NewStore(state, store.Machine(lbstate.Bucket)), Checks: &w.prober, Cluster: oneNode{store}, Access: newAccess(t), Agents: nobody, Releases: &account{}, Statistics: noStatistics,
		About: About{Name: "node0"}, Timeout: 5 * time.Second,
	}, func(*API, *http.Server) {})
	w.do(http.MethodGet, "/readyz", "").ok(http.StatusServiceUnavailable, nil)
	w.do(http.MethodGet, "/api/v1/services", "").problem(http.StatusServiceUnavailable)
	if p := w.do(http.MethodPut, "/api/v1/services/web", web).problem(http.StatusServiceUnavailable); p.Outcome != notApplied {
		t.Errorf("before there is a cluster: %v", p)
	}
	if p := w.do(http.MethodPut, "/api/v1/services/web/backends/10.1.0.1:80", "{}").problem(http.StatusServiceUnavailable); p.Outcome != notApplied {
		t.Errorf("before there is a cluster: %v", p)
	}
	w.do(http.MethodGet, "/api/v1/services?stale=true", "").ok(http.StatusOK, nil)

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	if err := store.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	w.do(http.MethodGet, "/readyz", "").ok(http.StatusOK, nil)
	var res lbstate.WriteResult
	w.do(http.MethodPut, "/api/v1/services/web", web).ok(http.StatusCreated, &res)
	r := w.watch("")
	if e := r.next(); e.names() != "snapshot web" || e.change.Revision != res.Revision {
		t.Errorf("%s %+v", e.names(), e)
	}
	w.do(http.MethodDelete, "/api/v1/services/web", "").ok(http.StatusOK, nil)
	if e := r.next(); e.names() != "change -web" {
		t.Errorf("%s", e.names())
	}
	w.do(http.MethodDelete, "/api/v1/cluster/members/node0", "").problem(http.StatusConflict)
	w.do(http.MethodDelete, "/api/v1/cluster/members/node7", "").problem(http.StatusNotFound)
	w.do(http.MethodPost, "/api/v1/cluster/members", strings.Replace(joining, "node9", "node0", 1)).problem(http.StatusConflict)
	if p := w.do(http.MethodPost, "/api/v1/cluster/members", joining).problem(http.StatusConflict); !strings.Contains(p.Detail, "older than the cluster's commands") {
		t.Errorf("a member that does not say what it knows: %s", p.Detail)
	}
	versions, err := json.Marshal(store.Identity().Versions)
	if err != nil {
		t.Fatal(err)
	}
	joining := strings.Replace(joining, "{", `{"versions": `+string(versions)+`, `, 1)
	var got raftstore.Membership
	w.do(http.MethodPost, "/api/v1/cluster/members", joining).ok(http.StatusCreated, &got)
	if len(got.Members) != 2 || got.Member == 0 {
		t.Errorf("%+v", got)
	}
	w.do(http.MethodDelete, "/api/v1/cluster/members/node9", "").ok(http.StatusOK, nil)
	w.do(http.MethodPost, "/api/v1/cluster/members", joining).problem(http.StatusConflict) // it never returns

	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.do(http.MethodGet, "/readyz", "").ok(http.StatusServiceUnavailable, nil)
	w.do(http.MethodGet, "/api/v1/services", "").problem(http.StatusServiceUnavailable)
	w.do(http.MethodPut, "/api/v1/services/web", web).problem(http.StatusServiceUnavailable)
}
