package probe

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newUDP(t testing.TB, cfg UDPConfig) *UDP {
	t.Helper()
	p, err := NewUDP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// datagrams answers each datagram with what answer returns, one datagram each.
func datagrams(t testing.TB, answer func(query []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0))) // its port by TCP is free too
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, a := range answer(buf[:n]) {
				c.WriteToUDPAddrPort(a, from) //nolint:errcheck // the probe notices
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		running.Wait()
	})
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// echo answers with what it is sent.
func echo(query []byte) [][]byte { return [][]byte{query} }

// dumb answers nothing.
func dumb([]byte) [][]byte { return nil }

// unheard is an address at which nobody listens by UDP.
func unheard(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDP(t *testing.T) {
	ping := UDPConfig{Send: []byte("ping"), Expect: Expect{Contains: "pi"}}
	for _, tt := range []struct {
		name   string
		cfg    UDPConfig
		target netip.AddrPort
		want   outcome
	}{
		{"answers", ping, datagrams(t, echo), fine},
		{"answers anything", UDPConfig{}, datagrams(t, func([]byte) [][]byte { return [][]byte{nil} }), fine},
		{"says nothing, which is enough", UDPConfig{Send: []byte("x"), Quiet: 20 * time.Millisecond}, datagrams(t, dumb), fine},
		{"the first counts", ping, datagrams(t, func([]byte) [][]byte { return [][]byte{[]byte("pi"), []byte("x")} }), fine},
		{"wrong answer", ping, datagrams(t, func([]byte) [][]byte { return [][]byte{[]byte("x\ny")} }), outcome{class: healthcheck.BadBody, phase: "answer", expected: `"pi"`, found: `"x y"`}},
		{"long answer", UDPConfig{Expect: Expect{Contains: "z", Limit: 5}}, datagrams(t, func([]byte) [][]byte { return [][]byte{[]byte("xxxxxz")} }), outcome{class: healthcheck.BadBody, phase: "answer", found: "first 5 bytes"}},
		{"longest answer", UDPConfig{Expect: Expect{Contains: "z", Limit: 1 << 20}}, datagrams(t, func([]byte) [][]byte { return [][]byte{bytes.Repeat([]byte("x"), 60000)} }), outcome{class: healthcheck.BadBody, phase: "answer"}},
		{"hangs", ping, datagrams(t, dumb), outcome{class: healthcheck.Timeout, phase: "answer", advice: "firewall"}},
		{"hangs longer than quiet", UDPConfig{Quiet: time.Hour}, datagrams(t, dumb), outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"refused", ping, unheard(t), outcome{class: healthcheck.Refused, phase: "answer", found: "refused", advice: "listens"}},
		{"refused, and nothing expected", UDPConfig{}, unheard(t), outcome{class: healthcheck.Refused, phase: "answer", expected: "no refusal by 127."}},
		{"no target", ping, netip.AddrPort{}, outcome{class: healthcheck.Local, phase: "connect", found: "no address"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newUDP(t, tt.cfg), tt.target, tt.want)
		})
	}
	for _, cfg := range []UDPConfig{{Quiet: -1}, {Send: []byte(strings.Repeat("x", 70000))}} {
		if _, err := NewUDP(cfg); err == nil {
			t.Errorf("%d bytes, quiet %v were taken", len(cfg.Send), cfg.Quiet)
		}
	}
}
