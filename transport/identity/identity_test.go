package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func newBundle(t testing.TB, domain string) *Bundle {
	t.Helper()
	b, err := NewBundle(domain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stored writes what encodes itself to a file.
func stored(t testing.TB, e interface{ Encode() ([]byte, error) }) string {
	t.Helper()
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := Create(path, data); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, cfg Config) *Source {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = at(epoch)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func server(t testing.TB, b *Bundle) *Source {
	return open(t, Config{KeyFile: stored(t, b), Role: RoleServer, Name: "s1", Hosts: []string{"127.0.0.1"}})
}

// issued is a source with a credential.
func issued(t testing.TB, b *Bundle, id ID, lifetime time.Duration) *Source {
	t.Helper()
	c, err := b.Issue(id, nil, lifetime, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, Config{KeyFile: stored(t, c), Role: id.Role})
}

// handshake connects the two over loopback and returns what each end says.
func handshake(t testing.TB, serverTLS, clientTLS *tls.Config) (ofServer, ofClient error, seen tls.ConnectionState) { //nolint:staticcheck // ST1008: two errors, and what one of the ends saw
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, serverTLS)
		err = conn.Handshake()
		seen = conn.ConnectionState()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, clientTLS)
	if ofClient = conn.Handshake(); ofClient == nil {
		_, ofClient = io.ReadFull(conn, make([]byte, 1)) // in TLS 1.3 a refusal comes after the client's handshake
	}
	raw.Close()
	return <-done, ofClient, seen
}

func says(t *testing.T, err error, reason Reason, parts ...string) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) || refused.Reason != reason {
		t.Errorf("%v, want a refusal for: %v", err, reason)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

// INV-40: each is refused, with its own message.
func TestWhoIsRefused(t *testing.T) {
	b := newBundle(t, "prod")
	s := server(t, b)
	agent := ID{Role: RoleAgent, Name: "a1"}
	year := 365 * 24 * time.Hour

	t.Run("nobody", func(t *testing.T) {
		for _, id := range []ID{agent, {Role: RoleServer, Name: "s2"}} {
			ofServer, ofClient, state := handshake(t, s.ServerTLS(id.Role), issued(t, b, id, year).ClientTLS())
			if ofServer != nil || ofClient != nil {
				t.Fatalf("%v: server says %v, client says %v", id, ofServer, ofClient)
			}
			if got, err := s.Peer(state); err != nil || got.Name != id.Name || got.Role != id.Role || got.Domain != "prod" {
				t.Errorf("seen as %v, %v", got, err)
			}
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		anyone := &tls.Config{InsecureSkipVerify: true}
		ofServer, ofClient, _ := handshake(t, s.ServerTLS(RoleAgent), anyone)
		if ofServer == nil || !strings.Contains(ofServer.Error(), "client didn't provide a certificate") {
			t.Errorf("server says %v", ofServer)
		}
		if ofClient == nil || !strings.Contains(ofClient.Error(), "certificate required") {
			t.Errorf("client says %v", ofClient)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := issued(t, b, agent, year).ClientTLS()
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if ofServer, _, _ := handshake(t, s.ServerTLS(RoleAgent), old); ofServer == nil {
			t.Error("accepted")
		}
	})
	for _, test := range []struct {
		name   string
		client *Source
		taken  Role
		reason Reason
		parts  []string
	}{
		{"wrong CA", issued(t, newBundle(t, "prod"), agent, year), RoleAgent, WrongCA, []string{"ipvskit prod CA", "not trusted here"}},
		{"agent on a peer port", issued(t, b, agent, year), RoleServer, WrongRole, []string{`agent "a1"`, "[server]"}},
		{"server as agent", issued(t, b, ID{Role: RoleServer, Name: "s2"}, year), RoleAgent, WrongRole, []string{`server "s2"`, "[agent]"}},
		{"operator as server", issued(t, b, ID{Role: RoleOperator, Name: "eve"}, year), RoleServer, WrongRole, []string{`operator "eve"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := test.client.ClientTLS()
			cfg.VerifyConnection = nil // the client trusts whom it meets
			ofServer, ofClient, _ := handshake(t, s.ServerTLS(test.taken), cfg)
			says(t, ofServer, test.reason, test.parts...)
			if ofClient == nil {
				t.Error("the client takes it for accepted")
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		c := issued(t, b, agent, time.Hour).ClientTLS()
		late := open(t, Config{KeyFile: stored(t, b), Role: RoleServer, Name: "s1", Now: at(epoch.Add(2 * time.Hour))})
		c.VerifyConnection = nil
		ofServer, _, _ := handshake(t, late.ServerTLS(RoleAgent), c)
		says(t, ofServer, Expired, "until 2030-01-01T13:00:00Z", "clock says 2030-01-01T14:00:00Z")
	})
	t.Run("not yet valid", func(t *testing.T) {
		early := open(t, Config{KeyFile: stored(t, b), Role: RoleServer, Name: "s1", Now: at(epoch.Add(-5 * time.Minute))})
		young, err := b.Issue(agent, nil, year, epoch.Add(30*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		c := open(t, Config{KeyFile: stored(t, young), Role: RoleAgent}).ClientTLS()
		c.VerifyConnection = nil
		ofServer, _, _ := handshake(t, early.ServerTLS(RoleAgent), c)
		says(t, ofServer, NotYetValid, "from 2030-01-01T12:20:00Z", "clock says 2030-01-01T11:55:00Z", "25m0s earlier", "NTP")
	})
	t.Run("an agent in a server's place", func(t *testing.T) {
		// The certificate of an agent, on a port that agents dial.
		thief := issued(t, b, agent, year)
		cfg := thief.ServerTLS(RoleAgent)
		_, ofClient, _ := handshake(t, cfg, issued(t, b, ID{Role: RoleAgent, Name: "a2"}, year).ClientTLS())
		says(t, ofClient, WrongRole, `agent "a1"`, "[server]")
	})
	t.Run("a foreign server", func(t *testing.T) {
		other := server(t, newBundle(t, "prod"))
		_, ofClient, _ := handshake(t, other.ServerTLS(RoleAgent), issued(t, b, agent, year).ClientTLS())
		says(t, ofClient, WrongCA)
	})
	t.Run("one's own expired", func(t *testing.T) {
		now := epoch
		c, err := b.Issue(agent, nil, time.Hour, epoch)
		if err != nil {
			t.Fatal(err)
		}
		mine := open(t, Config{KeyFile: stored(t, c), Role: RoleAgent, Now: func() time.Time { return now }})
		now = epoch.Add(2 * time.Hour)
		_, ofClient, _ := handshake(t, s.ServerTLS(RoleAgent), mine.ClientTLS())
		says(t, ofClient, Expired, "this host's own", "until 2030-01-01T13:00:00Z", "14:00:00Z")
	})
}

func TestRevoked(t *testing.T) {
	b := newBundle(t, "prod")
	why := map[string]string{}
	s := open(t, Config{KeyFile: stored(t, b), Role: RoleServer, Name: "s1", Revoked: func(id ID, serial string) string {
		if w := why[serial]; w != "" {
			return w
		}
		return why[id.Name]
	}})
	c := issued(t, b, ID{Role: RoleAgent, Name: "a1"}, time.Hour)
	_, _, state := handshake(t, s.ServerTLS(RoleAgent), c.ClientTLS())
	if _, _, err := s.Agent(state); err != nil {
		t.Fatal(err)
	}
	for _, by := range []string{"a1", serialOf(state.PeerCertificates[0])} {
		clear(why)
		why[by] = "the host was sold"
		_, _, err := s.Agent(state) // of the connection that is up
		says(t, err, Revoked, "the host was sold", serialOf(state.PeerCertificates[0]))
		says(t, s.Live(state), Revoked)
		_, err = s.Renew(state, nil)
		says(t, err, Revoked)
		ofServer, _, _ := handshake(t, s.ServerTLS(RoleAgent), c.ClientTLS())
		says(t, ofServer, Revoked, "the host was sold")
	}
}

// A certificate that ends while its connection is up ends what it gives.
func TestLiveAgentExpires(t *testing.T) {
	b := newBundle(t, "prod")
	now := epoch
	s := open(t, Config{KeyFile: stored(t, b), Role: RoleServer, Name: "s1", Now: func() time.Time { return now }})
	_, _, state := handshake(t, s.ServerTLS(RoleAgent), issued(t, b, ID{Role: RoleAgent, Name: "a1"}, time.Hour).ClientTLS())
	now = epoch.Add(2 * time.Hour)
	_, _, err := s.Agent(state)
	says(t, err, Expired)
}

// ownPKI makes the files of one's own public key infrastructure.
type ownPKI struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOwnPKI(t *testing.T) *ownPKI {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "Example Corp CA"}, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := sign(ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	p := &ownPKI{t, t.TempDir(), cert, key}
	p.write("ca.pem", pemCert, cert.Raw, 0o644)
	return p
}

func (p *ownPKI) path(name string) string { return filepath.Join(p.dir, name) }

func (p *ownPKI) write(name, typ string, der []byte, mode os.FileMode) {
	p.t.Helper()
	path := p.path(name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *ownPKI) issue(uri string) Config {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "x"}, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(time.Hour)}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			p.t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	cert, err := sign(template, p.cert, key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ':' || r == '?' {
			return '_'
		}
		return r
	}, uri)
	p.write(name+".pem", pemCert, cert.Raw, 0o644)
	p.write(name+".key", pemKey, der, 0o600)
	return Config{CertFile: p.path(name + ".pem"), PrivateKeyFile: p.path(name + ".key"), CAFile: p.path("ca.pem"), Role: RoleServer, Now: at(epoch)}
}

func TestOwnPKI(t *testing.T) {
	p := newOwnPKI(t)
	s := open(t, p.issue("ipvskit://prod/server/s1"))
	agentOf := func(uri string) *Source {
		cfg := p.issue(uri)
		cfg.Role = RoleAgent
		return open(t, cfg)
	}
	good := agentOf("ipvskit://prod/agent/a1?zone=a")
	ofServer, ofClient, state := handshake(t, s.ServerTLS(RoleAgent), good.ClientTLS())
	if ofServer != nil || ofClient != nil {
		t.Fatalf("server says %v, client says %v", ofServer, ofClient)
	}
	if name, labels, err := s.Agent(state); name != "a1" || labels["zone"] != "a" || err != nil {
		t.Errorf("%q %v %v", name, labels, err)
	}
	if s.Trust() != 0 || good.Due(7) {
		t.Error("a certificate of one's own is renewed by its owner")
	}
	// One authority for two clusters.
	test := agentOf("ipvskit://test/agent/a1").ClientTLS()
	test.VerifyConnection = nil
	ofServer, _, _ = handshake(t, s.ServerTLS(RoleAgent), test)
	says(t, ofServer, WrongCluster, `agent "a1" of test`, "this is cluster prod")

	// A certificate of the authority that names no one.
	cfg := p.issue("")
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "URI:ipvskit://DOMAIN/server/NAME") {
		t.Errorf("a certificate without URI: %v", err)
	}
	nobody, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.PrivateKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	ofServer, _, _ = handshake(t, s.ServerTLS(RoleAgent), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{nobody}})
	says(t, ofServer, NoIdentity, "URI SAN")

	cfg = p.issue("ipvskit://prod/agent/a1")
	_, err = Open(cfg)
	says(t, err, WrongRole, `agent "a1" of prod`, "role server")
	cfg = p.issue("ipvskit://prod/server/s1")
	cfg.Name = "s2"
	_, err = Open(cfg)
	says(t, err, WrongName, `"s1"`, `"s2"`)
	cfg.PrivateKeyFile = p.issue("ipvskit://prod/server/s9").PrivateKeyFile
	if _, err = Open(cfg); err == nil || !strings.Contains(err.Error(), "does not belong to the certificate") {
		t.Errorf("another's key: %v", err)
	}
}

func TestReadAnewWithoutRestart(t *testing.T) {
	p := newOwnPKI(t)
	cfg := p.issue("ipvskit://prod/server/s1")
	s := open(t, cfg)
	before := s.ID()
	next := p.issue("ipvskit://prod/server/s2")
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(next.CertFile, cfg.CertFile)
	if err := s.files.again(); err == nil || s.ID().Name != before.Name {
		t.Errorf("half of a pair is in use: %v, %v", s.ID(), err)
	}
	move(next.PrivateKeyFile, cfg.PrivateKeyFile)
	if err := s.files.again(); err != nil || s.ID().Name != "s2" {
		t.Errorf("%v, %v", s.ID(), err)
	}
}

func TestMintedIsReplaced(t *testing.T) {
	now := epoch
	s := open(t, Config{KeyFile: stored(t, newBundle(t, "")), Role: RoleServer, Name: "s1", Now: func() time.Time { return now }})
	first, err := s.certificate()
	if err != nil {
		t.Fatal(err)
	}
	now = epoch.Add(11 * time.Hour)
	if again, _ := s.certificate(); again.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) != 0 {
		t.Error("replaced too early")
	}
	now = epoch.Add(13 * time.Hour)
	next, err := s.certificate()
	if err != nil || next.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 || !next.Leaf.NotAfter.Equal(now.Add(24*time.Hour)) {
		t.Errorf("not replaced: until %v, %v", next.Leaf.NotAfter, err)
	}
}
