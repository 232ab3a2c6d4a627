package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/api"
	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// gated is a gate before a handler that does nothing.
type gated struct {
	*gate
	t      *testing.T
	bundle *identity.Bundle
	local  *lbstate.Local
	served int // requests that came through
}

func newGated(t *testing.T, secure bool) *gated {
	t.Helper()
	state := accessdata.New(accessdata.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	g := &gated{t: t, local: local}
	var source *identity.Source
	if secure {
		if g.bundle, err = identity.NewBundle("prod", time.Now()); err != nil {
			t.Fatal(err)
		}
		data, err := g.bundle.Encode()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "key")
		if err := identity.Create(file, data); err != nil {
			t.Fatal(err)
		}
		if source, err = identity.Open(identity.Config{KeyFile: file, Role: identity.RoleServer, Name: "s1", Revoked: revokedIn(state, nil)}); err != nil {
			t.Fatal(err)
		}
	}
	g.gate = newGate(source, state, accessdata.NewStore(state, local), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.served++
		fmt.Fprintf(w, "%+v", api.CallerOf(r))
	}), zap.NewNop())
	return g
}

func (g *gated) user(name string, role accessdata.Role, disabled bool) {
	g.t.Helper()
	if _, err := g.store.PutUser(g.t.Context(), accessdata.User{Name: name, Role: role, Disabled: disabled}, accessdata.WriteOptions{}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gated) token(user string, role accessdata.Role) (secret, id string) {
	g.t.Helper()
	secret, made, err := g.store.CreateToken(g.t.Context(), accessdata.Token{User: user, Role: role}, accessdata.WriteOptions{})
	if err != nil {
		g.t.Fatal(err)
	}
	return secret, made.ID
}

func (g *gated) shows(role identity.Role, name string) *tls.ConnectionState {
	g.t.Helper()
	return g.showed(role, name, time.Now())
}

// showed is a connection with a certificate that is valid for an hour.
func (g *gated) showed(role identity.Role, name string, from time.Time) *tls.ConnectionState {
	g.t.Helper()
	c, err := g.bundle.Issue(identity.ID{Role: role, Name: name}, nil, time.Hour, from)
	if err != nil {
		g.t.Fatal(err)
	}
	data, err := c.Encode()
	if err != nil {
		g.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		g.t.Fatal(err)
	}
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}
}

