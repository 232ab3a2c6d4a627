package api

import (
	"cmp"
	"net/http"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
)

// tokenLifetime is that of a token whose end nobody has named.
const tokenLifetime = 90 * 24 * time.Hour

// shownUser is a user as it is shown: without the hash of its password.
type shownUser struct {
	accessdata.User
	HasPassword bool `json:"has_password"`
}

func showUser(u accessdata.User) shownUser {
	return shownUser{u, u.PasswordHash != nil && *u.PasswordHash != ""}
}

// accessOptions are writeOptions for access data, where each write has the same
// effect however often it is made, or makes a new secret.
func accessOptions(r *http.Request) (accessdata.WriteOptions, access, *problem) {
	o, kind, p := writeOptions(r)
	if p == nil && o.Key != "" {
		p = refused(http.StatusBadRequest, "Idempotency-Key is not taken here: use If-Match, or look before trying again")
	}
	return accessdata.WriteOptions{Author: o.Author, Reason: o.Reason, IfRevision: o.IfRevision}, kind, p
}

// writeAccess reads a body into in, and answers what write makes of it. The
// request is write's own: its URL is where what was made can be found.
func writeAccess[T any](a *API, write func(r *http.Request, in T, o accessdata.WriteOptions) (lbstate.WriteResult, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		o, kind, p := readAccess(w, r, &in)
		if p != nil {
			p.send(w, r)
			return
		}
		ctx, cancel := a.bounded(r)
		defer cancel()
		r = r.WithContext(ctx)
		res, err := write(r, in, o)
		a.wrote(w, r, kind, res, err)
	}
}

func readAccess(w http.ResponseWriter, r *http.Request, into any) (o accessdata.WriteOptions, kind access, p *problem) {
	body, p := readBody(w, r)
	if p == nil {
		o, kind, p = accessOptions(r)
	}
	if p == nil {
		p = decode(body, into)
	}
	return o, kind, p
}

// deleteAccess removes the object that a request's path names.
func (a *API) deleteAccess(ref func(*http.Request) lbstate.Ref) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, kind, p := accessOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		ctx, cancel := a.bounded(r)
		defer cancel()
		res, err := a.cfg.Access.Delete(ctx, ref(r), o)
		a.wrote(w, r, kind, res, err)
	}
}

// readsAccess answers with what get returns.
func readsAccess[T any](a *API, get func(*http.Request, lbstate.ReadOptions) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, p := readOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		ctx, cancel := a.bounded(r)
		defer cancel()
		v, err := get(r.WithContext(ctx), o)
		if err != nil {
			a.failed(err, read).send(w, r)
			return
		}
		send(w, r, http.StatusOK, v)
	}
}

func (a *API) accessPaths() map[string]methods {
	const get, put, post, del = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
	st := a.cfg.Access
	user := func(r *http.Request) lbstate.Ref { return accessdata.User{Name: r.PathValue("name")}.Ref() }
	token := func(r *http.Request) lbstate.Ref { return accessdata.Token{ID: r.PathValue("id")}.Ref() }
	agent := func(r *http.Request) lbstate.Ref {
		return accessdata.Credential{Role: "agent", Name: r.PathValue("name")}.Ref()
	}
	revocation := func(r *http.Request) lbstate.Ref {
		name := r.PathValue("name")
		if r.PathValue("kind") == "serial" {
			name = accessdata.PlainSerial(name)
		}
		return accessdata.Revocation{Kind: r.PathValue("kind"), Name: name}.Ref()
	}
	return map[string]methods{
		"/api/v1/access/self": {get: self},
		"/api/v1/access/users": {get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (map[string][]shownUser, error) {
			users, err := st.Users(r.Context(), o)
			list := []shownUser{}
			for _, u := range users {
				list = append(list, showUser(u))
			}
			return map[string][]shownUser{"users": list}, err
		})},
		"/api/v1/access/users/{name}": {
			get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (shownUser, error) {
				u, err := st.User(r.Context(), r.PathValue("name"), o)
				return showUser(u), err
			}),
			put: writeAccess(a, a.putUser), del: a.deleteAccess(user),
		},
		"/api/v1/access/tokens": {
			get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (map[string][]accessdata.Token, error) {
				tokens, err := st.Tokens(r.Context(), o)
				return map[string][]accessdata.Token{"tokens": tokens}, err
			}),
			post: a.createToken,
		},
		"/api/v1/access/tokens/{id}": {del: a.deleteAccess(token)},
		"/api/v1/access/revocations": {
			get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (map[string][]accessdata.Revocation, error) {
				revocations, err := st.Revocations(r.Context(), o)
				return map[string][]accessdata.Revocation{"revocations": revocations}, err
			}),
			post: writeAccess(a, a.revoke),
		},
		"/api/v1/access/revocations/{kind}/{name}": {del: a.deleteAccess(revocation)},
		"/api/v1/access/credentials": {get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (map[string][]accessdata.Credential, error) {
			credentials, err := st.Credentials(r.Context(), o)
			return map[string][]accessdata.Credential{"credentials": credentials}, err
		})},
		"/api/v1/access/credentials/{name}": {
			get: readsAccess(a, func(r *http.Request, o lbstate.ReadOptions) (accessdata.Credential, error) {
				return st.Credential(r.Context(), "agent", r.PathValue("name"), o)
			}),
			put: writeAccess(a, a.putCredential), del: a.deleteAccess(agent),
		},
		"/api/v1/access/history": {get: a.accessHistory},
	}
}

