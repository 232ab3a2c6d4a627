package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
)

// configurations are the services as they were written, which can be written
// again as they are.
type configurations struct {
	Revision uint64            `json:"revision"`
	Services []lbstate.Service `json:"services"`
}

type serviceList struct {
	Revision uint64                  `json:"revision"`
	Services []lbstate.ServiceStatus `json:"services"`
}

// backendView is a backend as its own path shows it. Its revision is that of
// its service, which is what a precondition compares.
type backendView struct {
	Service string `json:"service"`
	lbstate.BackendStatus
	Revision uint64 `json:"revision"`
	Version  uint64 `json:"version"`
}

func (a *API) listServices(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	o, p := readOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	config, p := asConfig(r)
	if p != nil {
		p.send(w, r)
		return
	}
	services, revision, err := a.cfg.Store.Services(ctx, o)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	if unmodified(w, r, strconv.FormatUint(revision, 10)) {
		return
	}
	if config {
		list := configurations{revision, make([]lbstate.Service, len(services))}
		for i, s := range services {
			list.Services[i] = s.Service
		}
		send(w, r, http.StatusOK, list)
		return
	}
	send(w, r, http.StatusOK, serviceList{revision, services})
}

func (a *API) getService(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	config, p := asConfig(r)
	if p != nil {
		p.send(w, r)
		return
	}
	s, p := a.service(ctx, r)
	if p != nil {
		p.send(w, r)
		return
	}
	if unmodified(w, r, tag(s)) {
		return
	}
	if config {
		send(w, r, http.StatusOK, s.Service)
		return
	}
	send(w, r, http.StatusOK, s)
}

// asConfig says whether ?view=config asks for what was written alone, without
// what the state makes of it.
func asConfig(r *http.Request) (bool, *problem) {
	switch view := r.URL.Query().Get("view"); view {
	case "", "status":
		return false, nil
	case "config":
		return true, nil
	default:
		return false, refused(http.StatusBadRequest, fmt.Sprintf("view is %q; allowed: status, config", view))
	}
}

func (a *API) putService(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	body, p := readBody(w, r)
	if p != nil {
		p.send(w, r)
		return
	}
	o, kind, p := writeOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	s, err := lbstate.DecodeService(body)
	if err != nil {
		a.failed(err, kind).send(w, r)
		return
	}
	name := r.PathValue("name")
	if s.Name == "" {
		s.Name = name
	}
	if s.Name != name {
		invalid(lbstate.Fault{Path: "name", Found: s.Name, Allowed: name, Reason: "is not the name in the path; a service cannot be renamed"}).send(w, r)
		return
	}
	res, err := a.cfg.Store.PutService(ctx, s, o)
	a.wrote(w, r, kind, res, err)
}

func (a *API) deleteService(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	o, kind, p := writeOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	res, err := a.cfg.Store.DeleteService(ctx, r.PathValue("name"), o)
	a.wrote(w, r, kind, res, err)
}

func (a *API) getBackend(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	key, p := backendKey(r)
	if p != nil {
		p.send(w, r)
		return
	}
	s, p := a.service(ctx, r)
	if p != nil {
		p.send(w, r)
		return
	}
	for _, b := range s.Backends {
		if b.AddrPort() == key {
			if !unmodified(w, r, tag(s)) {
				send(w, r, http.StatusOK, backendView{s.Name, b, s.Revision, s.Version})
			}
			return
		}
	}
	refused(http.StatusNotFound, fmt.Sprintf("service %s has no backend %s", s.Name, key)).send(w, r)
}

