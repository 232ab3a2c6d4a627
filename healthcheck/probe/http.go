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

	Method string      // default GET
	Header http.Header // added to the request; a Host in it is refused

	// Status is what the answer's code must be among. Body must be met by the
	// body's first bytes, at most Body.Limit of them, all of which are awaited.
	Status StatusRanges
	Body   Expect

	// Redirects is how many of them are followed, within the same timeout. By
	// default none is: its code is judged like any other.
	Redirects int

	TLS TLSConfig // for https
	Via Via
}

// HTTP is a probe that makes one HTTP/1.1 request over a connection of its own.
// It is made by NewHTTP.
type HTTP struct {
	cfg  HTTPConfig
	url  *url.URL // nil: the target is asked for cfg.Path
	tail string   // of the request, from the end of the Host line on
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
	} else if u, err := url.ParseRequestURI(c.Path); err != nil || !strings.HasPrefix(c.Path, "/") || u.Host != "" {
		return fmt.Errorf("path is %q, want one that begins with one slash", c.Path)
	}
	var tail strings.Builder
	tail.WriteString("\r\n")
	for name, values := range c.Header {
		if !token(name) || strings.EqualFold(name, "Host") || strings.EqualFold(name, "Connection") {
			return fmt.Errorf("header %q may not be set", name)
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return fmt.Errorf("header %s: %q has control characters", name, v)
			}
			tail.WriteString(name + ": " + v + "\r\n")
		}
	}
	if c.Header.Get("User-Agent") == "" {
		tail.WriteString("User-Agent: ipvskit-healthcheck\r\n")
	}
	tail.WriteString("Accept: */*\r\nConnection: close\r\n\r\n")
	p.tail = tail.String()
	return c.Via.validate()
}

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
	scheme  string
	address string         // host:port that is dialled
	numeric netip.AddrPort // the same, where it is numeric
	host    string         // Host header
	name    string         // that the certificate must have
	uri     string
}

func (x exchange) String() string { return x.scheme + "://" + x.host + x.uri }

func (p *HTTP) first(target netip.AddrPort) exchange {
	if p.url != nil {
		return toURL(p.url)
	}
	target = at(target, p.cfg.Address, p.cfg.Port)
	x := exchange{scheme: p.cfg.Scheme, address: target.String(), numeric: target, host: p.cfg.Host, uri: p.cfg.Path}
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
	x := exchange{
		scheme: u.Scheme, address: net.JoinHostPort(u.Hostname(), port),
		host: u.Host, name: u.Hostname(), uri: u.RequestURI(),
	}
	if numeric, err := netip.ParseAddrPort(x.address); err == nil {
		x.numeric = numeric
	}
	return x
}

// Probe makes one request, and more where redirects are followed.
func (p *HTTP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	x := p.first(target)
	for followed := 0; ; followed++ {
		res, location := p.ask(ctx, x)
		if location == "" {
			return res
		}
		where := p.cfg.Method + " " + x.String()
		base := &url.URL{Scheme: x.scheme, Host: x.host, Path: "/"}
		if ref, err := url.ParseRequestURI(x.uri); err == nil {
			base.Path, base.RawQuery = ref.Path, ref.RawQuery
		}
		next, err := base.Parse(location)
		if err == nil {
			next, err = absolute(next.String())
		}
		if err != nil {
			return healthcheck.Result{Class: healthcheck.Protocol, Phase: phaseAnswer, Expected: where + " to lead to a URL", Found: quote(err.Error())}
		}
		if followed == p.cfg.Redirects {
			return healthcheck.Result{
				Class: healthcheck.BadStatus, Phase: phaseAnswer,
				Expected: fmt.Sprintf("at most %d redirects", p.cfg.Redirects), Found: "one more, to " + quote(next.String()),
			}
		}
		x = toURL(next)
	}
}

