package agent_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// secured is a server that knows agents by certificate.
type secured struct {
	t      *testing.T
	bundle *identity.Bundle
	file   string // of the bundle
	store  *lbstate.Store
	source *identity.Source
	server *agent.Server
	addr   string
	logs   *observer.ObservedLogs

	mu      sync.Mutex // guards revoked
	revoked map[string]string
}

func newSecured(t *testing.T, options ...func(*agent.ServerConfig)) *secured {
	t.Helper()
	b, err := identity.NewBundle("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	s := &secured{t: t, bundle: b, logs: logs, revoked: map[string]string{}}
	s.file = s.keep(b)
	s.source = s.open(identity.Config{KeyFile: s.file, Role: identity.RoleServer, Name: "s1", Revoked: func(id identity.ID, _ string) string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.revoked[id.Name]
	}})
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	s.store = lbstate.NewStore(state, local)
	cfg := agent.ServerConfig{
		Store: s.store, Cluster: func() uint64 { return 7 }, Authenticator: s.source, Logger: zap.New(core),
		HeartbeatInterval: 30 * time.Millisecond, SilenceTimeout: 5 * time.Second,
	}
	for _, option := range options {
		option(&cfg)
	}
	if s.server, err = agent.NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	g := grpc.NewServer(append(agent.ServerOptions(), grpc.Creds(agent.ServerCredentials(s.source.ServerTLS(identity.RoleAgent), zap.New(core))))...)
	s.server.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { s.server.Close(); g.Stop(); <-done })
	s.put("everywhere", 1, nil)
	s.put("in-a", 2, map[string]string{"zone": "a"})
	s.put("in-b", 3, map[string]string{"zone": "b"})
	return s
}

