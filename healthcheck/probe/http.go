package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/ipvskit/ipvskit/healthcheck"
)

const (
	headerLimit  = 64 << 10 // bytes of status line and headers that are read at most
	interimLimit = 5        // answers of class 1xx that are passed over at most
	framing      = 8        // times a body's length that chunks of one byte may take, roughly
)

// HTTPConfig says how an HTTP probe asks. Either Path or URL is required.
type HTTPConfig struct {
	// Path, with a query if it has one, is asked of the target itself. Address
	// and Port replace the target's, where they are set. Host is the Host header
	// and, for https, the name that the certificate must have; by default both
	// are the address that is dialled. Scheme is http (default) or https.
	Path    string
	Address netip.Addr
	Port    uint16
	Host    string
	Scheme  string

	// URL is absolute, and dialled as written; the target is not looked at.
	URL string

	Method string // default GET
	// Header is added to the request, except to another host that a redirect
	// leads to. What the probe sets itself (Host, framing) is refused.
	Header http.Header

	// Status is what the answer's code must be among. Body must be met by the
	// body's first bytes, at most Body.Limit of them, all of which are awaited.
	Status StatusRanges
	Body   Expect

	// Redirects is how many of them are followed, within the same timeout: on
	// the same host at the address that was asked, elsewhere as they are written.
	// By default none is: its code is judged like any other.
	Redirects int

	TLS TLSConfig // for https
	Via Via
}

// HTTP is a probe that makes one HTTP/1.1 request over a connection of its own.
// It is made by NewHTTP.
type HTTP struct {
	cfg    HTTPConfig
	url    *url.URL // nil: the target is asked for cfg.Path
	header string   // the lines of cfg.Header
}

// NewHTTP makes an HTTP probe.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	p := &HTTP{cfg: cfg}
	if p.cfg.Method == "" {
		p.cfg.Method = http.MethodGet
	}
	if p.cfg.Scheme == "" {
		p.cfg.Scheme = "http"
	}
	if err := p.prepare(); err != nil {
		return nil, fmt.Errorf("http probe: %w", err)
	}
	return p, nil
}

func (p *HTTP) prepare() error {
	c := &p.cfg
	switch {
	case (c.Path == "") == (c.URL == ""):
		return errors.New("one of path and url is required, and not both")
	case c.URL != "" && (c.Address.IsValid() || c.Port != 0 || c.Host != ""):
		return errors.New("address, port and host go with path; a url says them itself")
	case c.Scheme != "http" && c.Scheme != "https":
		return fmt.Errorf("scheme is %q, want http or https", c.Scheme)
	case !token(c.Method):
		return fmt.Errorf("method %q is not a token", c.Method)
	case !visible(c.Host):
		return fmt.Errorf("host %q has spaces or control characters", c.Host)
	case c.Redirects < 0:
		return fmt.Errorf("redirects is %d, want 0 or more", c.Redirects)
	}
	if c.URL != "" {
		u, err := absolute(c.URL)
		if err != nil {
			return err
		}
		p.url = u
	} else if _, err := url.ParseRequestURI(c.Path); err != nil || c.Path[0] != '/' || strings.HasPrefix(c.Path, "//") ||
		!visible(c.Path) || strings.Contains(c.Path, "#") {
		return fmt.Errorf("path is %q, want one slash and what a URL may have after it", c.Path)
	}
	var lines strings.Builder
	for name, values := range c.Header {
		if !token(name) || ownHeaders[http.CanonicalHeaderKey(name)] {
			return fmt.Errorf("header %q may not be set", name)
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return fmt.Errorf("header %s: %q has control characters", name, v)
			}
			lines.WriteString(name + ": " + v + "\r\n")
		}
	}
	p.header = lines.String()
	return c.Via.validate()
}

// ownHeaders are those that would change where a request goes, or ends.
var ownHeaders = map[string]bool{
	"Host": true, "Connection": true, "Content-Length": true, "Transfer-Encoding": true,
	"Upgrade": true, "Te": true, "Trailer": true, "Expect": true,
}

const userAgent = "ipvskit-healthcheck"

func absolute(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("url: %w", err)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("url %q: scheme is %q, want http or https", raw, u.Scheme)
	case u.Hostname() == "" || u.User != nil || !visible(u.Host):
		return nil, fmt.Errorf("url %q: want a host, and no user", raw)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("url %q: port is %q, want 1 to 65535", raw, port)
		}
	}
	return u, nil
}

