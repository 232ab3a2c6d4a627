package probe

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newGRPC(t testing.TB, cfg GRPCConfig) *GRPC {
	t.Helper()
	p, err := NewGRPC(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// health is a health service as any gRPC server has it, on net/http.
func health(t testing.TB, states map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) < 5 || int(body[4]) != len(body)-5 || r.Method != http.MethodPost || r.URL.Path != "/grpc.health.v1.Health/Check" ||
			r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" || !strings.HasSuffix(r.Header.Get("Grpc-Timeout"), "m") {
			t.Errorf("%v, %q, %+v", err, body, r)
		}
		service := ""
		if len(body) > 5 {
			_, _, n := protowire.ConsumeTag(body[5:])
			service, _ = protowire.ConsumeString(body[5+n:])
		}
		w.Header().Set("Content-Type", "application/grpc")
		answer, known := states[service]
		if !known {
			w.Header().Set("Grpc-Status", "5")
			w.Header().Set("Grpc-Message", "unknown service")
			return
		}
		w.Write([]byte(answer)) //nolint:errcheck // the probe notices
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})
}

func TestGRPC(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(long, "127.0.0.1", "health.example")
	states := map[string]string{
		"":      "\x00\x00\x00\x00\x02\x08\x01",
		"store": "\x00\x00\x00\x00\x02\x08\x02",
		"odd":   "\x00\x00\x00\x00\x05\x10\x07\x08\x89\x01",
		"empty": "\x00\x00\x00\x00\x00",
		"new":   "\x00\x00\x00\x00\x07\x12\x03abc\x08\x01", // with a field of tomorrow
	}
	plain, secured := h2Server(t, health(t, states), nil), h2Server(t, health(t, states), &cert)
	trusting := &TLSConfig{Roots: a.pool()}
	for _, tt := range []struct {
		name   string
		cfg    GRPCConfig
		target netip.AddrPort
		want   outcome
	}{
		{"the server", GRPCConfig{}, plain, fine},
		{"a field of tomorrow", GRPCConfig{Service: "new"}, plain, fine},
		{"with TLS", GRPCConfig{TLS: trusting}, secured, fine},
		{"with TLS by name", GRPCConfig{TLS: trusting, Host: "health.example"}, secured, fine},
		{"another place", GRPCConfig{Address: plain.Addr(), Port: plain.Port()}, netip.MustParseAddrPort("192.0.2.1:1"), fine},
		{"not serving", GRPCConfig{Service: "store"}, plain, outcome{class: healthcheck.BadStatus, phase: "answer", expected: `service "store" to be SERVING`, found: "NOT_SERVING"}},
		{"unknown status", GRPCConfig{Service: "odd"}, plain, outcome{class: healthcheck.BadStatus, phase: "answer", found: "status 137"}},
		{"no status", GRPCConfig{Service: "empty"}, plain, outcome{class: healthcheck.BadStatus, phase: "answer", found: "UNKNOWN"}},
		{"no such service", GRPCConfig{Service: "nobody"}, plain, outcome{class: healthcheck.BadStatus, phase: "answer", found: "NOT_FOUND", advice: "name"}},
		{"wrong name", GRPCConfig{TLS: trusting, Host: "other.example"}, secured, outcome{class: healthcheck.TLS, phase: "tls handshake"}},
		{"TLS where there is none", GRPCConfig{TLS: trusting}, plain, outcome{class: healthcheck.TLS, phase: "tls handshake"}},
		{"nobody there", GRPCConfig{}, nobody(t), outcome{class: healthcheck.Refused, phase: "connect"}},
	} {
		t.Run(tt.name, func(t *testing.T) { ask(t, newGRPC(t, tt.cfg), tt.target, tt.want) })
	}
	grpc := []string{":status", "200", "content-type", "application/grpc"}
	trailers := func(fields ...string) h2Script {
		return func(p *h2Peer) { p.header(true, append(grpc, fields...)...) }
	}
	message := func(m string) h2Script {
		return func(p *h2Peer) {
			p.header(false, grpc...)
			p.data(false, m)
			p.header(true, "grpc-status", "0")
		}
	}
	for _, tt := range []struct {
		name   string
		script h2Script
		want   outcome
	}{
		{"no health service", trailers("grpc-status", "12"), outcome{class: healthcheck.BadStatus, phase: "answer", found: "UNIMPLEMENTED", advice: "register"}},
		{"an error", trailers("grpc-status", "14", "grpc-message", "try%20again%0a%ff"), outcome{class: healthcheck.BadStatus, phase: "answer", found: "grpc-status 14 try again"}},
		{"an error with a bad text", trailers("grpc-status", "14", "grpc-message", "%zz"), outcome{class: healthcheck.BadStatus, phase: "answer", found: "grpc-status 14 %zz"}},
		{"no grpc-status", trailers(), outcome{class: healthcheck.Protocol, phase: "answer", found: "without a grpc-status"}},
		{"a web server", func(p *h2Peer) { p.header(true, ":status", "404") }, outcome{class: healthcheck.BadStatus, phase: "answer", found: "HTTP status 404", advice: "gRPC server"}},
		{"a polite web server", func(p *h2Peer) {
			p.header(false, ":status", "200", "content-type", "text/html")
			p.data(true, "<html>")
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: `"text/html"`}},
		{"half a message", message("\x00\x00"), outcome{class: healthcheck.Protocol, phase: "answer", found: "2 bytes"}},
		{"a wrong length", message("\x00\x00\x00\x00\x09\x08\x01"), outcome{class: healthcheck.Protocol, phase: "answer", found: "says it has 9"}},
		{"compressed", message("\x01\x00\x00\x00\x02\x08\x01"), outcome{class: healthcheck.Protocol, phase: "answer", found: "compressed"}},
		{"not protobuf", message("\x00\x00\x00\x00\x01\x08"), outcome{class: healthcheck.Protocol, phase: "answer", found: "not protobuf"}},
		{"endless messages", func(p *h2Peer) {
			p.header(false, grpc...)
			for p.WriteData(1, false, []byte("\x00\x00\x00\x00\x02\x08\x01")) == nil {
			}
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "more than 4096"}},
		{"hangs", func(*h2Peer) {}, outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"goes away", func(p *h2Peer) { p.WriteGoAway(0, 0, nil) }, outcome{class: healthcheck.Protocol, phase: "answer", found: "GOAWAY"}}, //nolint:errcheck // the probe notices
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newGRPC(t, GRPCConfig{}), h2Serve(t, tt.script).addr, tt.want)
		})
	}
	only1 := secure(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}, hang)
	ask(t, newGRPC(t, GRPCConfig{TLS: trusting}), only1.addr, outcome{class: healthcheck.TLS, phase: "tls handshake", found: "no application protocol"})
	ask(t, newGRPC(t, GRPCConfig{}), serve(t, func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); hang(c) }).addr,
		outcome{class: healthcheck.Protocol, phase: "answer", found: "not HTTP/2"})
}

func TestGRPCFaultsOfAConfig(t *testing.T) {
	for _, cfg := range []GRPCConfig{{Host: "a b"}, {Service: strings.Repeat("x", 5000)}} {
		if _, err := NewGRPC(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func FuzzGRPCAnswer(f *testing.F) {
	grpc := []string{":status", "200", "content-type", "application/grpc"}
	for _, script := range []h2Script{
		func(p *h2Peer) {
			p.header(false, grpc...)
			p.data(false, "\x00\x00\x00\x00\x02\x08\x01")
			p.header(true, "grpc-status", "0")
		},
		func(p *h2Peer) { p.header(true, append(grpc, "grpc-status", "14", "grpc-message", "%41")...) },
		func(p *h2Peer) { p.header(true, ":status", "404") },
	} {
		f.Add(answerOf(script))
	}
	p, err := NewGRPC(GRPCConfig{Service: "x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		a, err := h2Exchange(scripted{bytes.NewReader(answer)}, nil, grpcLimit, func(h2Answer) bool { return true })
		if err == nil {
			wellFormed(t, p.judge(a))
		}
	})
}
