package probe

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newHTTP(t testing.TB, cfg HTTPConfig) *HTTP {
	t.Helper()
	p, err := NewHTTP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func statuses(t testing.TB, s string) StatusRanges {
	t.Helper()
	r, err := ParseStatus(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Servers that answer well, and badly in every way.
func TestHTTP(t *testing.T) {
	body := HTTPConfig{Path: "/", Body: Expect{Contains: "ok"}}
	for _, tt := range []struct {
		name   string
		cfg    HTTPConfig
		server func(net.Conn)
		want   outcome
	}{
		{"length", body, say(okAnswer), fine},
		{"HTTP/1.0", body, sayAndClose("HTTP/1.0 200 OK\r\n\r\nok"), fine},
		{"chunked", body, say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), fine},
		{"no body is asked for", HTTPConfig{Path: "/"}, say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), fine},
		{"no reason phrase", HTTPConfig{Path: "/"}, say("HTTP/1.1 204\r\n\r\n"), fine},
		{"continue first", body, say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + okAnswer), fine},
		{"match", HTTPConfig{Path: "/", Body: Expect{Match: regexp.MustCompile("(?s)^o.*k$")}}, say(okAnswer), fine},
		{"status", HTTPConfig{Path: "/", Status: statuses(t, "200,401-403")}, say("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), fine},
		{"HEAD has no body", HTTPConfig{Path: "/", Method: "HEAD"}, say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), fine},

		{
			"500",
			HTTPConfig{Path: "/x"},
			say("HTTP/1.1 500 Oh\tno\r\nContent-Length: 0\r\n\r\n"),
			outcome{class: healthcheck.BadStatus, phase: "answer", expected: "GET http://127.0.0.1", found: "500 Oh no"},
		},
		{"404", HTTPConfig{Path: "/x"}, say("HTTP/1.1 404 Not Found\r\n\r\n"), outcome{class: healthcheck.BadStatus, phase: "answer", expected: "/x to give 200-299", found: "404", advice: "path"}},
		{"401", HTTPConfig{Path: "/"}, say("HTTP/1.1 401 Unauthorized\r\n\r\n"), outcome{class: healthcheck.BadStatus, phase: "answer", found: "401", advice: "login"}},
		{"redirect", HTTPConfig{Path: "/"}, say("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n"), outcome{class: healthcheck.BadStatus, phase: "answer", found: "302", advice: "redirects are not followed"}},
		{"wrong body", body, say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbro\r\n"), outcome{class: healthcheck.BadBody, phase: "body", expected: `"ok" in the body of GET http://127.0.0.1`, found: `"bro"`}},
		{"empty body", body, say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), outcome{class: healthcheck.BadBody, phase: "body", found: `""`}},
		{"body beyond the limit", HTTPConfig{Path: "/", Body: Expect{Contains: "ok", Limit: 3}}, say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nxxxok"), outcome{class: healthcheck.BadBody, phase: "body", found: "first 3 bytes"}},

		{"accepts and hangs", HTTPConfig{Path: "/"}, hang, outcome{class: healthcheck.Timeout, phase: "answer", advice: "raise the timeout"}},
		{"slow headers", HTTPConfig{Path: "/"}, drip(okAnswer, 50*time.Millisecond), outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"slow body", body, func(c net.Conn) {
			told(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
			hang(c)
		}, outcome{class: healthcheck.Timeout, phase: "body", found: "(after 1 bytes)"}},
		{"resets", HTTPConfig{Path: "/"}, reset, outcome{class: healthcheck.Reset, phase: "answer"}},
		{"resets in the body", body, func(c net.Conn) {
			told(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\no")
			time.Sleep(short / 2)
			abort(c)
		}, outcome{class: healthcheck.Reset, phase: "body"}},
		{"closes", HTTPConfig{Path: "/"}, closeEarly, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"closes in the headers", HTTPConfig{Path: "/"}, sayAndClose("HTTP/1.1 200 OK\r\nContent-Le"), outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"}},
		{"closes in the body", body, sayAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\no"), outcome{class: healthcheck.Protocol, phase: "body", found: "closed early"}},
		{"not HTTP", HTTPConfig{Path: "/"}, sayAndClose("SSH-2.0-OpenSSH_9.2\r\n"), outcome{class: healthcheck.Protocol, phase: "answer", found: "malformed"}},
		{"not a status", HTTPConfig{Path: "/"}, say("HTTP/1.1 OK\r\n\r\n"), outcome{class: healthcheck.Protocol, phase: "answer", found: "malformed"}},
		{"two lengths", body, say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"), outcome{class: healthcheck.Protocol, phase: "answer"}},
		{"bad chunks", body, say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), outcome{class: healthcheck.Protocol, phase: "body"}},
		{"endless interim answers", HTTPConfig{Path: "/"}, endless("", "HTTP/1.1 100 Continue\r\n\r\n"), outcome{class: healthcheck.Protocol, phase: "answer", found: "interim"}},
		{"endless headers", HTTPConfig{Path: "/"}, endless("HTTP/1.1 200 OK\r\n", "X: y\r\n"), outcome{class: healthcheck.Protocol, phase: "answer", found: "bytes of headers"}},
		{"endless status line", HTTPConfig{Path: "/"}, endless("HTTP/1.1 200 ", "yes "), outcome{class: healthcheck.Protocol, phase: "answer", found: "bytes of headers"}},
		{"endless body", body, endless("HTTP/1.1 200 OK\r\n\r\n", "xyz"), outcome{class: healthcheck.BadBody, phase: "body", found: "only the first"}},
		{"endless body that is right", HTTPConfig{Path: "/", Body: Expect{Contains: "xyz"}}, endless("HTTP/1.1 200 OK\r\n\r\n", "xyz"), fine},
		{"endless chunks", body, endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"), outcome{class: healthcheck.BadBody, phase: "body", found: "only the first"}},
		{"endless chunk extensions", body, endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;a=b\r\nx\r\n"), outcome{class: healthcheck.Protocol, phase: "body"}},
		{"endless body that nobody asked for", HTTPConfig{Path: "/"}, endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"), fine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newHTTP(t, tt.cfg), serve(t, tt.server).addr, tt.want)
		})
	}
	ask(t, newHTTP(t, body), nobody(t), outcome{class: healthcheck.Refused, phase: "connect", advice: "listens"})
}

// A success is told at once, however much of the answer is still to come.
func TestHTTPDoesNotWaitForWhatItDoesNotWant(t *testing.T) {
	for _, framing := range []string{"Content-Length: 9999", "Transfer-Encoding: chunked"} {
		s := serve(t, say("HTTP/1.1 200 OK\r\n"+framing+"\r\n\r\n1"))
		began := time.Now()
		ask(t, newHTTP(t, HTTPConfig{Path: "/"}), s.addr, fine)
		if took := time.Since(began); took > patience/2 {
			t.Errorf("%s: it took %v", framing, took)
		}
	}
}

// request is what a probe sends, as net/http understands it.
func request(t *testing.T, cfg HTTPConfig, on string) *http.Request {
	t.Helper()
	got := make(chan *http.Request, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r }))
	if on != "" {
		s.Listener.Close()
		l, err := net.Listen("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		s.Listener = l
	}
	s.Start()
	t.Cleanup(s.Close)
	ask(t, newHTTP(t, cfg), netip.MustParseAddrPort(s.Listener.Addr().String()), fine)
	return <-got
}

func TestHTTPRequest(t *testing.T) {
	r := request(t, HTTPConfig{Path: "/health?deep=1"}, "")
	if r.Method != http.MethodGet || r.RequestURI != "/health?deep=1" || !strings.HasPrefix(r.Host, "127.0.0.1:") || !r.Close ||
		r.Header.Get("User-Agent") == "" || r.Header.Get("Accept") != "*/*" || r.ContentLength != 0 {
		t.Errorf("%+v", r)
	}
	r = request(t, HTTPConfig{Path: "/", Host: "example.com", Method: "OPTIONS", Header: http.Header{"User-Agent": {"me"}, "X-A": {"1", "2"}}}, "")
	if r.Method != http.MethodOptions || r.Host != "example.com" || r.UserAgent() != "me" || len(r.Header["X-A"]) != 2 || len(r.Header["User-Agent"]) != 1 {
		t.Errorf("%+v", r)
	}
	r = request(t, HTTPConfig{Path: "/", Method: "POST"}, "")
	if r.ContentLength != 0 || r.Header.Get("Content-Length") != "0" {
		t.Errorf("a POST without a body must say so: %+v", r)
	}
	if r = request(t, HTTPConfig{Path: "/"}, "[::1]:0"); !strings.HasPrefix(r.Host, "[::1]:") {
		t.Errorf("host %q", r.Host)
	}
}

func TestHTTPFaultsOfAConfig(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		cfg  HTTPConfig
		want string
	}{
		{HTTPConfig{}, "one of path and url"},
		{HTTPConfig{Path: "/", URL: "http://a/"}, "not both"},
		{HTTPConfig{URL: "http://a/", Address: addr}, "go with path"},
		{HTTPConfig{URL: "http://a/", Port: 1}, "go with path"},
		{HTTPConfig{URL: "http://a/", Host: "b"}, "go with path"},
		{HTTPConfig{URL: "ftp://a/"}, "scheme"},
		{HTTPConfig{URL: "http:///x"}, "host"},
		{HTTPConfig{URL: "http://u:p@a/"}, "no user"},
		{HTTPConfig{URL: "http://a:99999/"}, "port"},
		{HTTPConfig{URL: "http://a:0/"}, "port"},
		{HTTPConfig{URL: "http://a b/"}, "url"},
		{HTTPConfig{URL: "http://a/\r\nX: y"}, "url"},
		{HTTPConfig{Path: "x"}, "path"},
		{HTTPConfig{Path: "//host/x"}, "path"},
		{HTTPConfig{Path: "http://a/"}, "path"},
		{HTTPConfig{Path: "/a b"}, "path"},
		{HTTPConfig{Path: "/a\r\nX: y"}, "path"},
		{HTTPConfig{Path: "/", Scheme: "gopher"}, "scheme"},
		{HTTPConfig{Path: "/", Method: "GE T"}, "method"},
		{HTTPConfig{Path: "/", Host: "a\r\nb"}, "host"},
		{HTTPConfig{Path: "/", Redirects: -1}, "redirects"},
		{HTTPConfig{Path: "/", Header: http.Header{"Host": {"x"}}}, "Host"},
		{HTTPConfig{Path: "/", Header: http.Header{"A:": {"x"}}}, "A:"},
		{HTTPConfig{Path: "/", Header: http.Header{"A": {"x\r\ny: z"}}}, "control"},
		{HTTPConfig{Path: "/", Header: http.Header{"Transfer-Encoding": {"chunked"}}}, "Transfer-Encoding"},
		{HTTPConfig{Path: "/", Header: http.Header{"content-length": {"5"}}}, "content-length"},
	} {
		if _, err := NewHTTP(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
}

func TestHTTPRedirects(t *testing.T) {
	var other *httptest.Server
	mux := http.NewServeMux()
	hop := func(from, to string, code int) {
		mux.HandleFunc(from, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", strings.ReplaceAll(to, "OTHER", other.URL))
			w.WriteHeader(code)
		})
	}
	hop("/once", "/end", 302)
	hop("/relative/a", "../end", 301)
	hop("/twice", "/once", 307)
	hop("/loop", "/loop", 308)
	hop("/elsewhere", "OTHER/end", 302)
	hop("/nonsense", "http://[", 302)
	hop("/file", "file:///etc/passwd", 302)
	hop("/post", "/get", 303)
	mux.HandleFunc("/nowhere", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) })
	mux.HandleFunc("/end", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "end") })
	mux.HandleFunc("GET /get", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "end") })
	first := httptest.NewServer(mux)
	defer first.Close()
	var secrets []string
	other = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secrets = append(secrets, r.Header.Get("Authorization"), r.Header.Get("Cookie"))
		fmt.Fprintf(w, "end; %s", r.Header.Get("X-Plain"))
	}))
	defer other.Close()
	target := netip.MustParseAddrPort(first.Listener.Addr().String())

	for _, tt := range []struct {
		path   string
		follow int
		want   outcome
	}{
		{"/once", 1, fine},
		{"/relative/a", 1, fine},
		{"/twice", 2, fine},
		{"/twice", 1, outcome{class: healthcheck.BadStatus, phase: "answer", expected: "at most 1 redirects", found: "/end"}},
		{"/loop", 5, outcome{class: healthcheck.BadStatus, phase: "answer", expected: "at most 5 redirects", found: "/loop"}},
		{"/elsewhere", 1, fine},
		{"/nonsense", 1, outcome{class: healthcheck.Protocol, phase: "answer", expected: "lead to a URL"}},
		{"/file", 1, outcome{class: healthcheck.Protocol, phase: "answer", found: "http or https"}},
		{"/nowhere", 1, outcome{class: healthcheck.BadStatus, phase: "answer", found: "302"}},
	} {
		t.Run(fmt.Sprint(tt.path, tt.follow), func(t *testing.T) {
			ask(t, newHTTP(t, HTTPConfig{
				Path: tt.path, Redirects: tt.follow, Body: Expect{Contains: "end"},
				Header: http.Header{"Authorization": {"Bearer x"}, "Cookie": {"a=b"}, "X-Plain": {"1"}},
			}), target, tt.want)
		})
	}
	for _, s := range secrets {
		if s != "" {
			t.Errorf("another host was sent %q", s)
		}
	}
	ask(t, newHTTP(t, HTTPConfig{Path: "/post", Method: "POST", Redirects: 1, Body: Expect{Contains: "end"}}), target, fine)
}

