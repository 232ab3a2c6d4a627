package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// testTLS is a configuration for both sides with a certificate that signs
// itself.
func testTLS(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func TestTLS(t *testing.T) {
	shared := testTLS(t)
	secure := func(c *tls.Config) Config {
		cfg := testConfig(t)
		cfg.ServerTLS, cfg.ClientTLS = c, c
		return cfg
	}
	a, b := pair(t, secure(shared), secure(shared))
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1, make([]byte, 1<<20))})
	b.until("a message", func() bool { return len(b.got) == 1 })

	for name, cfg := range map[string]Config{"foreign CA": secure(testTLS(t)), "no TLS": testConfig(t)} {
		c := newNode(t, 3, cfg)
		c.knows(b)
		c.run()
		c.until(name+": a failed attempt", func() bool { return len(c.errs) > 0 })
		for _, p := range c.Peers() {
			if p.Control || p.Data {
				t.Errorf("%s: connected", name)
			}
		}
	}
	b.end()
	reported(a, "a reset", func(e *LostError) bool { return e.Reset() })
}