// self says who asks, for programs that want to know what they may do.
func self(w http.ResponseWriter, r *http.Request) {
	send(w, r, http.StatusOK, map[string]string{"name": author(r), "role": string(CallerOf(r).Role)})
}

type userBody struct {
	Name         string          `json:"name"`
	Role         accessdata.Role `json:"role"`
	Disabled     bool            `json:"disabled"`
	Note         string          `json:"note"`
	PasswordHash *string         `json:"password_hash"` // missing: as it is; empty: none
}

func renamed(kind, found, allowed string) error {
	return &lbstate.ValidationError{Faults: []lbstate.Fault{{Path: "name", Found: found, Allowed: allowed, Reason: "is not the name in the path; a " + kind + " cannot be renamed"}}}
}

func (a *API) putUser(r *http.Request, in userBody, o accessdata.WriteOptions) (lbstate.WriteResult, error) {
	name := r.PathValue("name")
	if cmp.Or(in.Name, name) != name {
		return lbstate.WriteResult{}, renamed("user", in.Name, name)
	}
	return a.cfg.Access.PutUser(r.Context(), accessdata.User{Name: name, Role: in.Role, Disabled: in.Disabled, Note: in.Note, PasswordHash: in.PasswordHash}, o)
}

type revocationBody struct {
	Kind   string    `json:"kind"`
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

func (a *API) revoke(r *http.Request, in revocationBody, o accessdata.WriteOptions) (lbstate.WriteResult, error) {
	o.Reason = cmp.Or(o.Reason, in.Reason)
	if !in.Until.IsZero() && !in.Until.After(time.Now()) {
		return lbstate.WriteResult{}, past("until", in.Until)
	}
	if in.Kind == "serial" {
		in.Name = accessdata.PlainSerial(in.Name)
	}
	r.URL = r.URL.JoinPath(in.Kind, in.Name)
	return a.cfg.Access.Revoke(r.Context(), accessdata.Revocation{Kind: in.Kind, Name: in.Name, Reason: in.Reason, Until: in.Until}, o)
}

func past(path string, t time.Time) error {
	return &lbstate.ValidationError{Faults: []lbstate.Fault{{
		Path: path, Found: t.Format(time.RFC3339), Allowed: "after " + time.Now().UTC().Format(time.RFC3339), Reason: "is over already by this server's clock",
	}}}
}

type credentialBody struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"` // missing: those of the certificate
	Note   string            `json:"note"`
}

func (a *API) putCredential(r *http.Request, in credentialBody, o accessdata.WriteOptions) (lbstate.WriteResult, error) {
	name := r.PathValue("name")
	if cmp.Or(in.Name, name) != name {
		return lbstate.WriteResult{}, renamed("credential", in.Name, name)
	}
	return a.cfg.Access.PutCredential(r.Context(), accessdata.Credential{Role: "agent", Name: name, Labels: in.Labels, Note: in.Note}, o)
}

type tokenBody struct {
	User    string          `json:"user"`
	Role    accessdata.Role `json:"role"` // missing: the user's
	Expires time.Time       `json:"expires"`
	Note    string          `json:"note"`
}

// createToken makes a token, and answers its secret this once.
func (a *API) createToken(w http.ResponseWriter, r *http.Request) {
	var in tokenBody
	o, kind, p := readAccess(w, r, &in)
	if p == nil && kind == conditional {
		p = refused(http.StatusBadRequest, "If-Match and If-None-Match are not taken here: each token is a new one")
	}
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	if in.Role == "" && in.User != "" {
		u, err := a.cfg.Access.User(ctx, in.User, lbstate.ReadOptions{})
		if err != nil {
			a.failed(err, read).send(w, r)
			return
		}
		in.Role = u.Role
	}
	switch {
	case in.Expires.IsZero():
		in.Expires = time.Now().Add(tokenLifetime)
	case !in.Expires.After(time.Now()):
		a.failed(past("expires", in.Expires), write).send(w, r)
		return
	}
	secret, made, err := a.cfg.Access.CreateToken(ctx, accessdata.Token{User: in.User, Role: in.Role, Expires: in.Expires, Note: in.Note}, o)
	if err != nil {
		a.failed(err, write).send(w, r)
		return
	}
	w.Header().Set("Location", "/api/v1/access/tokens/"+made.ID)
	send(w, r, http.StatusCreated, struct {
		Secret string `json:"secret"`
		accessdata.Token
	}{secret, made})
}

type accessHistoryList struct {
	History []accessdata.Entry `json:"history"`        // newest first
	Next    uint64             `json:"next,omitempty"` // ?before= of what follows; 0: there is no more
}

// accessHistory lists who changed access, when and why.
func (a *API) accessHistory(w http.ResponseWriter, r *http.Request) {
	h, p := historyOptions(r)
	if p == nil && r.URL.Query().Has("object") {
		p = refused(http.StatusBadRequest, "object is not taken here; allowed: before, limit, stale")
	}
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	entries, err := a.cfg.Access.History(ctx, accessdata.HistoryOptions{ReadOptions: h.ReadOptions, Before: h.Before, Limit: h.Limit + 1})
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	list := accessHistoryList{History: entries}
	if len(entries) > h.Limit {
		list.History = entries[:h.Limit]
		list.Next = list.History[h.Limit-1].Revision
	}
	send(w, r, http.StatusOK, list)
}
