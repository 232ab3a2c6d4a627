package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The leader's checks are seen, and tried once, by any server.
func TestChecksAreSeen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := newNode(t, "a")
	p := start(t, n, n.args()...)
	p.ready()
	body := fmt.Sprintf(`{"vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1"}],
		"health_check": {"type": "tcp", "address": "127.0.0.1", "port": %d, "interval": "100ms", "timeout": "90ms"}}`,
		netip.MustParseAddrPort(l.Addr().String()).Port())
	if status, text := do(t, http.MethodPut, p.url+"/api/v1/services/web", body); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	eventually(t, "the check is up", func() (string, bool) {
		_, text := do(t, http.MethodGet, p.url+"/api/v1/services/web/checks", "")
		return text, strings.Contains(text, `"state": "up"`) && strings.Contains(text, `"p50"`)
	})
	probe := p.url + "/api/v1/services/web/backends/10.1.0.1:80/probe"
	if status, text := do(t, http.MethodPost, probe, ""); status != http.StatusOK || !strings.Contains(text, `"ok": true`) {
		t.Errorf("%d %s", status, text)
	}
	l.Close()
	if status, text := do(t, http.MethodPost, probe, ""); status != http.StatusOK || !strings.Contains(text, "refused") {
		t.Errorf("%d %s", status, text)
	}
	eventually(t, "the leader counts it as down", func() (string, bool) {
		_, text := do(t, http.MethodGet, p.url+"/api/v1/health", "")
		return text, strings.Contains(text, `"down": 1`)
	})
	_, text := do(t, http.MethodGet, p.url+"/api/v1/health/events", "")
	if !strings.Contains(text, `"kind": "transition"`) || !strings.Contains(text, `"to": "down"`) || !strings.Contains(text, `"service": "web"`) {
		t.Error(text)
	}
	if status, text := do(t, http.MethodPut, p.url+"/api/v1/checks/program", `{"check": {"type": "exec", "exec": {"program": "true"}}}`); status != http.StatusUnprocessableEntity || !strings.Contains(text, "does not allow") {
		t.Error(status, text)
	}
	p.terminate()
}

// A certificate that ends soon is seen though its backend is healthy, and a
// program is run where the server's flags allow it.
func TestWarningsAndPrograms(t *testing.T) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{endsSoon(t, 9*24*time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	secure := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)}
	go secure.Serve(l) //nolint:errcheck // it ends with Close
	defer secure.Close()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "well"), []byte("#!/bin/sh\n[ $1 = 10.1.0.2 ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, "a")
	p := start(t, n, n.args("--allow_exec_checks", "--exec_checks_dir", dir)...)
	p.ready()
	body := fmt.Sprintf(`{"vip": "192.0.2.10", "port": 80, "backends": [
		{"address": "10.1.0.1", "health_check": {"type": "tls", "interval": "100ms", "timeout": "90ms", "address": "127.0.0.1", "port": %d, "tls": {"skip_verify": true}}},
		{"address": "10.1.0.2", "health_check": {"type": "exec", "interval": "200ms", "timeout": "190ms", "exec": {"program": "well", "args": ["{address}"]}}}]}`,
		netip.MustParseAddrPort(l.Addr().String()).Port())
	if status, text := do(t, http.MethodPut, p.url+"/api/v1/services/web", body); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	eventually(t, "both are up", func() (string, bool) {
		_, text := do(t, http.MethodGet, p.url+"/api/v1/services/web", "")
		return text, strings.Count(text, `"healthy"`) == 2
	})
	for _, path := range []string{"/api/v1/health", "/api/v1/health/events", "/api/v1/services/web/checks"} {
		if _, text := do(t, http.MethodGet, p.url+path, ""); !strings.Contains(text, "the certificate ends on ") || !strings.Contains(text, "in 8 days") {
			t.Errorf("%s: %s", path, text)
		}
	}
	if status, text := do(t, http.MethodPost, p.url+"/api/v1/services/web/backends/10.1.0.2:80/probe", ""); status != http.StatusOK || !strings.Contains(text, `"ok": true`) {
		t.Error(status, text)
	}
	p.terminate()
}

// endsSoon is a certificate that ends after some time.
func endsSoon(t *testing.T, valid time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
