package api

import (
	"net"
	"net/http"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// author says who asks: the caller, if it is known by name; else the role and
// name in the certificate that was shown, which was checked when the connection
// was made; otherwise the address that the request came from.
func author(r *http.Request) string {
	if c := CallerOf(r); c.Author != "" {
		return c.Author
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if id, err := identity.Of(r.TLS.PeerCertificates[0]); err == nil {
			return string(id.Role) + " " + id.Name[:min(len(id.Name), 240)] // what lbstate takes
		}
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}
