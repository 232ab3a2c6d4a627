//go:build unix

package lbchecks_test

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
)

// patient is a server that answers well until it is made sick.
type patient struct {
	at   netip.AddrPort
	ca   string // of what speaks TLS
	sick atomic.Bool
}

// streams serves connections one after the other of their making.
func streams(t *testing.T, handle func(p *patient, c net.Conn)) *patient {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{at: netip.MustParseAddrPort(l.Addr().String())}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				handle(p, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return p
}

// datagrams answers each datagram with what answer makes of it; nil: nothing.
func datagrams(t *testing.T, answer func(p *patient, query []byte) []byte) *patient {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{at: netip.MustParseAddrPort(c.LocalAddr().String())}
	var serving sync.WaitGroup
	serving.Go(func() {
		data := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(data)
			if err != nil {
				return
			}
			if reply := answer(p, data[:n]); reply != nil {
				c.WriteToUDPAddrPort(reply, from) //nolint:errcheck // the probe notices
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
	})
	return p
}

// web serves HTTP: in the clear also HTTP/2, by TLS what is negotiated.
func web(t *testing.T, byTLS bool, handle func(p *patient, w nethttp.ResponseWriter, r *nethttp.Request)) *patient {
	p := &patient{}
	s := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) { handle(p, w, r) }))
	s.EnableHTTP2 = true
	s.Config.Protocols = new(nethttp.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ErrorLog = nil
	if byTLS {
		s.StartTLS()
		p.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	p.at = netip.MustParseAddrPort(s.Listener.Addr().String())
	return p
}

func mailServer(p *patient, c net.Conn) {
	if p.sick.Load() {
		fmt.Fprint(c, "554 no service\r\n")
		return
	}
	fmt.Fprint(c, "220 mx.example\r\n")
	for in := bufio.NewScanner(c); in.Scan(); {
		fmt.Fprint(c, "250 mx.example\r\n")
	}
}

func store(p *patient, c net.Conn) {
	for in := bufio.NewScanner(c); in.Scan(); {
		if p.sick.Load() {
			fmt.Fprint(c, "-LOADING\r\n")
		} else {
			fmt.Fprint(c, "+PONG\r\n")
		}
	}
}

func nameServer(p *patient, query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response = true
	m.Additionals = nil
	if p.sick.Load() {
		m.RCode = dnsmessage.RCodeServerFailure
	} else {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		}}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

func healthService(p *patient, w nethttp.ResponseWriter, r *nethttp.Request) {
	io.Copy(io.Discard, r.Body) //nolint:errcheck // what was asked does not matter
	w.Header().Set("Content-Type", "application/grpc")
	state := byte(1) // SERVING
	if p.sick.Load() {
		state = 2
	}
	w.Write([]byte{0, 0, 0, 0, 2, 8, state}) //nolint:errcheck // the probe notices
	w.Header().Set(nethttp.TrailerPrefix+"Grpc-Status", "0")
}

func page(p *patient, w nethttp.ResponseWriter, r *nethttp.Request) {
	switch {
	case r.URL.Path == "/moved":
		nethttp.Redirect(w, r, "/", nethttp.StatusFound)
	case p.sick.Load():
		nethttp.Error(w, "out of order", nethttp.StatusServiceUnavailable)
	default:
		fmt.Fprintf(w, "fine: %s %s", r.Proto, r.Header.Get("X-Probe"))
	}
}

// program writes one that fails while the patient is sick.
func program(t *testing.T, dir string) *patient {
	t.Helper()
	script := "#!/bin/sh\n[ \"$1\" = 10.1.0.1 ] || exit 3\n[ ! -e " + filepath.Join(dir, "sick") + " ] || { echo out of order; exit 2; }\n"
	if err := os.WriteFile(filepath.Join(dir, "check-it"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &patient{at: netip.MustParseAddrPort("127.0.0.1:1")}
}

// Each type of check finds a backend well, sick, and well again, and says what
// it found: from the text that an operator writes to the state.
func TestTypesOfChecks(t *testing.T) {
	dir := t.TempDir()
	cases := map[string]struct {
		serve   func(t *testing.T) *patient
		check   string // in which PORT and CA stand for the server's
		message string // part of it, while it is sick
	}{
		"tcp with an answer": {
			func(t *testing.T) *patient { return streams(t, store) },
			`{"type": "tcp", "address": "127.0.0.1", "port": PORT, "send": "PING\\r\\n", "expect": "+PONG\\r\\n", "via": {"source": "127.0.0.1"}}`, "-LOADING",
		},
		"tcp in full": {
			func(t *testing.T) *patient {
				return streams(t, func(p *patient, c net.Conn) {
					if !p.sick.Load() {
						fmt.Fprint(c, "ready")
					}
				})
			},
			`{"type": "tcp", "mode": "full", "address": "127.0.0.1", "port": PORT, "expect_body": "^re"}`, "closed early",
		},
		"tls": {
			func(t *testing.T) *patient { return web(t, true, page) },
			`{"type": "tls", "address": "127.0.0.1", "port": PORT, "send": "GET / HTTP/1.0\\r\\n\\r\\n", "expect": "200 OK", "tls": {"ca": CA, "server_name": "example.com"}}`, "503",
		},
		"http 2 with a header": {
			func(t *testing.T) *patient { return web(t, false, page) },
			`{"type": "http", "address": "127.0.0.1", "port": PORT, "path": "/moved", "http_version": "2", "follow_redirects": 1, "headers": {"X-Probe": "me"}, "expect": "HTTP/2.0 me"}`, "503",
		},
		"https": {
			func(t *testing.T) *patient { return web(t, true, page) },
			`{"type": "https", "address": "127.0.0.1", "port": PORT, "path": "/", "host": "example.com", "http_version": "auto", "tls": {"ca": CA}, "expect": "HTTP/2.0"}`, "503",
		},
		"udp": {
			func(t *testing.T) *patient {
				return datagrams(t, func(p *patient, query []byte) []byte {
					if p.sick.Load() {
						return nil
					}
					return query
				})
			},
			`{"type": "udp", "address": "127.0.0.1", "port": PORT, "send": "\\x00\\xff", "expect": "\\xff"}`, "timeout",
		},
		"dns": {
			func(t *testing.T) *patient { return datagrams(t, nameServer) },
			`{"type": "dns", "address": "127.0.0.1", "port": PORT, "dns": {"name": "a.example", "expect_addresses": ["192.0.2.1"]}}`, "SERVFAIL",
		},
		"smtp": {
			func(t *testing.T) *patient { return streams(t, mailServer) },
			`{"type": "smtp", "address": "127.0.0.1", "port": PORT, "hello": "checker.example"}`, "554 no service",
		},
		"grpc": {
			func(t *testing.T) *patient { return web(t, false, healthService) },
			`{"type": "grpc", "address": "127.0.0.1", "port": PORT, "grpc_service": "store"}`, "NOT_SERVING",
		},
		"grpc by tls": {
			func(t *testing.T) *patient { return web(t, true, healthService) },
			`{"type": "grpc", "address": "127.0.0.1", "port": PORT, "host": "example.com", "tls": {"ca": CA}}`, "NOT_SERVING",
		},
		"exec": {
			func(t *testing.T) *patient { return program(t, dir) },
			`{"type": "exec", "exec": {"program": "check-it", "args": ["{address}"]}}`, "exit code 2: out of order",
		},
		"all, with icmp": {
			func(t *testing.T) *patient { return streams(t, store) },
			`{"type": "all", "checks": [{"type": "icmp", "address": "127.0.0.1"}, {"type": "tcp", "address": "127.0.0.1", "port": PORT, "send": "PING\\n", "expect": "PONG"}]}`, "checks[1] tcp",
		},
		"any": {
			func(t *testing.T) *patient { return streams(t, store) },
			`{"type": "any", "checks": [{"type": "tcp", "address": "127.0.0.1", "port": 1}, {"type": "all", "checks": [{"type": "tcp", "address": "127.0.0.1", "port": PORT, "send": "PING\\n", "expect": "PONG"}]}]}`, "one of 2 probes",
		},
	}
	if runtime.GOOS != "linux" {
		delete(cases, "all, with icmp")
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := c.serve(t)
			w := newWorldWith(t, lbchecks.Config{ExecDir: dir})
			text := strings.NewReplacer("PORT", fmt.Sprint(p.at.Port()), "CA", fmt.Sprintf("%q", p.ca)).Replace(c.check)
			s, err := lbstate.DecodeService([]byte(`{"name": "web", "vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1", "port": 8080}], "health_check": ` + text + `}`))
			if err != nil {
				t.Fatal(err)
			}
			s.HealthCheck.Interval, s.HealthCheck.Timeout, s.HealthCheck.Rise, s.HealthCheck.Fall = millis(200), millis(190), 1, 2
			if _, err := w.store.PutService(t.Context(), s, lbstate.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			w.until("web", lbstate.Up)
			fall := func(sick bool) {
				p.sick.Store(sick)
				if !strings.HasPrefix(name, "exec") {
					return
				}
				var err error
				if flag := filepath.Join(dir, "sick"); sick {
					err = os.WriteFile(flag, nil, 0o600)
				} else {
					err = os.Remove(flag)
				}
				if err != nil {
					t.Error(err)
				}
			}
			fall(true)
			if h := w.until("web", lbstate.Down); !strings.Contains(h.Message, c.message) {
				t.Errorf("it is down because %q; want %q", h.Message, c.message)
			}
			fall(false)
			w.until("web", lbstate.Up)
			if res, err := w.ProbeNow(t.Context(), "web", at); err != nil || !res.OK() {
				t.Errorf("%v, %v", res, err)
			}
		})
	}
}

// A program that this host does not allow is never the backend's fault.
func TestProgramsThatAreNotAllowed(t *testing.T) {
	w := newWorld(t)
	check := lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: "check-it"}, Interval: millis(50), Timeout: millis(40), Fall: 1}
	s := lbstate.Service{Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80, HealthCheck: &check, Backends: []lbstate.Backend{{Address: at.Addr(), Port: int(at.Port())}}}
	if _, err := w.store.PutService(t.Context(), s, lbstate.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a result", func() bool {
		all, err := w.ServiceStatus("web")
		return err == nil && len(all) == 1 && all[0].Last.Class == healthcheck.Local
	})
	if h := w.health("web"); h.State != lbstate.Unknown {
		t.Errorf("%+v", h)
	}
}
