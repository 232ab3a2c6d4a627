package probe

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// h2Script is what a server does after it has read one request.
type h2Script func(*h2Peer)

type h2Peer struct {
	*http2.Framer
	conn net.Conn
}

// read waits for the end of the request.
func (p *h2Peer) read() bool {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(p.conn, preface); err != nil || string(preface) != http2.ClientPreface {
		return false
	}
	for {
		frame, err := p.ReadFrame()
		if err != nil {
			return false
		}
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				return true
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return true
			}
		}
	}
}

func (p *h2Peer) header(end bool, fields ...string) {
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(fields...), EndHeaders: true, EndStream: end}) //nolint:errcheck // the probe notices
}

func (p *h2Peer) data(end bool, data string) { p.WriteData(1, end, []byte(data)) } //nolint:errcheck // the probe notices

// end closes in order: without reading first, what was not read would make it a
// reset.
func (p *h2Peer) end() { p.conn.(*net.TCPConn).CloseWrite() } //nolint:errcheck // the probe notices

func block(fields ...string) []byte {
	var out bytes.Buffer
	enc := hpack.NewEncoder(&out)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) //nolint:errcheck // into memory
	}
	return out.Bytes()
}

// h2Serve is a server by hand; it sends its settings first.
func h2Serve(t testing.TB, script h2Script) *listener {
	t.Helper()
	return serve(t, func(c net.Conn) {
		p := &h2Peer{http2.NewFramer(c, c), c}
		if !p.read() {
			return
		}
		p.WriteSettings() //nolint:errcheck // the probe notices
		script(p)
		hang(c)
	})
}

// h2Server is net/http's.
func h2Server(t testing.TB, handler http.Handler, cert *tls.Certificate) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	if cert != nil {
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func TestHTTPVersions(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(long, "127.0.0.1")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-A") != "1" || r.UserAgent() != userAgent || r.ContentLength > 0 || !strings.HasPrefix(r.Host, "127.0.0.1:") {
			t.Errorf("%+v", r)
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, r.Proto)
		w.(http.Flusher).Flush()
		w.Header().Set(http.TrailerPrefix+"X-T", "1")
	})
	plain, secured := h2Server(t, handler, nil), h2Server(t, handler, &cert)
	one := secure(t, &tls.Config{Certificates: []tls.Certificate{cert}}, say(okAnswer)).addr
	for _, tt := range []struct {
		version, scheme string
		target          netip.AddrPort
		method, body    string
		want            outcome
	}{
		{"", "http", plain, "", "GET /x?y HTTP/1.1", fine},
		{"2", "http", plain, "", "GET /x?y HTTP/2.0", fine},
		{"2", "http", plain, "POST", "POST /x?y HTTP/2.0", fine},
		{"auto", "http", plain, "", "HTTP/1.1", fine},
		{"", "https", secured, "", "HTTP/1.1", fine},
		{"2", "https", secured, "", "HTTP/2.0", fine},
		{"auto", "https", secured, "", "HTTP/2.0", fine},
		{"auto", "https", one, "", "ok", fine},
		{"2", "https", one, "", "ok", outcome{class: healthcheck.TLS, phase: "tls handshake", found: "not h2"}},
		{"2", "http", serve(t, say("HTTP/1.1 400 Bad Request\r\n\r\n")).addr, "", "", outcome{class: healthcheck.Protocol, phase: "answer", found: "not HTTP/2"}},
	} {
		t.Run(fmt.Sprint(tt.version, " ", tt.scheme, " ", tt.method), func(t *testing.T) {
			ask(t, newHTTP(t, HTTPConfig{
				Path: "/x?y", Scheme: tt.scheme, Version: tt.version, Method: tt.method, TLS: TLSConfig{Roots: a.pool()},
				Header: http.Header{"X-A": {"1"}}, Body: Expect{Contains: tt.body},
			}), tt.target, tt.want)
		})
	}
	if _, err := NewHTTP(HTTPConfig{Path: "/", Version: "3"}); err == nil {
		t.Error("version 3 was taken")
	}
}

