package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
)

// Caller is who makes a request, as whoever lets requests in has found out.
type Caller struct {
	Author string          // for the history; empty: the certificate that was shown, or the address
	Role   accessdata.Role // what the caller may do
}

type callerKey struct{}

// As returns the request as made by a caller. A request of nobody may ask for
// nothing but the process's health.
func As(r *http.Request, c Caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// CallerOf is who makes a request; the zero Caller is nobody.
func CallerOf(r *http.Request) Caller {
	c, _ := r.Context().Value(callerKey{}).(Caller)
	return c
}

// needs is the role that a request needs, by the pattern of its path: viewers
// read, operators change the configuration, admins change who may do what and
// the members. It is empty where nobody needs one.
func needs(pattern, method string) accessdata.Role {
	reads := method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
	switch {
	case pattern == "/healthz" || pattern == "/readyz":
		return ""
	case pattern == "/api/v1/access/self":
		return accessdata.Viewer
	case strings.HasPrefix(pattern, "/api/v1/access/"), pattern == "/api/v1/cluster/backup":
		return accessdata.Admin // a backup holds the hashes of passwords and tokens
	case reads, pattern == "/api/v1/plan", strings.HasPrefix(pattern, "/api/v1/import/"):
		return accessdata.Viewer // these two change nothing
	case strings.HasPrefix(pattern, "/api/v1/cluster"):
		return accessdata.Admin
	}
	return accessdata.Operator
}

// permitted lets in who has the role that a request needs.
func permitted(pattern string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		need, c := needs(pattern, r.Method), CallerOf(r)
		if need != "" && !c.Role.May(need) {
			has := "and nobody has said who asks"
			if c.Role != "" {
				has = fmt.Sprintf("and %s has the role %s", author(r), c.Role)
			}
			refused(http.StatusForbidden, fmt.Sprintf("this needs the role %s, %s", need, has)).send(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}