// ask makes one request and judges the answer, or gives the location that it
// leads to.
func (p *HTTP) ask(ctx context.Context, x exchange) (res healthcheck.Result, location string) {
	where := p.cfg.Method + " " + x.String()
	fail := func(phase string, err error) (healthcheck.Result, string) {
		return failed(ctx, phase, fmt.Sprintf("%s to give %s", where, p.cfg.Status), err), ""
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
	if _, err := io.WriteString(conn, p.cfg.Method+" "+x.uri+" HTTP/1.1\r\nHost: "+x.host+p.tail); err != nil {
		return fail(phaseRequest, err)
	}

	in := readers.Get().(*reader)
	defer in.put()
	in.reset(conn, headerLimit)
	answer, err := in.answer(p.cfg.Method)
	if err != nil {
		return fail(phaseAnswer, err)
	}
	defer answer.Body.Close()
	if p.cfg.Redirects > 0 && answer.StatusCode/100 == 3 && answer.Header.Get("Location") != "" {
		return healthcheck.Result{}, answer.Header.Get("Location")
	}
	if !p.cfg.Status.Has(answer.StatusCode) {
		return healthcheck.Result{
			Class: healthcheck.BadStatus, Phase: phaseAnswer,
			Expected: fmt.Sprintf("%s to give %s", where, p.cfg.Status), Found: quote(answer.Status), Advice: statusAdvice(answer),
		}, ""
	}
	if p.cfg.Body.any() {
		return healthcheck.Result{Warning: warning}, ""
	}
	// Chunked framing may take as much again as the body itself.
	limit := p.cfg.Body.limit()
	in.allow(2*int64(limit) + headerLimit)
	body, err := io.ReadAll(io.LimitReader(answer.Body, int64(limit)+1))
	if err != nil {
		res := failed(ctx, phaseBody, p.cfg.Body.String()+" in the body of "+where, err)
		res.Found += fmt.Sprintf(" (after %d bytes)", len(body))
		return res, ""
	}
	cut := len(body) > limit
	if body = body[:min(len(body), limit)]; !p.cfg.Body.met(body) {
		res := p.cfg.Body.unmet(body, phaseBody, cut)
		res.Expected += " in the body of " + where
		return res, ""
	}
	return healthcheck.Result{Warning: warning}, ""
}

func (p *HTTP) connect(ctx context.Context, x exchange) (net.Conn, error) {
	if x.numeric.IsValid() {
		conn, err := p.cfg.Via.tcp(ctx, x.numeric, false)
		if err != nil {
			return nil, err // not a nil *TCPConn in an interface
		}
		return conn, nil
	}
	return p.cfg.Via.named(ctx, "tcp", x.address)
}

func statusAdvice(answer *http.Response) string {
	switch {
	case answer.StatusCode/100 == 3:
		return "redirects are not followed: check the final URL, or allow redirects"
	case answer.StatusCode == http.StatusBadRequest, answer.StatusCode == http.StatusNotFound, answer.StatusCode == http.StatusMisdirectedRequest:
		return "check the path and the Host header of the check"
	case answer.StatusCode == http.StatusUnauthorized, answer.StatusCode == http.StatusForbidden:
		return "let this host ask without a login, or expect this status"
	default:
		return ""
	}
}

var (
	errHeaderSize = fmt.Errorf("more than %d bytes of headers", headerLimit)
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
}

func (r *reader) reset(from io.Reader, limit int64) {
	r.from, r.left = from, limit
	r.buf.Reset(r)
}

func (r *reader) put() {
	r.reset(nil, 0)
	readers.Put(r)
}

func (r *reader) allow(limit int64) { r.left = limit }

func (r *reader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errHeaderSize
	}
	n, err := r.from.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// answer reads up to the end of the headers of the final answer.
func (r *reader) answer(method string) (*http.Response, error) {
	for range interimLimit + 1 {
		answer, err := http.ReadResponse(r.buf, &http.Request{Method: method})
		if err != nil {
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
