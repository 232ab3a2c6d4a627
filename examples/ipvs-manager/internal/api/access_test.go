package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
)

const phc = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo"

func TestUsersAndTokens(t *testing.T) {
	w := newWorld(t)
	var res lbstate.WriteResult
	w.do(http.MethodPut, "/api/v1/access/users/bob?reason=new+colleague", `{"role": "operator", "password_hash": "`+phc+`"}`).ok(http.StatusCreated, &res)
	if res.Revision != 1 || res.Outcome != lbstate.Created {
		t.Errorf("%+v", res)
	}
	a := w.do(http.MethodGet, "/api/v1/access/users/bob", "")
	var shown shownUser
	a.ok(http.StatusOK, &shown)
	if !shown.HasPassword || shown.Role != accessdata.Operator || strings.Contains(string(a.body), "argon2id") {
		t.Errorf("%s", a.body)
	}
	w.do(http.MethodPut, "/api/v1/access/users/bob", `{"role": "operator", "note": "on call"}`, `If-Match: "1"`).ok(http.StatusOK, nil)
	if p := w.do(http.MethodPut, "/api/v1/access/users/bob", `{"role": "admin"}`, `If-Match: "1"`).problem(http.StatusPreconditionFailed); *p.Revision != 2 {
		t.Errorf("%v", p)
	}
	for body, want := range map[string]string{
		`{"role": "root"}`: "role", `{"role": "viewer", "password_hash": "secret"}`: "password_hash", `{"role": "viewer", "name": "eve"}`: "name",
	} {
		p := w.do(http.MethodPut, "/api/v1/access/users/bob", body).problem(http.StatusUnprocessableEntity)
		if p.paths() != want || strings.Contains(p.String(), "secret") {
			t.Errorf("%s: %v", body, p)
		}
	}
	w.do(http.MethodPut, "/api/v1/access/users/bob", `{"role": "viewer", "password": "x"}`).problem(http.StatusBadRequest)
	w.do(http.MethodPut, "/api/v1/access/users/bob", `{"role": "viewer"}`, `Idempotency-Key: x`).problem(http.StatusBadRequest)
	w.do(http.MethodGet, "/api/v1/access/users/eve", "").problem(http.StatusNotFound)

	var made struct {
		Secret, ID, User string
		Role             accessdata.Role
		Expires          time.Time
	}
	a = w.do(http.MethodPost, "/api/v1/access/tokens", `{"user": "bob", "role": "viewer", "note": "script"}`)
	a.ok(http.StatusCreated, &made)
	if !accessdata.IsSecret(made.Secret) || made.Role != accessdata.Viewer || time.Until(made.Expires) > tokenLifetime || a.header.Get("Location") != "/api/v1/access/tokens/"+made.ID {
		t.Errorf("%s, %v", a.body, a.header)
	}
	if p, err := w.access.Authenticate(t.Context(), made.Secret, nil); err != nil || p.User != "bob" || p.Role != accessdata.Viewer {
		t.Errorf("%+v, %v", p, err)
	}
	list := w.do(http.MethodGet, "/api/v1/access/tokens", "")
	list.ok(http.StatusOK, nil)
	if !strings.Contains(string(list.body), made.ID) || strings.Contains(string(list.body), made.Secret) {
		t.Errorf("%s", list.body)
	}
	w.do(http.MethodPost, "/api/v1/access/tokens", `{"user": "bob"}`).ok(http.StatusCreated, &made)
	if made.Role != accessdata.Operator {
		t.Errorf("%+v", made)
	}
	w.do(http.MethodPost, "/api/v1/access/tokens", `{"user": "bob", "role": "admin"}`).problem(http.StatusUnprocessableEntity)
	w.do(http.MethodPost, "/api/v1/access/tokens", `{"user": "bob", "expires": "2001-01-01T00:00:00Z"}`).problem(http.StatusUnprocessableEntity)
	w.do(http.MethodPost, "/api/v1/access/tokens", `{"user": "eve"}`).problem(http.StatusNotFound)
	w.do(http.MethodPost, "/api/v1/access/tokens", `{}`).problem(http.StatusUnprocessableEntity)
	w.do(http.MethodDelete, "/api/v1/access/tokens/"+made.ID, "").ok(http.StatusOK, nil)
	w.do(http.MethodDelete, "/api/v1/access/tokens/"+made.ID, "").problem(http.StatusNotFound)

	var history accessHistoryList
	w.do(http.MethodGet, "/api/v1/access/history?limit=2", "").ok(http.StatusOK, &history)
	if len(history.History) != 2 || history.Next != history.History[1].Revision || history.History[0].Objects[0].Outcome != lbstate.Deleted {
		t.Errorf("%+v", history)
	}
	w.do(http.MethodGet, "/api/v1/access/history?before=2", "").ok(http.StatusOK, &history)
	if len(history.History) != 1 || history.History[0].Author != "127.0.0.1" || history.History[0].Reason != "new colleague" {
		t.Errorf("%+v", history)
	}
	w.do(http.MethodDelete, "/api/v1/access/users/bob", "").ok(http.StatusOK, nil)
	if _, err := w.access.Authenticate(t.Context(), made.Secret, nil); err == nil {
		t.Error("the token outlives its user")
	}
}

