package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// The program that listens never sees a half-open probe.
func TestHalfOpenIsNotSeen(t *testing.T) {
	s := serve(t, hang)
	half, full := newTCP(t, TCPConfig{}), newTCP(t, TCPConfig{Full: true})
	for range 20 {
		ask(t, half, s.addr, fine)
	}
	ask(t, full, s.addr, fine)
	for s.seen() == 0 {
		time.Sleep(time.Millisecond)
	}
	if n := s.seen(); n != 1 {
		t.Errorf("the program saw %d connections, want the full one alone", n)
	}
}

// silent is an address that answers nothing: its queue of connections is full.
func silent(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 16 {
		c, err := net.DialTimeout("tcp", addr.String(), 50*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("a queue of length 0 takes 16 connections")
	return addr
}

func TestABlackHole(t *testing.T) {
	hole := silent(t)
	for name, p := range map[string]healthcheck.Probe{
		"half open": newTCP(t, TCPConfig{}),
		"full":      newTCP(t, TCPConfig{Full: true}),
		"http":      newHTTP(t, HTTPConfig{Path: "/"}),
	} {
		t.Run(name, func(t *testing.T) {
			ask(t, p, hole, outcome{class: healthcheck.Timeout, phase: "connect", found: "no answer before the timeout", advice: "firewall"})
		})
	}
}

func TestPathOutOfThisHost(t *testing.T) {
	from := make(chan netip.Addr, 10)
	s := serve(t, func(c net.Conn) {
		from <- netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		hang(c)
	})
	source := netip.MustParseAddr("127.0.0.77")
	probes := func(v Via) map[string]healthcheck.Probe {
		return map[string]healthcheck.Probe{
			"tcp":  newTCP(t, TCPConfig{Via: v, Full: true}),
			"path": newHTTP(t, HTTPConfig{Via: v, Path: "/"}),
			"url":  newHTTP(t, HTTPConfig{Via: v, URL: fmt.Sprintf("http://localhost:%d/", s.addr.Port())}),
		}
	}
	for name, p := range probes(Via{Source: source, Interface: "lo"}) {
		ask(t, p, s.addr, fine)
		if got := <-from; got != source {
			t.Errorf("%s: came from %v, want %v", name, got, source)
		}
	}
	local := outcome{class: healthcheck.Local, phase: "connect", advice: "this host"}
	for _, p := range probes(Via{Source: netip.MustParseAddr("192.0.2.9")}) {
		ask(t, p, s.addr, local)
	}
	for _, p := range probes(Via{Interface: "no-such-0"}) {
		ask(t, p, s.addr, local)
	}
	// Setting a mark takes a privilege; without it no target is blamed.
	for name, p := range probes(Via{Mark: 7}) {
		if res := p.Probe(t.Context(), s.addr); !res.OK() && res.Class != healthcheck.Local {
			t.Errorf("%s with a mark: %+v", name, res)
		}
	}
}

// Out of files: no target is blamed.
func TestOutOfFiles(t *testing.T) {
	s := serve(t, sayAndClose("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 200
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) //nolint:errcheck // the test is over
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for name, p := range map[string]healthcheck.Probe{
		"tcp":  newTCP(t, TCPConfig{}),
		"full": newTCP(t, TCPConfig{Full: true}),
		"http": newHTTP(t, HTTPConfig{Path: "/"}),
		"url":  newHTTP(t, HTTPConfig{URL: "http://" + s.addr.String()}),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		res := p.Probe(ctx, s.addr)
		cancel()
		if res.Class != healthcheck.Local || !strings.Contains(res.Found, "too many open files") {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// However a probe ends, its descriptors are closed.
func TestNothingIsLeftOpen(t *testing.T) {
	a := newAuthority(t)
	servers := []netip.AddrPort{
		nobody(t), silent(t), serve(t, hang).addr, serve(t, reset).addr, serve(t, closeEarly).addr, serve(t, say(okAnswer)).addr,
		serve(t, endless(okAnswer, "x")).addr, secure(t, &tls.Config{Certificates: []tls.Certificate{a.issue(time.Hour, "127.0.0.1")}}, say(okAnswer)).addr,
	}
	probes := []healthcheck.Probe{
		newTCP(t, TCPConfig{}),
		newTCP(t, TCPConfig{Full: true}),
		newTCP(t, TCPConfig{Send: []byte("x"), Expect: Expect{Contains: "y"}}),
		newHTTP(t, HTTPConfig{Path: "/", Body: Expect{Contains: "ok"}}),
		newHTTP(t, HTTPConfig{Path: "/", Scheme: "https", TLS: TLSConfig{Roots: a.pool()}}),
		newHTTP(t, HTTPConfig{Path: "/", Scheme: "https"}),
	}
	before := openFiles(t)
	var running sync.WaitGroup
	for _, s := range servers {
		for _, p := range probes {
			running.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), short)
				defer cancel()
				p.Probe(ctx, s)
			})
		}
	}
	running.Wait()
	deadline := time.Now().Add(patience)
	for after := openFiles(t); after > before; after = openFiles(t) {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are open, %d were", after, before)
		}
		time.Sleep(time.Millisecond)
	}
}
