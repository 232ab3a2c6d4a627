package probe

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
)

// exchange is one request to one place.
type exchange struct {
	method  string
	foreign bool // another host than the one that was to be asked
	scheme  string
	numeric netip.AddrPort // is dialed, unless named is set
	named   string         // host:port that is resolved and dialed
	host    string         // Host header
	name    string         // that the certificate must have
	uri     string
}

// String is for people: a redirect may have led to a URL of any length.
func (x exchange) String() string { return quote(x.method) + " " + quote(x.scheme+"://"+x.host+x.uri) }

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

// absolute reads a URL that may be asked.
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
