package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// access lets only those into the HTTP port whose certificate says that they
// are a server or an operator, and only servers into what servers ask of each
// other. Probes of health need none. A request that lasts, as a watch does, ends
// when its certificate is revoked.
type access struct {
	source *identity.Source
	next   http.Handler

	mu   sync.Mutex // guards live
	live map[*http.Request]context.CancelFunc
}

func newAccess(source *identity.Source, next http.Handler) *access {
	return &access{source: source, next: next, live: map[*http.Request]context.CancelFunc{}}
}

func (a *access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
		a.next.ServeHTTP(w, r)
		return
	}
	if r.TLS == nil {
		deny(w, http.StatusForbidden, "this port is served with TLS alone")
		return
	}
	id, err := a.source.Peer(*r.TLS)
	var refused *identity.Error
	switch {
	case errors.As(err, &refused) && refused.Reason == identity.NoCertificate:
		deny(w, http.StatusUnauthorized, "a certificate of an operator or a server of this cluster is needed; ipvs-manager operator-cert makes one where the cluster's key is")
		return
	case err != nil:
		deny(w, http.StatusForbidden, err.Error())
		return
	case id.Role != identity.RoleOperator && id.Role != identity.RoleServer:
		deny(w, http.StatusForbidden, "an operator or a server may use this, and the certificate is that of "+id.String())
		return
	case strings.HasPrefix(r.URL.Path, "/raft/") && id.Role != identity.RoleServer:
		deny(w, http.StatusForbidden, "only servers ask this of each other, and the certificate is that of "+id.String())
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	r = r.WithContext(ctx)
	a.mu.Lock()
	a.live[r] = cancel
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.live, r)
		a.mu.Unlock()
	}()
	a.next.ServeHTTP(w, r)
}

// recheck ends the requests whose certificates were revoked.
func (a *access) recheck(allowed func(tls.ConnectionState) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r, cancel := range a.live {
		if allowed(*r.TLS) != nil {
			cancel()
		}
	}
}

// deny answers as RFC 9457 has it; "error" is what servers read.
func deny(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": why, "error": why,
	})
}
