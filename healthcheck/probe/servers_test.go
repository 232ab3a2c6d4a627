package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is more than any probe of a server that answers needs, short is the
// timeout of probes that are to run into it.
const (
	patience = 20 * time.Second
	short    = 150 * time.Millisecond
)

// listener is a server of which a test decides what happens to each connection.
type listener struct {
	addr netip.AddrPort

	mu       sync.Mutex // guards what follows
	accepted int
	conns    map[net.Conn]struct{}
}

// serve runs handle for each connection until the end of the test; the
// connection is closed afterwards, and at the end of the test at the latest.
func serve(t testing.TB, handle func(net.Conn)) *listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &listener{addr: netip.MustParseAddrPort(l.Addr().String()), conns: map[net.Conn]struct{}{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.accepted++
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			running.Go(func() {
				handle(c)
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		running.Wait()
	})
	return s
}

func (s *listener) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// What a server may do with a connection.

// hang reads until the other side, or the test, ends it.
func hang(c net.Conn) {
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// reset reads what comes first and resets the connection.
func reset(c net.Conn) {
	c.Read(make([]byte, 4096)) //nolint:errcheck // whatever came
	abort(c)
}

// abort closes with a reset.
func abort(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0) //nolint:errcheck // the probe notices
	c.Close()
}

// closeEarly reads what comes first and closes the connection.
func closeEarly(c net.Conn) { c.Read(make([]byte, 4096)) } //nolint:errcheck // whatever came

// say reads what comes first, writes, and leaves the connection open.
func say(text string) func(net.Conn) {
	return func(c net.Conn) {
		if !told(c, text) {
			return
		}
		hang(c)
	}
}

// sayAndClose reads what comes first, writes, and closes in order.
func sayAndClose(text string) func(net.Conn) {
	return func(c net.Conn) { told(c, text) }
}

func told(c net.Conn, text string) bool {
	if _, err := c.Read(make([]byte, 4096)); err != nil {
		return false
	}
	_, err := c.Write([]byte(text))
	return err == nil
}

// endless goes on for ever after its first words.
func endless(first, then string) func(net.Conn) {
	return func(c net.Conn) {
		if !told(c, first) {
			return
		}
		for {
			if _, err := c.Write([]byte(then)); err != nil {
				return
			}
		}
	}
}

// drip writes one byte at a time, with pauses.
func drip(text string, pause time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		c.Read(make([]byte, 4096)) //nolint:errcheck // whatever came
		for i := range len(text) {
			if _, err := c.Write([]byte{text[i]}); err != nil {
				return
			}
			time.Sleep(pause)
		}
		hang(c)
	}
}

// loopback is an address of this host that no other process uses, where there
// are such: a port of it that is closed is not taken as the source of somebody's
// connection.
func loopback() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{127, byte(1 + mrand.IntN(254)), byte(mrand.IntN(256)), byte(1 + mrand.IntN(254))})
}

// nobody is an address at which nothing listens.
func nobody(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(loopback(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// outcome is what a table wants of a result. Texts must be contained.
type outcome struct {
	class    healthcheck.Class
	phase    string
	expected string
	found    string
	advice   string
	warning  string
}

var fine = outcome{class: healthcheck.OK}

func (o outcome) check(t testing.TB, got healthcheck.Result) {
	t.Helper()
	if got.Class != o.class || o.class != healthcheck.OK && got.Phase != o.phase ||
		!strings.Contains(got.Expected, o.expected) || !strings.Contains(got.Found, o.found) ||
		!strings.Contains(got.Advice, o.advice) || !strings.Contains(got.Warning, o.warning) ||
		(o.warning == "") != (got.Warning == "") {
		t.Errorf("got  %+v\nwant %+v", got, o)
	}
	if o.class != healthcheck.OK && got.Found == "" {
		t.Errorf("%+v does not say what was found", got)
	}
	for _, text := range []string{got.Expected, got.Found, got.Advice} {
		if strings.ContainsAny(text, "\r\n\x00") || len(text) > 1000 {
			t.Errorf("not fit for a log: %q", text)
		}
	}
}

// ask probes with a timeout; a class of Timeout must come at it.
func ask(t testing.TB, p healthcheck.Probe, target netip.AddrPort, want outcome) {
	t.Helper()
	timeout := patience
	if want.class == healthcheck.Timeout {
		timeout = short
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	began := time.Now()
	res := p.Probe(ctx, target)
	if took := time.Since(began); took > timeout+5*time.Second {
		t.Errorf("it took %v with a timeout of %v", took, timeout)
	}
	want.check(t, res)
}

// authority signs the certificates of a test's servers.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key = newKey(t)
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-1000 * time.Hour)
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for names and addresses that ends after valid.
func (a *authority) issue(valid time.Duration, names ...string) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(valid),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	return tls.Certificate{Certificate: [][]byte{a.sign(template, key).Raw}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// secure is a server that speaks TLS and then does what handle does.
func secure(t testing.TB, cfg *tls.Config, handle func(net.Conn)) *listener {
	t.Helper()
	return serve(t, func(c net.Conn) {
		s := tls.Server(c, cfg)
		if s.Handshake() == nil {
			handle(s)
		}
		s.Close()
	})
}