// Servers that speak HTTP/2 well enough, and badly in every way.
func TestHTTP2(t *testing.T) {
	body := HTTPConfig{Path: "/", Version: "2", Body: Expect{Contains: "ok"}}
	none := HTTPConfig{Path: "/", Version: "2"}
	for _, tt := range []struct {
		name   string
		cfg    HTTPConfig
		script h2Script
		want   outcome
	}{
		{"in pieces", body, func(p *h2Peer) { p.header(false, ":status", "200"); p.data(false, "o"); p.data(true, "k") }, fine},
		{"with a trailer", body, func(p *h2Peer) {
			p.header(false, ":status", "200")
			p.data(false, "ok")
			p.header(true, "x-t", "1")
		}, fine},
		{"padded", body, func(p *h2Peer) {
			p.header(false, ":status", "200")
			p.WriteDataPadded(1, true, []byte("ok"), make([]byte, 200)) //nolint:errcheck // the probe notices
		}, fine},
		{"hints first", body, func(p *h2Peer) {
			p.header(false, ":status", "103")
			p.header(false, ":status", "200")
			p.data(true, "ok")
		}, fine},
		{"asks for answers in between", body, func(p *h2Peer) {
			p.WritePing(false, [8]byte{1}) //nolint:errcheck // the probe notices
			for acks := 0; acks < 2; {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if f.Header().Flags&1 != 0 {
					acks++ // of the settings and of the ping
				}
			}
			p.header(false, ":status", "200")
			p.data(true, "ok")
		}, fine},
		{"unknown frames", body, func(p *h2Peer) {
			p.WriteRawFrame(0xbe, 0xef, 77, []byte("x")) //nolint:errcheck // the probe notices
			p.WriteWindowUpdate(0, 5)                    //nolint:errcheck // the probe notices
			p.header(false, ":status", "200")
			p.data(true, "ok")
		}, fine},
		{"ends soon, but not before this", body, func(p *h2Peer) {
			p.WriteGoAway(1, http2.ErrCodeNo, nil) //nolint:errcheck // the probe notices
			p.header(false, ":status", "200")
			p.data(true, "ok")
		}, fine},
		{"status alone", none, func(p *h2Peer) { p.header(true, ":status", "204") }, fine},
		{"no body is asked for", none, func(p *h2Peer) { p.header(false, ":status", "200") }, fine},
		{"a header in two frames", none, func(p *h2Peer) {
			b := block(":status", "200", "a", "b")
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:1], EndStream: true}) //nolint:errcheck // the probe notices
			p.WriteContinuation(1, true, b[1:])                                                         //nolint:errcheck // the probe notices
		}, fine},

		{"503", none, func(p *h2Peer) { p.header(true, ":status", "503") }, outcome{class: healthcheck.BadStatus, phase: "answer", found: "503 Service Unavailable"}},
		{"wrong body", body, func(p *h2Peer) { p.header(false, ":status", "200"); p.data(true, "no") }, outcome{class: healthcheck.BadBody, phase: "body", found: `"no"`}},
		{"no body", body, func(p *h2Peer) { p.header(true, ":status", "200") }, outcome{class: healthcheck.BadBody, phase: "body", found: `""`}},
		{"GOAWAY", none, func(p *h2Peer) { p.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("too\nmany")) }, //nolint:errcheck // the probe notices
			outcome{class: healthcheck.Protocol, phase: "answer", found: `GOAWAY ENHANCE_YOUR_CALM "too many"`}},
		{"GOAWAY without a reason", none, func(p *h2Peer) { p.WriteGoAway(0, http2.ErrCodeNo, nil) }, //nolint:errcheck // the probe notices
			outcome{class: healthcheck.Protocol, phase: "answer", found: "GOAWAY NO_ERROR"}},
		{"RST_STREAM", none, func(p *h2Peer) { p.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, //nolint:errcheck // the probe notices
			outcome{class: healthcheck.Protocol, phase: "answer", found: "RST_STREAM REFUSED_STREAM"}},
		{"RST_STREAM in the body", body, func(p *h2Peer) {
			p.header(false, ":status", "200")
			p.WriteRSTStream(1, http2.ErrCodeInternal) //nolint:errcheck // the probe notices
		}, outcome{class: healthcheck.Protocol, phase: "body", found: "RST_STREAM INTERNAL_ERROR"}},
		{"hangs", none, func(*h2Peer) {}, outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"hangs in the body", body, func(p *h2Peer) { p.header(false, ":status", "200") }, outcome{class: healthcheck.Timeout, phase: "body"}},
		{"closes", none, func(p *h2Peer) { p.end() }, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"closes in the body", body, func(p *h2Peer) { p.header(false, ":status", "200"); p.end() }, outcome{class: healthcheck.Protocol, phase: "body", found: "closed early"}},
		{"resets", none, func(p *h2Peer) { abort(p.conn) }, outcome{class: healthcheck.Reset, phase: "answer"}},
		{"pushes", none, func(p *h2Peer) {
			p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: block(":path", "/"), EndHeaders: true}) //nolint:errcheck // the probe notices
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "PUSH_PROMISE"}},
		{"answers somebody else", none, func(p *h2Peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block(":status", "200"), EndHeaders: true}) //nolint:errcheck // the probe notices
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "stream 3"}},
		{"a body before the header", none, func(p *h2Peer) { p.data(true, "ok") }, outcome{class: healthcheck.Protocol, phase: "answer", found: "DATA before"}},
		{"no status", none, func(p *h2Peer) { p.header(true, "a", "b") }, outcome{class: healthcheck.Protocol, phase: "answer"}},
		{"a status of nonsense", none, func(p *h2Peer) { p.header(true, ":status", "2000") }, outcome{class: healthcheck.Protocol, phase: "answer", found: "2000"}},
		{"bad compression", none, func(p *h2Peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true}) //nolint:errcheck // the probe notices
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "COMPRESSION_ERROR"}},
		{"a frame too large", none, func(p *h2Peer) { p.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<17)) }, //nolint:errcheck // the probe notices
			outcome{class: healthcheck.Protocol, phase: "answer", found: "too large"}},
		{"endless pings", none, func(p *h2Peer) {
			for p.WritePing(true, [8]byte{}) == nil {
			}
		}, outcome{class: healthcheck.Protocol, phase: "answer", found: "more than"}},
		{"endless header", none, func(p *h2Peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "200")}) //nolint:errcheck // the probe notices
			for p.WriteContinuation(1, false, block("a", strings.Repeat("b", 10000))) == nil {
			}
		}, outcome{class: healthcheck.Protocol, phase: "answer"}},
		{"endless body", body, func(p *h2Peer) {
			p.header(false, ":status", "200")
			for p.WriteData(1, false, []byte("x")) == nil {
			}
		}, outcome{class: healthcheck.BadBody, phase: "body", found: "only the first"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newHTTP(t, tt.cfg), h2Serve(t, tt.script).addr, tt.want)
		})
	}
	t.Run("no settings", func(t *testing.T) {
		s := serve(t, func(c net.Conn) {
			p := &h2Peer{http2.NewFramer(c, c), c}
			p.read()
			p.header(true, ":status", "200")
			hang(c)
		})
		ask(t, newHTTP(t, none), s.addr, outcome{class: healthcheck.Protocol, phase: "answer", found: "not HTTP/2"})
	})
}