func (a *API) putBackend(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	key, p := backendKey(r)
	if p != nil {
		p.send(w, r)
		return
	}
	body, p := readBody(w, r)
	if p != nil {
		p.send(w, r)
		return
	}
	o, kind, p := writeOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	b, err := lbstate.DecodeBackend(body)
	if err != nil {
		a.failed(err, kind).send(w, r)
		return
	}
	var faults []lbstate.Fault
	if !b.Address.IsValid() {
		b.Address = key.Addr()
	}
	if b.Port == 0 {
		b.Port = int(key.Port())
	}
	if b.Address != key.Addr() {
		faults = append(faults, lbstate.Fault{Path: "address", Found: b.Address.String(), Allowed: key.Addr().String(), Reason: "is not the address in the path"})
	}
	if b.Port != int(key.Port()) {
		faults = append(faults, lbstate.Fault{Path: "port", Found: strconv.Itoa(b.Port), Allowed: strconv.Itoa(int(key.Port())), Reason: "is not the port in the path"})
	}
	if faults != nil {
		invalid(faults...).send(w, r)
		return
	}
	res, err := a.cfg.Store.PutBackend(ctx, r.PathValue("name"), b, o)
	a.wrote(w, r, kind, res, err)
}

func (a *API) deleteBackend(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	key, p := backendKey(r)
	if p != nil {
		p.send(w, r)
		return
	}
	o, kind, p := writeOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	res, err := a.cfg.Store.DeleteBackend(ctx, r.PathValue("name"), key, o)
	a.wrote(w, r, kind, res, err)
}

func (a *API) service(ctx context.Context, r *http.Request) (lbstate.ServiceStatus, *problem) {
	o, p := readOptions(r)
	if p != nil {
		return lbstate.ServiceStatus{}, p
	}
	s, err := a.cfg.Store.Service(ctx, r.PathValue("name"), o)
	if err != nil {
		return s, a.failed(err, read)
	}
	return s, nil
}

// wrote answers a write.
func (a *API) wrote(w http.ResponseWriter, r *http.Request, kind access, res lbstate.WriteResult, err error) {
	if err != nil {
		a.failed(err, kind).send(w, r)
		return
	}
	status := http.StatusOK
	switch res.Outcome {
	case lbstate.Created:
		status = http.StatusCreated
		w.Header().Set("Location", r.URL.EscapedPath())
	case lbstate.Deleted:
		send(w, r, status, res)
		return
	}
	w.Header().Set("ETag", quote(strconv.FormatUint(res.Revision, 10)))
	send(w, r, status, res)
}

func backendKey(r *http.Request) (netip.AddrPort, *problem) {
	text := r.PathValue("backend")
	key, err := netip.ParseAddrPort(text)
	if err != nil || key.Addr().Zone() != "" {
		return key, refused(http.StatusBadRequest, fmt.Sprintf("the path names backend %q; allowed: address:port, as in 10.1.0.1:8080 or [2001:db8::1]:8080", text))
	}
	return netip.AddrPortFrom(key.Addr().Unmap(), key.Port()), nil
}

func readOptions(r *http.Request) (lbstate.ReadOptions, *problem) {
	stale, p := flag(r, "stale")
	return lbstate.ReadOptions{Stale: stale}, p
}

// flag is a yes or no of the query; no if it is missing.
func flag(r *http.Request, name string) (bool, *problem) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	is, err := strconv.ParseBool(text)
	if err != nil {
		return false, refused(http.StatusBadRequest, fmt.Sprintf("%s is %q; allowed: true, false", name, text))
	}
	return is, nil
}

// access is what a request does, which decides how its failure is told.
type access int

const (
	read        access = iota
	write              // without a precondition in its headers
	conditional        // a write with If-Match or If-None-Match
	dry                // says what a write would do
)

const maxReason = 1024

func tooLongReason() *problem {
	return refused(http.StatusBadRequest, fmt.Sprintf("reason is longer than %d bytes", maxReason))
}

