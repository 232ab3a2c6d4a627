package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// HTTPConfig says how an HTTP probe asks. Either Path or URL is required.
type HTTPConfig struct {
	// Path, with a query if it has one, is asked of the target itself. Address
	// and Port replace the target's, where they are set. Host is the Host header
	// and, for https, the name that the certificate must have; by default both
	// are the address that is dialed. Scheme is http (default) or https.
	Path    string
	Address netip.Addr
	Port    uint16
	Host    string
	Scheme  string

	// URL is absolute, and dialed as written; the target is not looked at.
	URL string

	// Version is 1.1 (default), 2, or auto, which for https takes what the server
	// chooses. HTTP/2 is negotiated for https, and taken for granted for http.
	Version string

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

// HTTP is a probe that makes one request over a connection of its own. It is
// made by NewHTTP.
type HTTP struct {
	cfg    HTTPConfig
	url    *url.URL            // nil: the target is asked for cfg.Path
	header []hpack.HeaderField // cfg.Header, with names in lower case
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
	if p.cfg.Version == "" {
		p.cfg.Version = "1.1"
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
	case c.Version != "1.1" && c.Version != "2" && c.Version != "auto":
		return fmt.Errorf("version is %q, want 1.1, 2 or auto", c.Version)
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
	for _, name := range slices.Sorted(maps.Keys(c.Header)) {
		if !token(name) || ownHeaders[http.CanonicalHeaderKey(name)] {
			return fmt.Errorf("header %q may not be set", name)
		}
		for _, v := range c.Header[name] {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return fmt.Errorf("header %s: %q has control characters", name, v)
			}
			p.header = append(p.header, hpack.HeaderField{Name: strings.ToLower(name), Value: v})
		}
	}
	switch c.Version {
	case "2":
		c.TLS.protocols = []string{alpnH2}
	case "auto":
		c.TLS.protocols = []string{alpnH2, "http/1.1"}
	}
	return c.Via.validate()
}

// ownHeaders are those that would change where a request goes, or ends.
var ownHeaders = map[string]bool{
	"Host": true, "Connection": true, "Content-Length": true, "Transfer-Encoding": true,
	"Upgrade": true, "Te": true, "Trailer": true, "Expect": true,
}

const (
	userAgent = "ipvskit-healthcheck"
	alpnH2    = "h2"
)

// first is what target is asked.
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
		x.host = hostPort(target)
	}
	x.name = hostname(x.host)
	return x
}

// fields are the header fields that go with x, those that frame it aside.
func (p *HTTP) fields(x exchange) []hpack.HeaderField {
	var fields []hpack.HeaderField
	if !x.foreign {
		fields = slices.Clone(p.header)
	}
	for _, std := range []hpack.HeaderField{{Name: "user-agent", Value: userAgent}, {Name: "accept", Value: "*/*"}} {
		if fieldOf(fields, std.Name) == "" {
			fields = append(fields, std)
		}
	}
	switch x.method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		fields = append(fields, hpack.HeaderField{Name: "content-length", Value: "0"})
	}
	return fields
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
	h2 := p.cfg.Version == "2"
	if x.scheme == "https" {
		secure, err := p.cfg.TLS.handshake(ctx, conn, x.name)
		if err != nil {
			return fail(phaseTLS, err)
		}
		chosen := secure.ConnectionState().NegotiatedProtocol
		if h2 && chosen != alpnH2 {
			return fail(phaseTLS, fmt.Errorf("the server chooses %q by ALPN, not h2", quote(chosen)))
		}
		h2 = chosen == alpnH2
		conn, warning = secure, p.cfg.TLS.warning(secure)
	}
	if h2 {
		res, code, location = p.ask2(ctx, x, conn)
	} else {
		res, code, location = p.ask1(ctx, x, conn)
	}
	if res.OK() {
		res.Warning = warning
	}
	return res, code, location
}

func (p *HTTP) expected(x exchange) string {
	return fmt.Sprintf("%s to give %s", x, p.cfg.Status)
}

// answer is one by either version of HTTP.
type answer struct {
	code     int
	status   string // for people
	location string
	read     func(limit int) ([]byte, error) // up to one byte more than limit
}

// judge says what to make of the answer to x.
func (p *HTTP) judge(ctx context.Context, x exchange, a answer) (res healthcheck.Result, code int, location string) {
	if p.cfg.Redirects > 0 && a.code/100 == 3 && a.location != "" {
		return healthcheck.Result{}, a.code, a.location
	}
	if !p.cfg.Status.Has(a.code) {
		return healthcheck.Result{
			Class: healthcheck.BadStatus, Phase: phaseAnswer,
			Expected: p.expected(x), Found: quote(a.status), Advice: statusAdvice(a.code),
		}, 0, ""
	}
	if p.cfg.Body.any() {
		return healthcheck.Result{}, 0, ""
	}
	limit := p.cfg.Body.limit()
	body, err := a.read(limit)
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
		return p.cfg.Via.named(ctx, x.named)
	}
	return p.cfg.Via.connect(ctx, x.numeric)
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

// token is RFC 9110's: names of methods and headers.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
}

func visible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