func (s *secured) keep(e interface{ Encode() ([]byte, error) }) string {
	s.t.Helper()
	data, err := e.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "key")
	if err := identity.Create(path, data); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *secured) open(cfg identity.Config) *identity.Source {
	s.t.Helper()
	source, err := identity.Open(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return source
}

func (s *secured) put(name string, port int, agents map[string]string) {
	s.t.Helper()
	_, err := s.store.PutService(s.t.Context(), lbstate.Service{
		Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Port: port, Agents: agents,
		Backends: []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1")}},
	}, lbstate.WriteOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// issue makes the credential of an agent, or of another role.
func (s *secured) issue(id identity.ID) *identity.Source {
	s.t.Helper()
	c, err := s.bundle.Issue(id, nil, time.Hour, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return s.open(identity.Config{KeyFile: s.keep(c), Role: id.Role})
}

func (s *secured) revoke(name, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked[name] = why
}

// applier keeps what it is given.
type applier struct {
	mu   sync.Mutex // guards view
	view lbstate.View
}

func (a *applier) Apply(_ context.Context, v lbstate.View) (lbstate.Applied, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.view = v
	return lbstate.Applied{Revision: v.Revision, Converged: true}, nil
}

func (a *applier) services() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, s := range a.view.Services {
		names = append(names, s.Name)
	}
	return strings.Join(names, " ")
}

func (s *secured) follow(a agent.Applier, change func(*agent.ClientConfig)) *agent.Client {
	s.t.Helper()
	cfg := agent.ClientConfig{
		Servers: []string{s.addr}, Name: "a1", Dir: s.t.TempDir(), Applier: a,
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, RenewSpread: time.Millisecond,
	}
	change(&cfg)
	c, err := agent.NewClient(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
	return c
}

func creds(cfg *tls.Config) credentials.TransportCredentials { return credentials.NewTLS(cfg) }

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	const patience = 2 * time.Minute // for what takes milliseconds, on a machine that may be very busy
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// logged says whether the server logged a refusal with these words.
func (s *secured) logged(parts ...string) bool {
	for _, e := range s.logs.All() {
		text := e.Message
		for _, f := range e.Context {
			if err, ok := f.Interface.(error); ok {
				text += " " + err.Error()
			}
			text += " " + f.String
		}
		ok := true
		for _, part := range parts {
			ok = ok && strings.Contains(text, part)
		}
		if ok {
			return true
		}
	}
	return false
}

// INV-40: the certificate says who an agent is and what it is shown.
func TestCertificateSelectsTheView(t *testing.T) {
	s := newSecured(t)
	var a applier
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}})
	s.follow(&a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	wait(t, "its own view", func() bool { return a.services() == "everywhere in-a" })
	info := s.server.Agents()
	if len(info) != 1 || info[0].Labels["zone"] != "a" {
		t.Errorf("%+v", info)
	}
}

// INV-40: each is refused, the agent and the server's log say why.
func TestAgentsThatAreRefused(t *testing.T) {
	s := newSecured(t)
	labels := map[string]string{"zone": "a"}
	good := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: labels})
	foreign := newSecured(t)
	for _, test := range []struct {
		name   string
		change func(*agent.ClientConfig)
		client string   // what the agent's status says
		server []string // what the server logs
	}{
		{"plain text", func(c *agent.ClientConfig) {}, "", []string{"connection refused", "first record does not look like a TLS handshake"}},
		{
			"no certificate", func(c *agent.ClientConfig) { c.Credentials = creds(&tls.Config{InsecureSkipVerify: true}) },
			"certificate required",
			[]string{"connection refused", "didn't provide a certificate"},
		},
		{"wrong CA", func(c *agent.ClientConfig) {
			cfg := foreign.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"}).ClientTLS()
			cfg.VerifyConnection = nil
			c.Credentials = creds(cfg)
		}, "its log says why", []string{"connection refused", "wrong CA", "not trusted here"}},
		{"a server the agent does not trust", func(c *agent.ClientConfig) {
			c.Credentials = creds(foreign.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"}).ClientTLS())
		}, "wrong CA", nil},
		{"a server's certificate", func(c *agent.ClientConfig) {
			c.Credentials = creds(s.issue(identity.ID{Role: identity.RoleServer, Name: "a1"}).ClientTLS())
		}, "its log says why", []string{"connection refused", "wrong role", `server "a1"`}},
		{
			"another's name", func(c *agent.ClientConfig) { c.Credentials, c.Name = creds(good.ClientTLS()), "a2" },
			`the certificate is that of agent "a1", and the agent calls itself "a2"`,
			[]string{"agent not served", `calls itself "a2"`},
		},
		{"another's label", func(c *agent.ClientConfig) {
			c.Credentials, c.Labels = creds(good.ClientTLS()), map[string]string{"zone": "b"}
		}, "claims label zone=b", []string{"agent not served", "claims label zone=b"}},
		{"one label more", func(c *agent.ClientConfig) {
			c.Credentials, c.Labels = creds(good.ClientTLS()), map[string]string{"zone": "a", "rack": "7"}
		}, "claims label rack=7", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a applier
			c := s.follow(&a, test.change)
			wait(t, "it is told why", func() bool {
				return c.Status().LastError != "" && strings.Contains(c.Status().LastError, test.client)
			})
			wait(t, "the server says why", func() bool { return len(test.server) == 0 || s.logged(test.server...) })
			if c.Status().Connected || a.services() != "" {
				t.Errorf("served: %q", a.services())
			}
		})
	}
}