// exchange is one request to one place.
type exchange struct {
	method  string
	foreign bool // another host than the one that was to be asked
	scheme  string
	numeric netip.AddrPort // is dialled, unless named is set
	named   string         // host:port that is resolved and dialled
	host    string         // Host header
	name    string         // that the certificate must have
	uri     string
}

func (x exchange) String() string { return x.method + " " + x.scheme + "://" + x.host + x.uri }

func (p *HTTP) first(target netip.AddrPort) exchange {
	if p.url != nil {
		x := toURL(p.url)
		x.method = p.cfg.Method
		return x
	}
	target = at(target, p.cfg.Address, p.cfg.Port)
	x := exchange{
		method: p.cfg.Method, scheme: p.cfg.Scheme,
		numeric: target, host: p.cfg.Host, uri: p.cfg.Path,
	}
	if x.host == "" {
		// A zone is this host's own business (RFC 6874, section 4).
		x.host = netip.AddrPortFrom(target.Addr().WithZone(""), target.Port()).String()
	}
	x.name = x.host
	if h, _, err := net.SplitHostPort(x.host); err == nil {
		x.name = h
	}
	return x
}

func toURL(u *url.URL) exchange {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	x := exchange{scheme: u.Scheme, host: u.Host, name: u.Hostname(), uri: u.RequestURI()}
	address := net.JoinHostPort(u.Hostname(), port)
	if numeric, err := netip.ParseAddrPort(address); err == nil {
		x.numeric = numeric
	} else {
		x.named = address
	}
	return x
}

// to is the exchange that a redirect with this code leads to.
func (x exchange) to(code int, location string) (exchange, error) {
	base, err := absolute(x.scheme + "://" + x.host + x.uri)
	if err != nil {
		return exchange{}, err
	}
	u, err := base.Parse(location)
	if err == nil {
		u, err = absolute(u.String())
	}
	if err != nil {
		return exchange{}, err
	}
	next := toURL(u)
	if next.scheme == x.scheme && next.host == x.host {
		next.numeric, next.named, next.name = x.numeric, x.named, x.name
	}
	// A name may be reached by several ports and still be one host, but who
	// answers there may be somebody else.
	next.foreign = x.foreign || next.host != x.host || next.scheme == "http" && x.scheme == "https"
	next.method = x.method
	if code == http.StatusSeeOther && x.method != http.MethodHead ||
		(code == http.StatusMovedPermanently || code == http.StatusFound) && x.method == http.MethodPost {
		next.method = http.MethodGet // RFC 9110, section 15.4
	}
	return next, nil
}

// request is what is sent for x.
func (p *HTTP) request(x exchange) string {
	var b strings.Builder
	b.Grow(128 + len(x.uri) + len(x.host) + len(p.header))
	b.WriteString(x.method + " " + x.uri + " HTTP/1.1\r\nHost: " + x.host + "\r\n")
	if !x.foreign {
		b.WriteString(p.header)
	}
	if x.foreign || p.cfg.Header.Get("User-Agent") == "" {
		b.WriteString("User-Agent: " + userAgent + "\r\n")
	}
	if x.foreign || p.cfg.Header.Get("Accept") == "" {
		b.WriteString("Accept: */*\r\n")
	}
	switch x.method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		b.WriteString("Content-Length: 0\r\n")
	}
	b.WriteString("Connection: close\r\n\r\n")
	return b.String()
}

// Probe makes one request, and more where redirects are followed.
func (p *HTTP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	x := p.first(target)
	for followed := 0; ; followed++ {
		res, code, location := p.ask(ctx, x)
		if location == "" {
			return res
		}
		next, err := x.to(code, location)
		if err != nil {
			return healthcheck.Result{Class: healthcheck.Protocol, Phase: phaseAnswer, Expected: x.String() + " to lead to a URL", Found: quote(err.Error())}
		}
		if followed == p.cfg.Redirects {
			return healthcheck.Result{
				Class: healthcheck.BadStatus, Phase: phaseAnswer,
				Expected: fmt.Sprintf("at most %d redirects", p.cfg.Redirects), Found: "one more, to " + quote(next.String()),
			}
		}
		x = next
	}
}