// writeOptions reads who asks and why, the idempotency key, and the
// precondition: If-Match with a revision, or If-None-Match: * for an object that
// must not exist yet.
func writeOptions(r *http.Request) (lbstate.WriteOptions, access, *problem) {
	o := lbstate.WriteOptions{Author: author(r), Reason: r.URL.Query().Get("reason")}
	if len(o.Reason) > maxReason {
		return o, write, tooLongReason()
	}
	var p *problem
	if o.Key, p = idempotencyKey(r); p != nil {
		return o, write, p
	}
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	switch {
	case match == "" && none == "":
		return o, write, nil
	case match != "" && none != "":
		return o, write, refused(http.StatusBadRequest, "If-Match and If-None-Match exclude each other")
	case none == "*":
		o.IfRevision = new(uint64)
		return o, conditional, nil
	case none != "":
		return o, write, refused(http.StatusBadRequest, fmt.Sprintf("If-None-Match is %q; allowed in a write: *", none))
	}
	// The part after the dot is of the health, which others may change.
	text, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(match, `"`), `"`), ".")
	revision, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return o, write, refused(http.StatusBadRequest, fmt.Sprintf(`If-Match is %q; allowed: one ETag of this object, or its revision in quotes, as in "12"`, match))
	}
	o.IfRevision = &revision
	return o, conditional, nil
}

// tag is the entity tag of a service or of what is shown from it: the revision
// of its configuration, then that of its last change of any kind.
func tag(s lbstate.ServiceStatus) string { return fmt.Sprintf("%d.%d", s.Revision, s.Version) }

func quote(tag string) string { return `"` + tag + `"` }

// unmodified sets the entity tag, and answers alone where the caller has it.
// YAML and the configuration alone are other representations, so they have tags
// of their own.
func unmodified(w http.ResponseWriter, r *http.Request, tag string) bool {
	if wantsYAML(r) {
		tag += ".yaml"
	}
	if r.URL.Query().Get("view") == "config" {
		tag += ".config"
	}
	w.Header().Set("ETag", quote(tag))
	for known := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		// Weakly compared (RFC 9110, 13.1.2): a proxy that compresses weakens tags.
		if known = strings.TrimPrefix(strings.TrimSpace(known), "W/"); known == quote(tag) || known == "*" {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

// failed turns an error of the store into a problem. It is here alone that
// 'not applied' and 'outcome unknown' are told apart.
func (a *API) failed(err error, kind access) *problem {
	var (
		syntax   *lbstate.SyntaxError
		invalid  *lbstate.ValidationError
		conflict *lbstate.ConflictError
		reused   *lbstate.KeyReusedError
		planned  *lbstate.PlanChangedError
	)
	switch {
	case errors.As(err, &syntax):
		return &problem{Type: typeInvalid, Status: http.StatusBadRequest, Detail: "the body cannot be read as what it should be", Faults: syntax.Faults}
	case errors.As(err, &invalid):
		return &problem{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Detail: "nothing was changed: see the faults", Faults: invalid.Faults}
	case errors.As(err, &conflict):
		p := &problem{Type: typeConflict, Status: http.StatusConflict, Detail: conflict.Error(), Revision: &conflict.Current}
		if kind == conditional {
			p.Status = http.StatusPreconditionFailed
		}
		return p
	case errors.As(err, &reused):
		return &problem{Type: typeKey, Status: http.StatusUnprocessableEntity, Detail: err.Error(), Outcome: notApplied}
	case errors.As(err, &planned):
		return &problem{Type: typePlan, Status: http.StatusConflict, Detail: err.Error(), Outcome: notApplied, Plan: &planned.Plan}
	case errors.Is(err, lbstate.ErrCompacted):
		return &problem{Type: typeCompacted, Status: http.StatusGone, Detail: err.Error()}
	case errors.Is(err, lbstate.ErrNotFound):
		return refused(http.StatusNotFound, err.Error())
	}
	p := a.unavailable(err, kind == write || kind == conditional)
	if kind == dry && p.Status == http.StatusServiceUnavailable {
		p.Detail = "nothing was changed; try again: " + err.Error()
	}
	if p.Status == http.StatusInternalServerError {
		a.log.Error("request failed", zap.Error(err))
	}
	return p
}