// answerOf are the bytes that a script sends.
func answerOf(script h2Script) []byte {
	var out bytes.Buffer
	p := &h2Peer{http2.NewFramer(&out, nil), nil}
	p.WriteSettings() //nolint:errcheck // into memory
	script(p)
	return out.Bytes()
}

func FuzzHTTP2Answer(f *testing.F) {
	for _, script := range []h2Script{
		func(p *h2Peer) { p.header(false, ":status", "200"); p.data(true, "ok") },
		func(p *h2Peer) { p.header(true, ":status", "302", "location", "/x") },
		func(p *h2Peer) { p.header(false, ":status", "100"); p.header(true, ":status", "200") },
		func(p *h2Peer) { p.WriteGoAway(0, 1, []byte("x")) },                 //nolint:errcheck // into memory
		func(p *h2Peer) { p.WritePing(false, [8]byte{}); p.data(true, "x") }, //nolint:errcheck // into memory
	} {
		f.Add(answerOf(script))
	}
	p, err := NewHTTP(HTTPConfig{Path: "/", Version: "2", Redirects: 1, Body: Expect{Contains: "ok", Limit: 100}})
	if err != nil {
		f.Fatal(err)
	}
	x := p.first(netip.MustParseAddrPort("192.0.2.1:80"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		whole, _, location := p.ask2(t.Context(), x, scripted{bytes.NewReader(answer)})
		wellFormed(t, whole)
		pieces, _, other := p.ask2(t.Context(), x, scripted{iotest.OneByteReader(bytes.NewReader(answer))})
		if whole.Class != pieces.Class || location != other {
			t.Errorf("in one piece %+v, %q; byte by byte %+v, %q", whole, location, pieces, other)
		}
	})
}

// A request is what net/http's server understands; a failed write is told as
// such.
func TestHTTP2RequestCannotBeSent(t *testing.T) {
	p := newHTTP(t, HTTPConfig{Path: "/", Version: "2"})
	res, _, _ := p.ask2(t.Context(), p.first(netip.MustParseAddrPort("192.0.2.1:80")), broken{})
	outcome{class: healthcheck.Protocol, phase: "request", found: "no more"}.check(t, res)
}

type broken struct{ io.Reader }

func (broken) Write([]byte) (int, error) { return 0, errors.New("no more") }
