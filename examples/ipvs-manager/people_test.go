package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// A certificate that a server has renewed is on record.
func TestRenewedCertificatesAreRecorded(t *testing.T) {
	g := newGated(t, true)
	c, err := g.bundle.Issue(identity.ID{Role: identity.RoleAgent, Name: "lb1"}, nil, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := identity.Create(file, data); err != nil {
		t.Fatal(err)
	}
	lb1, err := identity.Open(identity.Config{KeyFile: file, Role: identity.RoleAgent})
	if err != nil {
		t.Fatal(err)
	}
	request, err := lb1.Request()
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(g.source, zap.NewNop())
	answer, err := r.Renew(*g.shows(identity.RoleAgent, "lb1"), request)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{cfg: config{nodeID: "s1"}, accessStore: g.store, people: g.state, renewals: r, log: zap.NewNop()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed := g.state.Changed(accessdata.KindCredential)
	done := make(chan error, 1)
	go func() { done <- s.record(ctx) }()
	<-changed
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := lb1.Accept(answer); err != nil {
		t.Fatal(err)
	}
	_, renewed, err := identity.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	record, err := g.store.Credential(t.Context(), "agent", "lb1", lbstate.ReadOptions{})
	if err != nil || len(record.Issued) != 1 || record.Issued[0].Serial != renewed.Serial() || !record.Issued[0].NotAfter.Equal(renewed.Expires()) {
		t.Errorf("%+v, %v; the certificate is %s", record, err, renewed.Serial())
	}
}

// INV-40: what one server is told of access holds at every other: labels change
// what an agent is shown, a revoked name ends where it is connected and is not
// let in again, tokens and roles are everywhere the same, and all of it is in
// the history.
func TestAccessIsReplicated(t *testing.T) {
	c := newSecureCluster(t)
	made(t, "agent-cert", "--key_file", c.key, "--name", "lb1", "--labels", "zone=a", "--out", c.file("lb1.key"))
	for _, name := range []string{"alice", "mallory"} {
		made(t, "operator-cert", "--key_file", c.key, "--name", name, "--out", c.file(name+".key"))
	}
	c.start()
	c.agent("lb1", c.grpc[2])
	alice, mallory := caller(t, c.file("alice.key"), c.key), caller(t, c.file("mallory.key"), c.key)
	must := func(server int, method, path, body string) string {
		t.Helper()
		status, text := c.ask(alice, server, method, path, body)
		if status != http.StatusOK && status != http.StatusCreated {
			t.Fatalf("%s %s: %d %s", method, path, status, text)
		}
		return text
	}
	// lb1 as the server that serves it knows it.
	lb1 := func() agent.AgentInfo {
		var list struct{ Agents []agent.AgentInfo }
		if _, body := c.ask(alice, 2, http.MethodGet, "/api/v1/agents?local=true", ""); json.Unmarshal([]byte(body), &list) != nil || len(list.Agents) != 1 {
			return agent.AgentInfo{}
		}
		return list.Agents[0]
	}
	for i, zone := range []string{"a", "a", "a", "a", "a", "b"} {
		must(0, http.MethodPut, fmt.Sprintf("/api/v1/services/in-%s%d", zone, i),
			fmt.Sprintf(`{"vip": "192.0.2.10", "port": %d, "agents": {"zone": %q}, "backends": [{"address": "10.1.0.1"}]}`, 80+i, zone))
	}
	within(t, 20*time.Second, "what its certificate selects", func() bool { return lb1().Applied.Services == 5 })

	must(0, http.MethodPut, "/api/v1/access/credentials/lb1?reason=moved", `{"labels": {"zone": "b"}}`)
	within(t, 5*time.Second, "what its stored labels select", func() bool {
		info := lb1()
		return info.Applied.Services == 1 && info.Labels["zone"] == "b"
	})
	must(1, http.MethodDelete, "/api/v1/access/credentials/lb1", "")
	within(t, 5*time.Second, "what its certificate selects, again", func() bool { return lb1().Applied.Services == 5 })
	if info := lb1(); info.Connects != 1 || info.Held != "" {
		t.Errorf("the stream did not go on: %+v", info)
	}

	// A person with a token, at another server than the one that made it.
	must(0, http.MethodPut, "/api/v1/access/users/bob", `{"role": "operator"}`)
	var token struct{ Secret, ID string }
	if err := json.Unmarshal([]byte(must(0, http.MethodPost, "/api/v1/access/tokens", `{"user": "bob"}`)), &token); err != nil {
		t.Fatal(err)
	}
	bob := caller(t, "", c.key)
	header := "Authorization: Bearer " + token.Secret
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{http.MethodGet, "/api/v1/services", "", http.StatusOK},
		{http.MethodPut, "/api/v1/services/bobs", `{"vip": "192.0.2.11", "port": 80, "backends": [{"address": "10.1.0.1"}]}`, http.StatusCreated},
		{http.MethodPut, "/api/v1/access/users/bob", `{"role": "admin"}`, http.StatusForbidden},
		{http.MethodGet, "/api/v1/cluster/backup", "", http.StatusForbidden},
		{http.MethodGet, "/raft/v1/node", "", http.StatusForbidden},
	} {
		if status, text := c.ask(bob, 2, test.method, test.path, test.body, header); status != test.status {
			t.Errorf("bob: %s %s: %d %s", test.method, test.path, status, text)
		}
	}
	if text := must(1, http.MethodGet, "/api/v1/history?limit=1", ""); !strings.Contains(text, `"author": "user bob"`) {
		t.Errorf("bob is not the author of a change: %s", text)
	}
	must(1, http.MethodDelete, "/api/v1/access/tokens/"+token.ID, "")
	within(t, 2*time.Second, "a deleted token is refused", func() bool {
		status, _ := c.ask(bob, 2, http.MethodGet, "/api/v1/services", "", header)
		return status == http.StatusUnauthorized
	})

	// An operator's watch at one server, and an agent's stream at another.
	ended := make(chan struct{})
	watch, err := mallory.Get("https://" + c.http[1] + "/api/v1/watch")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		defer watch.Body.Close()
		_, _ = io.Copy(io.Discard, watch.Body) // until the server ends it
	}()
	must(0, http.MethodPost, "/api/v1/access/revocations", `{"kind": "operator", "name": "mallory", "reason": "left the company"}`)
	began := time.Now()
	must(0, http.MethodPost, "/api/v1/access/revocations", `{"kind": "agent", "name": "lb1", "reason": "the host was sold"}`)
	within(t, time.Second, "the revoked agent's stream ends on another server", func() bool {
		info := lb1()
		return !info.Connected && strings.Contains(info.Problem, "revoked") && strings.Contains(info.Problem, "the host was sold")
	})
	t.Logf("off %v after the request", time.Since(began).Round(time.Millisecond))
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the watch of a revoked operator goes on")
	}
	if status, text := c.ask(mallory, 2, http.MethodGet, "/api/v1/services", ""); status != 0 && (status != http.StatusForbidden || !strings.Contains(text, "left the company")) {
		t.Errorf("a revoked operator: %d %s", status, text)
	}
	must(2, http.MethodDelete, "/api/v1/access/revocations/agent/lb1?reason=bought+back", "")
	within(t, 20*time.Second, "let in again", func() bool { return lb1().Connected })

	// A revoked server is cut off from the others, and comes back.
	anyone := caller(t, "", c.key)
	ready := func() bool {
		status, _ := c.ask(anyone, 2, http.MethodGet, "/readyz", "")
		return status == http.StatusOK
	}
	must(0, http.MethodPost, "/api/v1/access/revocations", `{"kind": "server", "name": "node2", "reason": "taken away"}`)
	within(t, 10*time.Second, "a revoked server is cut off", func() bool { return !ready() })
	within(t, 20*time.Second, "the others go on", func() bool {
		status, _ := c.ask(alice, 0, http.MethodDelete, "/api/v1/access/revocations/server/node2", "")
		return status == http.StatusOK
	})
	within(t, 20*time.Second, "let in again", ready)

	text := must(2, http.MethodGet, "/api/v1/access/history", "")
	for _, want := range []string{`"author": "operator alice"`, `"reason": "moved"`, `"reason": "bought back"`, `"after": "the host was sold"`, `"after": "{zone=b}"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the history lacks %s", want)
		}
	}
	if strings.Contains(text, token.Secret) {
		t.Error("the history has a secret")
	}
}
