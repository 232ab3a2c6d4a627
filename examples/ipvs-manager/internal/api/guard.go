package api

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Guard protects next from what a browser can be made to do by a foreign page:
//
//   - DNS rebinding: the Host must be an IP address, localhost or one of names.
//     A rebound name is the attacker's own, so it is none of these.
//   - Cross-site requests: an unsafe method from another origin is refused.
//
// It also sets the headers that keep answers from being framed, sniffed or
// embedded elsewhere. Programs other than browsers notice none of it.
func Guard(names []string, next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(&problem{
			Type: typeForeign, Status: http.StatusForbidden,
			Detail: "this request was started by a page of another origin, which may not change anything here",
		}).send(w, r)
	}))
	next = crossOrigin.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if !knownHost(r.Host, names) {
			(&problem{
				Type: typeForeign, Status: http.StatusMisdirectedRequest,
				Detail: "the name " + r.Host + " is not known to be this server's; use its IP address, or start it with --http_names and that name",
			}).send(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func knownHost(hostport string, names []string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil && port != "" {
		return false
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost") || slices.ContainsFunc(names, func(n string) bool {
		return strings.EqualFold(host, strings.TrimSuffix(n, "."))
	})
}