// Asking once is as guarded as following.
func TestListIsForOneself(t *testing.T) {
	s := newSecured(t)
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}})
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(creds(who.ClientTLS())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	list := agentpb.NewAgentsClient(conn)
	got, err := list.List(t.Context(), &agentpb.ListRequest{Name: "a1"})
	if err != nil || len(got.GetServices()) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []*agentpb.ListRequest{{Name: "a2"}, {Name: "a1", Labels: map[string]string{"zone": "b"}}} {
		if _, err := list.List(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// INV-40: what is revoked ends, on a stream that is up, and does not come back.
func TestRevokedOnALiveStream(t *testing.T) {
	s := newSecured(t)
	var a applier
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	c := s.follow(&a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	wait(t, "its view", func() bool { return a.services() == "everywhere" })
	s.revoke("a1", "the host was sold")
	wait(t, "it is told", func() bool { return strings.Contains(c.Status().LastError, "its log says why") })
	wait(t, "the server says why", func() bool { // it may do so after the agent has heard
		return s.logged("agent gone", "revoked", "the host was sold") && s.logged("connection refused", "the host was sold")
	})
	if a.services() != "everywhere" {
		t.Errorf("a revoked agent lost its state, %q: traffic is to go on", a.services())
	}
	s.put("late", 9, nil)
	wait(t, "some more attempts", func() bool { return s.logs.FilterMessage("connection refused").Len() > 3 })
	if a.services() != "everywhere" {
		t.Errorf("a revoked agent still gets changes: %q", a.services())
	}
}

// A rotation reaches the agent over its stream, which goes on.
func TestCredentialIsRenewedOverTheStream(t *testing.T) {
	s := newSecured(t)
	var a applier
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}})
	s.follow(&a, func(c *agent.ClientConfig) { c.Credentials, c.Renewer = creds(who.ClientTLS()), who })
	wait(t, "its view", func() bool { return a.services() == "everywhere in-a" })
	before := who.Expires()
	next, err := s.bundle.Rotate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.Replace(s.file, data); err != nil {
		t.Fatal(err)
	}
	wait(t, "the credential is renewed", func() bool { return who.Expires().After(before.Add(24 * time.Hour)) })
	if who.Due(s.source.Trust()) || who.ID().Labels["zone"] != "a" {
		t.Errorf("%v", who.ID())
	}
	if info := s.server.Agents()[0]; info.Connects != 1 || !info.Connected {
		t.Errorf("the stream was interrupted: %+v", info)
	}
	// With the older authority gone the agent still gets in.
	last, err := next.Retire()
	if err != nil {
		t.Fatal(err)
	}
	if data, err = last.Encode(); err != nil {
		t.Fatal(err)
	}
	if err := identity.Replace(s.file, data); err != nil {
		t.Fatal(err)
	}
	wait(t, "the server trusts the newest alone", func() bool { return who.Due(s.source.Trust()) })
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(creds(who.ClientTLS())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := agentpb.NewAgentsClient(conn).List(t.Context(), &agentpb.ListRequest{Name: "a1"}); err != nil {
		t.Error(err)
	}
}

// Requests for credentials are answered sparingly, and only well-formed ones.
func TestRenewalsThatAreRefused(t *testing.T) {
	s := newSecured(t)
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	ask := func(requests ...[]byte) *agentpb.Credential {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(creds(who.ClientTLS())))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stream, err := agentpb.NewAgentsClient(conn).Stream(ctx)
		if err == nil {
			err = stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: &agentpb.Hello{Name: "a1"}}})
		}
		for _, r := range requests {
			if err == nil {
				err = stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Renew{Renew: &agentpb.Renew{Request: r}}})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		var last *agentpb.Credential
		for n := 0; n < len(requests); {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetCredential() != nil {
				last = m.GetCredential()
				n++
			}
		}
		return last
	}
	good, err := who.Request()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		requests [][]byte
		says     string
	}{
		{"none", [][]byte{nil}, "certificate request"},
		{"damaged", [][]byte{good[:len(good)-3]}, "certificate request"},
		{"too long", [][]byte{make([]byte, 17<<10)}, "at most 16384"},
		{"twice", [][]byte{good, good}, "a second request within 10s"},
	} {
		if c := ask(test.requests...); !strings.Contains(c.GetRefused(), test.says) || len(c.GetCredential()) > 0 {
			t.Errorf("%s: %v", test.name, c)
		}
	}
	if c := ask(good); c.GetRefused() != "" || who.Accept(c.GetCredential()) != nil {
		t.Errorf("the right one: %v", c)
	}
}
