package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newTCP(t testing.TB, cfg TCPConfig) *TCP {
	t.Helper()
	p, err := NewTCP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTCP(t *testing.T) {
	banner := TCPConfig{Expect: Expect{Contains: "+OK"}}
	for _, tt := range []struct {
		name   string
		cfg    TCPConfig
		server func(net.Conn)
		want   outcome
	}{
		{"half open", TCPConfig{}, hang, fine},
		{"full", TCPConfig{Full: true}, hang, fine},
		{"sent and not answered", TCPConfig{Send: []byte("QUIT\r\n")}, hang, fine},
		{"banner", banner, func(c net.Conn) { fmt.Fprint(c, "+OK ready\r\n"); hang(c) }, fine},
		{"banner in drops", banner, func(c net.Conn) {
			for _, b := range []byte("hello +OK") {
				fmt.Fprintf(c, "%c", b)
			}
			hang(c)
		}, fine},
		{"send and match", TCPConfig{Send: []byte("PING\r\n"), Expect: Expect{Match: regexp.MustCompile(`^\+PONG\s`)}}, say("+PONG\r\n"), fine},
		{"in very many pieces", TCPConfig{Send: []byte("x"), Expect: Expect{Contains: "yz"}}, drip(strings.Repeat("y", 500)+"z", 0), fine},
		{
			"both must be met",
			TCPConfig{Send: []byte("x"), Expect: Expect{Contains: "role", Match: regexp.MustCompile("master")}},
			sayAndClose("role:slave\r\n"),
			outcome{class: healthcheck.BadBody, phase: "answer", expected: `"role" and a match of "master"`, found: `"role:slave"`},
		},
		{"accepts and hangs", banner, hang, outcome{class: healthcheck.Timeout, phase: "answer", expected: `"+OK"`, found: "no answer", advice: "raise the timeout"}},
		{
			"hangs after a few words", banner, func(c net.Conn) { fmt.Fprint(c, "+O"); hang(c) },
			outcome{class: healthcheck.Timeout, phase: "answer", found: `(so far "+O")`},
		},
		{"closes at once", banner, func(net.Conn) {}, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"closes after a request", TCPConfig{Send: []byte("x"), Expect: banner.Expect}, closeEarly, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"resets", TCPConfig{Send: []byte("x"), Expect: banner.Expect}, reset, outcome{class: healthcheck.Reset, phase: "answer", found: "reset", advice: "protocol"}},
		{
			"says something else", banner, func(c net.Conn) { fmt.Fprint(c, "-ERR\x00\r\n\u2028busy") },
			outcome{class: healthcheck.BadBody, phase: "answer", expected: `"+OK"`, found: `"-ERR`},
		},
		{
			"never stops talking",
			TCPConfig{Send: []byte("x"), Expect: banner.Expect},
			endless("", strings.Repeat("y", 1000)),
			outcome{class: healthcheck.BadBody, phase: "answer", found: "only the first 65536 bytes", advice: "raise the limit"},
		},
		{
			"says it too late",
			TCPConfig{Send: []byte("x"), Expect: Expect{Contains: "+OK", Limit: 10}},
			say("0123456789+OK"),
			outcome{class: healthcheck.BadBody, phase: "answer", found: "only the first 10 bytes"},
		},
		{"drips", banner, drip("+OK", 200*time.Millisecond), outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"takes in nothing", TCPConfig{Send: bytes.Repeat([]byte("x"), 64<<20)}, func(c net.Conn) {
			c.(*net.TCPConn).SetReadBuffer(4096) //nolint:errcheck // slow either way
			time.Sleep(2 * short)
		}, outcome{class: healthcheck.Timeout, phase: "request", expected: "to send 67108864 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newTCP(t, tt.cfg), serve(t, tt.server).addr, tt.want)
		})
	}
}

func TestTCPRefused(t *testing.T) {
	for _, cfg := range []TCPConfig{{}, {Full: true}} {
		ask(t, newTCP(t, cfg), nobody(t), outcome{
			class: healthcheck.Refused, phase: "connect",
			expected: "a TCP connection to 127.", found: "connection refused", advice: "listens",
		})
	}
}

func TestTCPAsksAnotherPlace(t *testing.T) {
	s := serve(t, hang)
	ask(t, newTCP(t, TCPConfig{Address: s.addr.Addr(), Port: s.addr.Port()}), netip.MustParseAddrPort("192.0.2.1:1"), fine)
	ask(t, newTCP(t, TCPConfig{Port: s.addr.Port()}), netip.AddrPortFrom(s.addr.Addr(), 1), fine)
	ask(t, newTCP(t, TCPConfig{Address: s.addr.Addr()}), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), s.addr.Port()), fine)
}

// A full connection ends in order: the server reads an end of file.
func TestTCPFullClosesInOrder(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	ask(t, newTCP(t, TCPConfig{Full: true}), s.addr, fine)
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("the server got %v, want the end of the stream", err)
	}
}

// Without a target there is nothing to blame a target for.
func TestNoTarget(t *testing.T) {
	s := serve(t, say(okAnswer))
	for _, p := range []healthcheck.Probe{
		newTCP(t, TCPConfig{}),
		newTCP(t, TCPConfig{Port: s.addr.Port()}), // package net would ask this host itself
		newTCP(t, TCPConfig{Address: s.addr.Addr()}),
		newHTTP(t, HTTPConfig{Path: "/", Port: s.addr.Port()}),
	} {
		ask(t, p, netip.AddrPort{}, outcome{class: healthcheck.Local, phase: "connect", found: "no address"})
	}
}

// Whoever asked gave up: that says nothing about the target.
func TestCancelledIsInconclusive(t *testing.T) {
	s := serve(t, hang)
	for name, p := range map[string]healthcheck.Probe{
		"tcp":  newTCP(t, TCPConfig{Expect: Expect{Contains: "x"}}),
		"http": newHTTP(t, HTTPConfig{Path: "/"}),
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan healthcheck.Result)
		before := s.seen()
		go func() { done <- p.Probe(ctx, s.addr) }()
		for s.seen() == before {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if res := <-done; res.Class != healthcheck.Local {
			t.Errorf("%s: %+v", name, res)
		}
		if res := p.Probe(ctx, s.addr); res.Class != healthcheck.Local {
			t.Errorf("%s, canceled before: %+v", name, res)
		}
	}
}
