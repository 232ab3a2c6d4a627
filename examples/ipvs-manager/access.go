package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/api"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// gate finds out who makes each request of the HTTP port: by a token, else by
// the certificate of an operator or a server, else, on a server without
// certificates, nobody asks and everyone may do all. Only servers get into what
// servers ask of each other; probes of health need nothing. A request that
// lasts, as a watch does, ends when what let it in no longer holds.
type gate struct {
	source *identity.Source // nil: no certificates
	state  *accessdata.State
	store  *accessdata.Store
	bad    *throttle // tokens that are not accepted
	next   http.Handler
	log    *zap.Logger
	caught atomic.Bool // up, since the start

	mu   sync.Mutex // guards live
	live map[*http.Request]standing
}

// standing is what keeps a request going.
type standing struct {
	cancel  context.CancelFunc
	allowed func() error // called with mu held
}

// admission is who makes a request, and what says later whether that holds.
type admission struct {
	caller  api.Caller
	shown   string // what the caller came with, for people; empty: nothing
	server  bool   // by certificate
	allowed func() error
}

// refusal is why a request is not let in.
type refusal struct {
	status int
	why    string
}

// newGate puts a gate before next. source may be nil.
func newGate(source *identity.Source, state *accessdata.State, store *accessdata.Store, next http.Handler, log *zap.Logger) *gate {
	return &gate{
		source: source, state: state, store: store, bad: newThrottle(time.Now), next: next, log: log.Named("access"),
		live: map[*http.Request]standing{},
	}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
		g.next.ServeHTTP(w, r)
		return
	}
	behind := !g.caught.Load() // before the caller is judged, which is by what this node knows
	who, no := g.admit(r)
	if no == nil && strings.HasPrefix(r.URL.Path, "/raft/") && !who.server && g.source != nil {
		no = &refusal{http.StatusForbidden, "only servers ask this of each other, and " + who.shown}
	}
	if no == nil && behind && changes(r) && !who.server && who.shown != "" {
		if no = g.catchUp(r); no == nil {
			who, no = g.admit(r)
		}
	}
	if no != nil {
		deny(w, *no)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	r = api.As(r.WithContext(ctx), who.caller)
	g.mu.Lock()
	g.live[r] = standing{cancel, who.allowed}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.live, r)
		g.mu.Unlock()
	}()
	g.next.ServeHTTP(w, r)
}

func changes(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions
}

// catchUp keeps changes off a server that has just started and does not know
// yet who was revoked while it was down.
func (g *gate) catchUp(r *http.Request) *refusal {
	ctx, cancel := context.WithTimeout(r.Context(), catchUpTimeout)
	defer cancel()
	if err := g.store.Barrier(ctx); err != nil {
		return &refusal{http.StatusServiceUnavailable, "nothing was changed; try again: this server has not caught up since it started, so it cannot tell who was revoked meanwhile: " + err.Error()}
	}
	g.caught.Store(true)
	return nil
}

func (g *gate) admit(r *http.Request) (admission, *refusal) {
	if g.source != nil && r.TLS == nil {
		return admission{}, &refusal{http.StatusForbidden, "this port is served with TLS alone"}
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.byToken(r, strings.TrimSpace(secret))
	case g.source != nil:
		return g.byCertificate(r)
	}
	return admission{caller: api.Caller{Role: accessdata.Admin}, allowed: func() error { return nil }}, nil
}

const (
	catchUpTimeout = 5 * time.Second // for the cluster's answer
	// settled is how long a node may take to hear of a token that another knows.
	settled = 5 * time.Second
)

