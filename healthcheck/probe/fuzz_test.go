package probe

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// wellFormed is what holds of any result, whatever a target sent.
func wellFormed(t *testing.T, res healthcheck.Result) {
	t.Helper()
	if res.Class == healthcheck.Local {
		t.Errorf("an answer of a target is inconclusive: %+v", res)
	}
	if !res.OK() && (res.Phase == "" || res.Found == "") {
		t.Errorf("%+v does not say where, or what was found", res)
	}
	for _, text := range []string{res.Expected, res.Found, res.Advice, res.Warning} {
		if len(text) > 2000 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("not fit for a log: %q", text)
		}
	}
}

// scripted is a peer that says what it says whatever it is sent.
type scripted struct{ io.Reader }

func (scripted) Write(p []byte) (int, error) { return len(p), nil }

func FuzzHTTPAnswer(f *testing.F) {
	for _, answer := range []string{
		okAnswer,
		"HTTP/1.1 100 Continue\r\n\r\n" + okAnswer,
		"HTTP/1.0 200 OK\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 301 Moved\r\nLocation: //other/x?y\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: http://[::1]:80/\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"SSH-2.0-x\r\n",
		"",
	} {
		f.Add([]byte(answer), "/", "GET")
	}
	f.Add([]byte(okAnswer), "/"+strings.Repeat("x", 3000), "GET")
	p, err := NewHTTP(HTTPConfig{Path: "/", Redirects: 1, Body: Expect{Match: regexp.MustCompile("ok"), Limit: 1000}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte, uri, method string) {
		if !strings.HasPrefix(uri, "/") || !visible(uri) || !token(method) {
			return
		}
		x := p.first(netip.MustParseAddrPort("192.0.2.1:80"))
		x.uri, x.method = uri, method
		whole, code, location := p.ask1(t.Context(), x, scripted{bytes.NewReader(answer)})
		wellFormed(t, whole)
		pieces, _, other := p.ask1(t.Context(), x, scripted{iotest.OneByteReader(bytes.NewReader(answer))})
		if whole.Class != pieces.Class || location != other {
			t.Errorf("in one piece %+v, %q; byte by byte %+v, %q", whole, location, pieces, other)
		}
		if location == "" {
			return
		}
		next, err := x.to(code, location)
		if err != nil {
			return
		}
		if next.host != x.host && !next.foreign {
			t.Errorf("%v leads to %v, which is another host", x, next)
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(p.request(next))))
		if err != nil {
			t.Fatalf("%q leads to a request that is not one: %v\n%q", location, err, p.request(next))
		}
		if r.Host != next.host || r.ContentLength > 0 || len(r.TransferEncoding) > 0 {
			t.Errorf("%q leads to %+v", location, r)
		}
	})
}

func FuzzExpect(f *testing.F) {
	f.Add([]byte("+OK ready\r\n"), "OK", 0)
	f.Add([]byte("\x00\xff"), "", 1)
	f.Add(bytes.Repeat([]byte("ab"), 300), "ba", 100)
	f.Fuzz(func(t *testing.T, answer []byte, contains string, limit int) {
		x := Expect{Contains: contains, Match: regexp.MustCompile("[a-z]"), Limit: limit}
		whole := x.read(t.Context(), bytes.NewReader(answer), phaseAnswer)
		wellFormed(t, whole)
		pieces := x.read(t.Context(), iotest.OneByteReader(bytes.NewReader(answer)), phaseAnswer)
		if whole.Class != pieces.Class {
			t.Errorf("in one piece %+v, byte by byte %+v", whole, pieces)
		}
		if seen := answer[:min(len(answer), x.limit())]; whole.OK() != (len(seen) > 0 && x.met(seen)) {
			t.Errorf("%+v of %q", whole, seen)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	for _, s := range []string{"", "200", "200-299, 301", "100-599", "x", "200-", "300-200"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseStatus(s)
		if err != nil {
			return
		}
		again, err := ParseStatus(r.String())
		if err != nil {
			t.Fatalf("%q gives %q, which gives %v", s, r, err)
		}
		some := false
		for code := range 1000 {
			if r.Has(code) != again.Has(code) {
				t.Errorf("%q and %q differ at %d", s, r, code)
			}
			some = some || r.Has(code)
			if r.Has(code) && (code < 100 || code > 599) {
				t.Errorf("%q has %d", s, code)
			}
		}
		if !some {
			t.Errorf("%q has nothing", s)
		}
	})
}