// ask makes one request and judges the answer, or says where it leads to.
func (p *HTTP) ask(ctx context.Context, x exchange) (res healthcheck.Result, code int, location string) {
	fail := func(phase string, err error) (healthcheck.Result, int, string) {
		return failed(ctx, phase, p.expected(x), err), 0, ""
	}
	conn, err := p.connect(ctx, x)
	if err != nil {
		return fail(phaseConnect, err)
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	var warning string
	if x.scheme == "https" {
		secure, err := p.cfg.TLS.handshake(ctx, conn, x.name)
		if err != nil {
			return fail(phaseTLS, err)
		}
		conn, warning = secure, p.cfg.TLS.warning(secure)
	}
	if _, err := io.WriteString(conn, p.request(x)); err != nil {
		return fail(phaseRequest, err)
	}
	res, code, location = p.judge(ctx, x, conn)
	if res.OK() {
		res.Warning = warning
	}
	return res, code, location
}

func (p *HTTP) expected(x exchange) string {
	return fmt.Sprintf("%s to give %s", x, p.cfg.Status)
}

// judge reads the answer to x.
func (p *HTTP) judge(ctx context.Context, x exchange, from io.Reader) (res healthcheck.Result, code int, location string) {
	in := readers.Get().(*reader)
	defer in.put()
	in.reset(from, headerLimit)
	answer, err := in.answer(x.method)
	if err != nil {
		return failed(ctx, phaseAnswer, p.expected(x), err), 0, ""
	}
	if p.cfg.Redirects > 0 && answer.StatusCode/100 == 3 && answer.Header.Get("Location") != "" {
		return healthcheck.Result{}, answer.StatusCode, answer.Header.Get("Location")
	}
	if !p.cfg.Status.Has(answer.StatusCode) {
		return healthcheck.Result{
			Class: healthcheck.BadStatus, Phase: phaseAnswer,
			Expected: p.expected(x), Found: quote(answer.Status), Advice: statusAdvice(answer.StatusCode),
		}, 0, ""
	}
	if p.cfg.Body.any() {
		return healthcheck.Result{}, 0, ""
	}
	limit := p.cfg.Body.limit()
	in.allow(framing*int64(limit) + headerLimit)
	body, err := io.ReadAll(io.LimitReader(answer.Body, int64(limit)+1))
	if err != nil {
		res := failed(ctx, phaseBody, p.cfg.Body.String()+" in the body of "+x.String(), err)
		res.Found += fmt.Sprintf(" (after %d bytes)", len(body))
		return res, 0, ""
	}
	cut := len(body) > limit
	if body = body[:min(len(body), limit)]; !p.cfg.Body.met(body) {
		res := p.cfg.Body.unmet(body, phaseBody, cut)
		res.Expected += " in the body of " + x.String()
		return res, 0, ""
	}
	return healthcheck.Result{}, 0, ""
}

func (p *HTTP) connect(ctx context.Context, x exchange) (net.Conn, error) {
	if x.named != "" {
		return p.cfg.Via.named(ctx, "tcp", x.named)
	}
	conn, err := p.cfg.Via.tcp(ctx, x.numeric, false)
	if err != nil {
		return nil, err // not a nil *TCPConn in an interface
	}
	return conn, nil
}

func statusAdvice(code int) string {
	switch {
	case code/100 == 3:
		return "redirects are not followed: check the final URL, or allow redirects"
	case code == http.StatusBadRequest, code == http.StatusNotFound, code == http.StatusMisdirectedRequest:
		return "check the path and the Host header of the check"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return "let this host ask without a login, or expect this status"
	default:
		return ""
	}
}

var (
	errHeaderSize = fmt.Errorf("more than %d bytes of headers, or of framing around the body", headerLimit)
	errInterim    = fmt.Errorf("more than %d interim answers", interimLimit)
)

var readers = sync.Pool{New: func() any {
	r := new(reader)
	r.buf = bufio.NewReaderSize(r, 2048)
	return r
}}

// reader reads an answer within bounds.
type reader struct {
	buf  *bufio.Reader
	from io.Reader
	left int64
	err  error // that ended the reading
}

func (r *reader) reset(from io.Reader, limit int64) {
	r.from, r.left, r.err = from, limit, nil
	r.buf.Reset(r)
}

func (r *reader) put() {
	r.reset(nil, 0)
	readers.Put(r)
}

func (r *reader) allow(limit int64) { r.left = limit }

func (r *reader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		r.err = errHeaderSize
		return 0, r.err
	}
	n, err := r.from.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.err = err
	return n, err
}

// answer reads up to the end of the headers of the final answer. Its body need
// not be closed, which would read to its end: the connection is.
func (r *reader) answer(method string) (*http.Response, error) {
	for range interimLimit + 1 {
		answer, err := http.ReadResponse(r.buf, &http.Request{Method: method})
		switch {
		case err != nil && r.err != nil:
			return nil, r.err // a line that was cut off is not malformed
		case err != nil:
			return nil, err
		}
		if answer.StatusCode/100 != 1 || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer, nil
		}
	}
	return nil, errInterim
}

// token is RFC 9110's: names of methods and headers.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
}

func visible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