func (g *gate) byToken(r *http.Request, secret string) (admission, *refusal) {
	host := hostOf(r.RemoteAddr)
	counted := false
	count := func() error {
		counted = true
		return g.bad.take(host)
	}
	ctx, cancel := context.WithTimeout(r.Context(), catchUpTimeout)
	defer cancel()
	p, err := g.store.Authenticate(ctx, secret, count)
	if errors.Is(err, accessdata.ErrToken) && !counted {
		err = errors.Join(count(), err)
	}
	switch {
	case errors.Is(err, errTooOften):
		return admission{}, &refusal{http.StatusTooManyRequests, errTooOften.Error()}
	case errors.Is(err, accessdata.ErrToken):
		g.log.Warn("token refused", zap.String("remote", r.RemoteAddr), zap.Error(err))
		return admission{}, &refusal{http.StatusUnauthorized, err.Error()}
	case err != nil:
		return admission{}, &refusal{http.StatusServiceUnavailable, "whether the token is good cannot be told now: " + err.Error()}
	}
	hash, since := accessdata.HashOf(secret), time.Now()
	_, heard, _ := g.state.Token(hash, since)
	return admission{caller: api.Caller{Author: "user " + p.User, Role: p.Role}, shown: "the token is one of user " + p.User, allowed: func() error {
		now, known, err := g.state.Token(hash, time.Now())
		heard = heard || known // by this node: then unknown means deleted
		if !heard && time.Since(since) < settled {
			return nil
		}
		return errors.Join(err, lowered(p.Role, now.Role))
	}}, nil
}

func (g *gate) byCertificate(r *http.Request) (admission, *refusal) {
	id, err := g.source.Peer(*r.TLS)
	var refused *identity.Error
	switch {
	case errors.As(err, &refused) && refused.Reason == identity.NoCertificate:
		return admission{}, &refusal{http.StatusUnauthorized, "a token, or a certificate of an operator or a server of this cluster, is needed; ipvs-manager operator-cert makes one where the cluster's key is"}
	case err != nil:
		return admission{}, &refusal{http.StatusForbidden, err.Error()}
	case id.Role != identity.RoleOperator && id.Role != identity.RoleServer:
		return admission{}, &refusal{http.StatusForbidden, "an operator or a server may use this, and the certificate is that of " + id.String()}
	}
	if err := ended(r.TLS.PeerCertificates[0], id); err != nil {
		return admission{}, &refusal{http.StatusForbidden, err.Error()}
	}
	who := admission{
		shown:  "the certificate is that of " + id.String(),
		caller: api.Caller{Author: string(id.Role) + " " + id.Name[:min(len(id.Name), 240)], Role: accessdata.Admin}, // what the state takes
		server: id.Role == identity.RoleServer,
	}
	who.allowed = func() error {
		if err := errors.Join(g.source.Live(*r.TLS), ended(r.TLS.PeerCertificates[0], id)); err != nil {
			return err
		}
		now, err := g.roleOf(id)
		return errors.Join(err, lowered(who.caller.Role, now))
	}
	if who.caller.Role, err = g.roleOf(id); err != nil {
		return admission{}, &refusal{http.StatusForbidden, err.Error()}
	}
	return who, nil
}

// ended refuses an operator's certificate whose time is over: TLS looks at that
// when a connection is made, and a connection can be kept for as long as its
// client likes. Servers renew theirs, and what they keep up is their own.
func ended(cert *x509.Certificate, id identity.ID) error {
	if now := time.Now(); id.Role == identity.RoleOperator && now.After(cert.NotAfter) {
		return fmt.Errorf("the certificate of %v was valid until %s, and this host's clock says %s: make a new one with ipvs-manager operator-cert",
			id, cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// lowered is an error where a role no longer includes what it did.
func lowered(was, now accessdata.Role) error {
	if now.May(was) {
		return nil
	}
	return fmt.Errorf("the role is no longer %s", was)
}

// roleOf is what the holder of a certificate may do: a server all, and an
// operator too, unless there is a user of that name, whose role it has then.
func (g *gate) roleOf(id identity.ID) (accessdata.Role, error) {
	if id.Role != identity.RoleOperator {
		return accessdata.Admin, nil
	}
	u, ok := g.state.User(id.Name)
	switch {
	case !ok:
		return accessdata.Admin, nil
	case u.Disabled:
		return "", errors.New("user " + id.Name + " is disabled, and this operator's certificate with it")
	}
	return u.Role, nil
}

// recheck ends the requests that would not be let in any more.
func (g *gate) recheck() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.live {
		if s.allowed() != nil {
			s.cancel()
		}
	}
}

// deny answers as RFC 9457 has it; "error" is what servers read.
func deny(w http.ResponseWriter, no refusal) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	switch no.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="ipvs-manager"`)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", "2")
	}
	w.WriteHeader(no.status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "about:blank", "title": http.StatusText(no.status), "status": no.status, "detail": no.why, "error": no.why,
	})
}
