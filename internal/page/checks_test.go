package page

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// TestChecks: what a check finds beyond up and down shows beside its backend,
// by itself, and goes away again.
func TestChecks(t *testing.T) {
	m := singleon(t)
	p := open(t, m)
	port := endsSoon(t)
	check := func(more object) object {
		c := object{"address": "127.0.0.1", "port": port, "interval": "100ms", "timeout": "90ms", "rise": 1}
		for k, v := range more {
			c[k] = v
		}
		return c
	}
	backends := []object{
		{"address": "10.1.0.1", "health_check": check(object{"type": "tls", "tls": object{"skip_verify": true}})},
		{"address": "10.1.0.2", "health_check": check(object{"type": "tcp", "via": object{"source": "::1"}})},
	}
	all := object{
		"type": "all", "interval": "100ms", "timeout": "90ms",
		"checks": []object{{"type": "tcp", "port": port}, {"type": "dns", "dns": object{"name": "a.example"}}},
	}
	m.put("web", object{"vip": "192.0.2.10", "port": 443, "health_check": all, "backends": backends})
	p.row("Backends of web", 0, "10.1.0.1:443", "healthy | the certificate ends on …", "100", "*")
	p.row("Backends of web", 1, "10.1.0.2:443", "not yet up | not known: local in connect: …", "0 of 100", "*")
	p.sees(".card", "check all of tcp, dns a.example every 100ms")
	p.shots("checks")
	backends[0]["health_check"] = check(object{"type": "tls", "tls": object{"skip_verify": true, "min_days": -1}})
	m.put("web", object{"vip": "192.0.2.10", "port": 443, "backends": backends})
	p.row("Backends of web", 0, "10.1.0.1:443", "healthy", "100", "*")
}

// endsSoon is a port that speaks TLS with a certificate that ends in days.
func endsSoon(t *testing.T) int {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if s, is := c.(*tls.Conn); is {
					s.HandshakeContext(t.Context()) //nolint:errcheck // the probe notices
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}
