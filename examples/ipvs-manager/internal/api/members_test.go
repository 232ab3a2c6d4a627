package api

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/raftstore"
)

func TestMembersAreChanged(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodPatch, "/api/v1/cluster/members/node1", `{"raft_addr": "10.0.0.1:8110"}`).ok(http.StatusOK, nil)
	w.do(http.MethodPost, "/api/v1/cluster/members/node1/promote", "").ok(http.StatusOK, nil)
	w.do(http.MethodPut, "/api/v1/cluster/leader", `{"name": "node1"}`).ok(http.StatusOK, nil)
	want := []string{"move node1 10.0.0.1:8110 ", "promote node1", "lead node1"}
	if !slices.Equal(w.members.done, want) {
		t.Errorf("done %q", w.members.done)
	}
	for _, test := range []struct {
		method, path, body string
		status             int
		faults             string
	}{
		{http.MethodPatch, "members/node1", `{}`, 422, "raft_addr"},
		{http.MethodPatch, "members/node1", `{"http_addr": "here"}`, 422, "http_addr"},
		{http.MethodPatch, "members/node1", `{"name": "x"}`, 400, "name"},
		{http.MethodPut, "leader", `{}`, 422, "name"},
		{http.MethodPost, "leader", `{}`, 405, ""},
		{http.MethodGet, "members/node1/promote", "", 405, ""},
	} {
		if p := w.do(test.method, "/api/v1/cluster/"+test.path, test.body).problem(test.status); strings.TrimSpace(p.paths()) != test.faults {
			t.Errorf("%s %s %s: faults of %q", test.method, test.path, test.body, p.paths())
		}
	}
	if len(w.members.done) != len(want) {
		t.Errorf("a bad request changed something: %q", w.members.done)
	}
	w.members.set(func(m *members) { m.err = raftstore.ErrNoMember })
	w.do(http.MethodPost, "/api/v1/cluster/members/node7/promote", "").problem(http.StatusNotFound)
}

func TestBackupIsWholeOrBroken(t *testing.T) {
	w := newWorld(t)
	w.members.set(func(m *members) { m.backup = "everything" })
	a := w.do(http.MethodGet, "/api/v1/cluster/backup", "")
	if a.status != http.StatusOK || string(a.body) != "everything" || !slices.Equal(w.members.done, []string{"barrier", "backup"}) {
		t.Errorf("%q after %q", a.body, w.members.done)
	}
	w.do(http.MethodGet, "/api/v1/cluster/backup?stale=perhaps", "").problem(http.StatusBadRequest)
	w.members.set(func(m *members) { m.backup = "half" })
	resp, err := w.client.Get(w.server.URL + "/api/v1/cluster/backup")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("a backup that failed in the middle looks whole")
	}
	w.members.set(func(m *members) { m.err = raftstore.ErrStopped })
	w.do(http.MethodGet, "/api/v1/cluster/backup?stale=true", "").problem(http.StatusServiceUnavailable)
}