func TestHTTPByURL(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s asked for %s", r.Host, r.RequestURI)
	}))
	defer s.Close()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort("192.0.2.1:1")
	ask(t, newHTTP(t, HTTPConfig{URL: "http://localhost:" + port + "/a?b=c", Body: Expect{Contains: "localhost:" + port + " asked for /a?b=c"}}), nobody, fine)
	ask(t, newHTTP(t, HTTPConfig{URL: s.URL, Body: Expect{Contains: "asked for /"}}), netip.AddrPort{}, fine)
	ask(t, newHTTP(t, HTTPConfig{URL: "http://no-such-host.invalid/"}), nobody,
		outcome{class: healthcheck.DNS, phase: "resolve", advice: "resolvers"})
}

func TestParseStatus(t *testing.T) {
	for _, tt := range []struct {
		in, text string
		has      []int
		hasNot   []int
	}{
		{"", "200-299", []int{200, 299}, []int{199, 300}},
		{" ", "200-299", []int{200}, nil},
		{"200", "200", []int{200}, []int{201}},
		{"200-204, 301", "200-204, 301", []int{200, 204, 301}, []int{205, 300}},
		{"100-599", "100-599", []int{100, 599}, []int{600, 99}},
	} {
		r, err := ParseStatus(tt.in)
		if err != nil || r.String() != tt.text {
			t.Errorf("%q: %q, %v", tt.in, r, err)
		}
		for _, c := range tt.has {
			if !r.Has(c) {
				t.Errorf("%q has not %d", tt.in, c)
			}
		}
		for _, c := range tt.hasNot {
			if r.Has(c) {
				t.Errorf("%q has %d", tt.in, c)
			}
		}
	}
	for _, in := range []string{"x", "99", "600", "200-", "-200", "300-200", "200,,201", "2000", "+200", "0200", "200-2x"} {
		if r, err := ParseStatus(in); err == nil {
			t.Errorf("%q gives %v", in, r)
		}
	}
}