func TestRevocationsAndCredentials(t *testing.T) {
	w := newWorld(t)
	w.do(http.MethodPost, "/api/v1/access/revocations", `{"kind": "agent", "name": "lb1", "reason": "sold"}`).ok(http.StatusCreated, nil)
	made := w.do(http.MethodPost, "/api/v1/access/revocations", `{"kind": "serial", "name": "00:AB:cd", "reason": "lost laptop", "until": "2100-01-01T00:00:00Z"}`)
	made.ok(http.StatusCreated, nil)
	if at := made.header.Get("Location"); at != "/api/v1/access/revocations/serial/abcd" {
		t.Errorf("made at %s", at)
	}
	for body, want := range map[string]string{
		`{"kind": "ca", "name": "x", "reason": "y"}`: "kind", `{"kind": "agent", "name": "lb1"}`: "reason", `{"kind": "serial", "name": "x", "reason": "y"}`: "name",
		`{"kind": "agent", "name": "x", "reason": "y", "until": "2001-01-01T00:00:00Z"}`: "until",
	} {
		if p := w.do(http.MethodPost, "/api/v1/access/revocations", body).problem(http.StatusUnprocessableEntity); p.paths() != want {
			t.Errorf("%s: %v", body, p)
		}
	}
	var list struct{ Revocations []accessdata.Revocation }
	w.do(http.MethodGet, "/api/v1/access/revocations", "").ok(http.StatusOK, &list)
	if len(list.Revocations) != 2 || list.Revocations[1].Name != "abcd" || list.Revocations[0].Creator != "127.0.0.1" {
		t.Errorf("%+v", list)
	}
	w.do(http.MethodDelete, "/api/v1/access/revocations/serial/AB:CD?reason=found", "").ok(http.StatusOK, nil)
	w.do(http.MethodDelete, "/api/v1/access/revocations/serial/abcd", "").problem(http.StatusNotFound)

	w.do(http.MethodPut, "/api/v1/access/credentials/lb1", `{"labels": {"zone": "a"}}`).ok(http.StatusCreated, nil)
	var c accessdata.Credential
	w.do(http.MethodGet, "/api/v1/access/credentials/lb1", "").ok(http.StatusOK, &c)
	if c.Role != "agent" || c.Labels["zone"] != "a" {
		t.Errorf("%+v", c)
	}
	w.do(http.MethodPut, "/api/v1/access/credentials/lb1", `{"labels": {"a b": ""}}`).problem(http.StatusUnprocessableEntity)
	w.do(http.MethodGet, "/api/v1/access/credentials", "").ok(http.StatusOK, nil)
	w.do(http.MethodDelete, "/api/v1/access/credentials/lb1", "").ok(http.StatusOK, nil)
	w.do(http.MethodGet, "/api/v1/access/credentials/lb1", "").problem(http.StatusNotFound)
}

// Each role may do what it is for, and no more; who is nobody may do nothing.
// INV-40.
func TestRolesOfRequests(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		method, path, body string
		needs              string
	}{
		{http.MethodGet, "/api/v1/services", "", "viewer"},
		{http.MethodGet, "/api/v1/history", "", "viewer"},
		{http.MethodGet, "/api/v1/access/self", "", "viewer"},
		{http.MethodPost, "/api/v1/plan", "services: []", "viewer"},
		{http.MethodPut, "/api/v1/services/web", web, "operator"},
		{http.MethodDelete, "/api/v1/services/web", "", "operator"},
		{http.MethodPost, "/api/v1/rollback", "{}", "operator"},
		{http.MethodDelete, "/api/v1/health/hold", "", "operator"},
		{http.MethodPut, "/api/v1/settings", "{}", "operator"},
		{http.MethodPost, "/api/v1/agents/lb1/release", "{}", "operator"},
		{http.MethodGet, "/api/v1/releases", "", "viewer"},
		{http.MethodGet, "/api/v1/agents/lb1/statistics", "", "viewer"},
		{http.MethodPost, "/api/v1/cluster/release-predecessor", "{}", "admin"},
		{http.MethodGet, "/api/v1/cluster", "", "viewer"},
		{http.MethodGet, "/api/v1/cluster/backup", "", "admin"},
		{http.MethodPost, "/api/v1/cluster/members", joining, "admin"},
		{http.MethodDelete, "/api/v1/cluster/members/node9", "", "admin"},
		{http.MethodPut, "/api/v1/cluster/leader", "{}", "admin"},
		{http.MethodGet, "/api/v1/access/users", "", "admin"},
		{http.MethodGet, "/api/v1/access/history", "", "admin"},
		{http.MethodPost, "/api/v1/access/tokens", "{}", "admin"},
		{http.MethodPost, "/api/v1/access/revocations", "{}", "admin"},
		{http.MethodPut, "/api/v1/access/credentials/lb1", "{}", "admin"},
		{http.MethodPost, "/api/v1//access/tokens", "{}", ""}, // led to the path above, which asks again
	} {
		for _, role := range []accessdata.Role{"nothing", accessdata.Viewer, accessdata.Operator, accessdata.Admin} {
			a := w.do(test.method, test.path, test.body, "Test-Role: "+string(role))
			allowed := test.needs == "" || role.May(accessdata.Role(test.needs))
			if (a.status == http.StatusForbidden) == allowed {
				t.Errorf("%s as %s: %d %s", a.request, role, a.status, a.body)
			}
			if !allowed {
				if p := a.problem(http.StatusForbidden); !strings.Contains(p.Detail, "needs the role "+test.needs) {
					t.Errorf("%v", p)
				}
			}
		}
	}
	mux := http.NewServeMux()
	w.api.Register(mux)
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/api/v1/services": http.StatusForbidden, "/api/v1/access/users": http.StatusForbidden} {
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		if answer.Code != want {
			t.Errorf("%s of nobody: %d %s", path, answer.Code, answer.Body)
		}
	}
}