// ask makes a request over a connection with a certificate, or with none.
func (g *gated) ask(path string, shown *tls.ConnectionState, secret string) (int, string) {
	g.t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.TLS = shown
	if secret != "" {
		r.Header.Set("Authorization", secret)
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestWhoGetsThroughTheGate(t *testing.T) {
	g := newGated(t, true)
	g.user("bob", accessdata.Operator, false)
	g.user("dora", accessdata.Viewer, false)
	g.user("eve", accessdata.Admin, true)
	bobs, _ := g.token("bob", accessdata.Viewer)
	eves, _ := g.token("eve", accessdata.Admin)
	none := &tls.ConnectionState{}
	for _, test := range []struct {
		name   string
		shown  *tls.ConnectionState
		secret string
		status int
		says   string
	}{
		{"no certificate", none, "", http.StatusUnauthorized, "operator-cert"},
		{"plain text", nil, "", http.StatusForbidden, "TLS alone"},
		{"plain text and a token", nil, "Bearer " + bobs, http.StatusForbidden, "TLS alone"},
		{"a token", none, "Bearer " + bobs, http.StatusOK, "Role:viewer"},
		{"another spelling", none, "bearer  " + bobs, http.StatusOK, "Author:user bob"},
		{"no such token", none, "Bearer " + accessdata.NewSecret(), http.StatusUnauthorized, "no such token"},
		{"no token", none, "Bearer", http.StatusUnauthorized, "not the form"},
		{"of a disabled user", none, "Bearer " + eves, http.StatusUnauthorized, "disabled"},
		{"another scheme", none, "Basic Ym9iOng=", http.StatusUnauthorized, "a token, or a certificate"},
		{"an operator", g.shows(identity.RoleOperator, "alice"), "", http.StatusOK, "Role:admin"},
		{"an operator who is a user", g.shows(identity.RoleOperator, "dora"), "", http.StatusOK, "Role:viewer"},
		{"an operator who is a disabled user", g.shows(identity.RoleOperator, "eve"), "", http.StatusForbidden, "disabled"},
		{"a server", g.shows(identity.RoleServer, "eve"), "", http.StatusOK, "Role:admin"},
		{"an operator on a connection of before", g.showed(identity.RoleOperator, "alice", time.Now().Add(-2*time.Hour)), "", http.StatusForbidden, "was valid until"},
		{"a server on a connection of before", g.showed(identity.RoleServer, "s2", time.Now().Add(-2*time.Hour)), "", http.StatusOK, "Role:admin"},
		{"an agent", g.shows(identity.RoleAgent, "lb1"), "", http.StatusForbidden, "an operator or a server"},
		{"an operator with a token has the token's role", g.shows(identity.RoleOperator, "alice"), "Bearer " + bobs, http.StatusOK, "Role:viewer"},
	} {
		if status, body := g.ask("/api/v1/access/self", test.shown, test.secret); status != test.status || !strings.Contains(body, test.says) {
			t.Errorf("%s: %d %s", test.name, status, body)
		}
	}
	if status, body := g.ask("/raft/v1/node", none, "Bearer "+bobs); status != http.StatusForbidden || !strings.Contains(body, "user bob") {
		t.Errorf("a token on the servers' own path: %d %s", status, body)
	}
	if _, err := g.store.Revoke(t.Context(), accessdata.Revocation{Kind: "operator", Name: "alice", Reason: "left"}, accessdata.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if status, body := g.ask("/api/v1/access/self", g.shows(identity.RoleOperator, "alice"), ""); status != http.StatusForbidden || !strings.Contains(body, "left") {
		t.Errorf("a revoked operator: %d %s", status, body)
	}
}

// A server that has not caught up since its start lets nobody change anything,
// for it does not know who was revoked; it can be looked at.
func TestGateBeforeTheServerHasCaughtUp(t *testing.T) {
	g := newGated(t, true)
	behind := &cutOff{err: errors.New("there is no leader")}
	g.store = accessdata.NewStore(g.state, behind)
	alice := g.shows(identity.RoleOperator, "alice")
	change := func(shown *tls.ConnectionState) (int, string) {
		r := httptest.NewRequest(http.MethodDelete, "/api/v1/services/web", nil)
		r.TLS = shown
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if status, body := change(alice); status != http.StatusServiceUnavailable || !strings.Contains(body, "there is no leader") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := g.ask("/api/v1/cluster", alice, ""); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	if status, body := change(g.shows(identity.RoleServer, "s2")); status != http.StatusOK {
		t.Errorf("a server, which forms the cluster: %d %s", status, body)
	}
	behind.err = nil
	if status, body := change(alice); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	behind.err = errors.New("again")
	if status, body := change(alice); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

// Who was barred while the server was down is judged anew once it has caught up:
// the request that made it catch up is no exception.
func TestGateJudgesAnewWhoMadeItCatchUp(t *testing.T) {
	for _, test := range []struct {
		name      string
		meanwhile func(g *gated)
	}{
		{"disabled", func(g *gated) { g.user("bob", accessdata.Admin, true) }},
		{"another role", func(g *gated) { g.user("bob", accessdata.Viewer, false) }},
		{"revoked", func(g *gated) {
			g.user("bob", accessdata.Viewer, false)
			if _, err := g.store.Revoke(g.t.Context(), accessdata.Revocation{Kind: "operator", Name: "bob", Reason: "left"}, accessdata.WriteOptions{}); err != nil {
				g.t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGated(t, true)
			g.user("bob", accessdata.Admin, false)
			secret, _ := g.token("bob", accessdata.Admin)
			for _, shown := range []string{"token", "certificate"} {
				g.caught.Store(false)
				g.user("bob", accessdata.Admin, false)
				g.gate.store = accessdata.NewStore(g.state, &catchingUp{g.local, func() { test.meanwhile(g) }})
				r := httptest.NewRequest(http.MethodDelete, "/api/v1/cluster/members/node1", nil)
				if r.TLS = (&tls.ConnectionState{}); shown == "token" {
					r.Header.Set("Authorization", "Bearer "+secret)
				} else {
					r.TLS = g.shows(identity.RoleOperator, "bob")
				}
				w := httptest.NewRecorder()
				g.ServeHTTP(w, r)
				if strings.Contains(w.Body.String(), "Role:admin") {
					t.Errorf("%s: %d %s", shown, w.Code, w.Body.String())
				}
			}
		})
	}
}

// catchingUp is a replicator that hears of something before it reads.
type catchingUp struct {
	lbstate.Replicator
	hear func()
}

func (c *catchingUp) Read(ctx context.Context, fn func(*bbolt.Tx) error) error {
	c.hear()
	return c.Replicator.Read(ctx, fn)
}

// cutOff is a replicator that reads nothing.
type cutOff struct {
	lbstate.Replicator
	err error
}

func (c *cutOff) Read(context.Context, func(*bbolt.Tx) error) error { return c.err }

// Without certificates everyone may do all, but who shows a token is what the
// token says.
func TestGateWithoutCertificates(t *testing.T) {
	g := newGated(t, false)
	g.user("bob", accessdata.Operator, false)
	secret, _ := g.token("bob", accessdata.Operator)
	for secret, want := range map[string]string{"": "Role:admin", "Bearer " + secret: "Role:operator", "Bearer x": "not accepted"} {
		if _, body := g.ask("/api/v1/access/self", nil, secret); !strings.Contains(body, want) {
			t.Errorf("%q: %s", secret, body)
		}
	}
}

// Wrong tokens are counted by host; a right one passes all the same.
func TestWrongTokensAreThrottled(t *testing.T) {
	g := newGated(t, true)
	g.user("bob", accessdata.Viewer, false)
	secret, _ := g.token("bob", accessdata.Viewer)
	statuses := map[int]int{}
	for range badBurst + 5 {
		status, _ := g.ask("/api/v1/access/self", &tls.ConnectionState{}, "Bearer "+accessdata.NewSecret())
		statuses[status]++
	}
	if statuses[http.StatusUnauthorized] != badBurst || statuses[http.StatusTooManyRequests] != 5 || g.served != 0 {
		t.Errorf("%v, %d served", statuses, g.served)
	}
	if status, body := g.ask("/api/v1/access/self", &tls.ConnectionState{}, "Bearer "+secret); status != http.StatusOK {
		t.Errorf("a right token: %d %s", status, body)
	}
}

func TestThrottleIsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	th := newThrottle(func() time.Time { return now })
	host := func(i int) netip.Prefix { return hostOf(fmt.Sprintf("10.%d.%d.1:5", i/256, i%256)) }
	for i := range maxHosts {
		if err := th.take(host(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range badBurst { // they share one allowance
		if err := th.take(host(maxHosts + i)); err != nil {
			t.Fatal(err)
		}
	}
	if th.take(host(maxHosts+badBurst)) == nil || len(th.hosts) != maxHosts {
		t.Errorf("%d hosts", len(th.hosts))
	}
	now = now.Add(badEvery)
	if err := th.take(host(maxHosts + badBurst)); err != nil || len(th.hosts) != 1 {
		t.Errorf("%v, %d hosts", err, len(th.hosts))
	}
	for a, b := range map[string]string{"[2001:db8::1]:1": "[2001:db8::ffff]:2", "192.0.2.1:1": "[::ffff:192.0.2.1]:3", "[fe80::1%eth0]:1": "[fe80::2%eth1]:1"} {
		if hostOf(a) != hostOf(b) {
			t.Errorf("%s and %s are two hosts", a, b)
		}
	}
	if hostOf("192.0.2.1:1") == hostOf("192.0.2.2:1") || hostOf("@") != (netip.Prefix{}) {
		t.Error("hosts are mixed up")
	}
}

// A request that lasts ends when what let it in no longer holds.
func TestRequestsEndWithTheirRight(t *testing.T) {
	g := newGated(t, true)
	g.user("bob", accessdata.Viewer, false)
	secret, id := g.token("bob", accessdata.Viewer)
	g.user("carl", accessdata.Viewer, false)
	carls, _ := g.token("carl", accessdata.Viewer)
	g.user("fred", accessdata.Admin, false)
	freds, _ := g.token("fred", accessdata.Admin)
	came := make(chan context.Context, 8)
	g.next = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		came <- r.Context()
		<-r.Context().Done()
	})
	begin := func(shown *tls.ConnectionState, secret string) context.Context {
		go func() { g.ask("/api/v1/watch", shown, secret) }()
		return <-came
	}
	none := &tls.ConnectionState{}
	token, alice, disabled := begin(none, "Bearer "+secret), begin(g.shows(identity.RoleOperator, "alice"), ""), begin(none, "Bearer "+carls)
	lower, lowerToo := begin(none, "Bearer "+freds), begin(g.shows(identity.RoleOperator, "fred"), "")
	g.recheck()
	for _, ctx := range []context.Context{token, alice, disabled, lower, lowerToo} {
		if ctx.Err() != nil {
			t.Fatal("ended before its time")
		}
	}
	if _, err := g.store.Revoke(t.Context(), accessdata.Revocation{Kind: "operator", Name: "alice", Reason: "left"}, accessdata.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	g.user("carl", accessdata.Viewer, true)
	g.user("fred", accessdata.Operator, false)
	g.recheck()
	for _, ctx := range []context.Context{lower, lowerToo} {
		if ctx.Err() == nil {
			t.Error("a request goes on whose caller's role was lowered")
		}
	}
	<-alice.Done()
	<-disabled.Done()
	if token.Err() != nil {
		t.Error("another's request ended")
	}
	if _, err := g.store.Delete(t.Context(), accessdata.Token{ID: id}.Ref(), accessdata.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	g.recheck()
	<-token.Done()
}
