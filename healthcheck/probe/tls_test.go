package probe

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

const (
	day  = 24 * time.Hour
	long = 90 * day
)

// By HTTP and by TCP.
func TestTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	good := a.issue(long, "127.0.0.1", "example.com")
	serving := func(cert tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	trusting := TLSConfig{Roots: a.pool()}
	mutual := serving(good)
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, a.pool()
	old := serving(good)
	old.MaxVersion = tls.VersionTLS11
	withClient := trusting
	withClient.Certificates = []tls.Certificate{a.issue(long, "client")}
	skip := TLSConfig{SkipVerify: true}
	for _, tt := range []struct {
		name   string
		cfg    TLSConfig
		host   string
		server *tls.Config
		want   outcome
	}{
		{"by address", trusting, "", serving(good), fine},
		{"by name", trusting, "example.com", serving(good), fine},
		{"by name and port", trusting, "example.com:8443", serving(good), fine},
		{"a name of its own", TLSConfig{Roots: a.pool(), ServerName: "example.com"}, "other.example", serving(good), fine},
		{"with a client's certificate", withClient, "", mutual, fine},
		{"ends soon", trusting, "", serving(a.issue(3*day+time.Hour, "127.0.0.1")), outcome{warning: "in 3 days"}},
		{"ends soon, but not for everyone", TLSConfig{Roots: a.pool(), WarnBefore: day}, "", serving(a.issue(3*day, "127.0.0.1")), fine},
		{"no warnings", TLSConfig{Roots: a.pool(), WarnBefore: -1}, "", serving(a.issue(time.Minute, "127.0.0.1")), fine},
		{"ended, but nobody minds", skip, "", serving(a.issue(-day, "127.0.0.1")), outcome{warning: "the certificate ended on"}},
		{"wrong name, but nobody minds", skip, "", serving(a.issue(long, "x.example")), fine},

		{"wrong name", trusting, "", serving(a.issue(long, "other.example")), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "127.0.0.1", advice: "certificate"}},
		{"another wrong name", trusting, "example.org", serving(good), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "example.org"}},
		{"ended", trusting, "", serving(a.issue(-day, "127.0.0.1")), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "expired"}},
		{"unknown authority", trusting, "", serving(stranger.issue(long, "127.0.0.1")), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "authority"}},
		{"wants a client's certificate", trusting, "", mutual, outcome{class: healthcheck.TLS, phase: "answer", found: "certificate required"}},
		{"old protocol", trusting, "", old, outcome{class: healthcheck.TLS, phase: "tls handshake", found: "version"}},
		{"no certificate", trusting, "", &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}, outcome{class: healthcheck.TLS, phase: "tls handshake"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := secure(t, tt.server, say(okAnswer))
			ask(t, newHTTP(t, HTTPConfig{Path: "/", Scheme: "https", Host: tt.host, TLS: tt.cfg}), s.addr, tt.want)
			cfg := tt.cfg
			if cfg.ServerName == "" {
				cfg.ServerName = hostname(tt.host)
			}
			ask(t, newTCP(t, TCPConfig{TLS: &cfg, Send: []byte("x"), Expect: Expect{Contains: "ok"}}), s.addr, tt.want)
		})
	}
	for _, tt := range []struct {
		name   string
		server func(net.Conn)
		want   outcome
	}{
		{"plain HTTP", say("HTTP/1.1 400 Bad Request\r\n\r\n"), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "an answer in plain HTTP"}},
		{"not TLS", say("SSH-2.0-OpenSSH_9.2\r\n"), outcome{class: healthcheck.TLS, phase: "tls handshake"}},
		{"accepts and hangs", hang, outcome{class: healthcheck.Timeout, phase: "tls handshake"}},
		{"closes", closeEarly, outcome{class: healthcheck.TLS, phase: "tls handshake", found: "closed early"}},
		{"resets", reset, outcome{class: healthcheck.Reset, phase: "tls handshake"}},
		{"alert", say("\x15\x03\x03\x00\x02\x02\x28"), outcome{class: healthcheck.TLS, phase: "tls handshake", found: "handshake failure"}},
		{"endless record", endless("\x16\x03\x03\x40\x00\x02\xff\xff\xff", "xxxxxxxx"), outcome{class: healthcheck.TLS, phase: "tls handshake"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tt.server)
			ask(t, newHTTP(t, HTTPConfig{Path: "/", Scheme: "https", TLS: trusting}), s.addr, tt.want)
			ask(t, newTCP(t, TCPConfig{TLS: &trusting}), s.addr, tt.want)
		})
	}
}

// A handshake alone ends in order: the server reads the end of the stream.
func TestTLSEndsInOrder(t *testing.T) {
	a := newAuthority(t)
	ended := make(chan error, 1)
	s := secure(t, &tls.Config{Certificates: []tls.Certificate{a.issue(long, "127.0.0.1")}}, func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	ask(t, newTCP(t, TCPConfig{TLS: &TLSConfig{Roots: a.pool()}}), s.addr, fine)
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("the server got %v", err)
	}
}
