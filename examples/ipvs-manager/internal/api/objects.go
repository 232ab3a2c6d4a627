package api

import (
	"cmp"
	"context"
	"net/http"
	"strconv"

	"github.com/ipvskit/ipvskit/lbstate"
)

// patchMedia are the types of a patch; YAML has the same meaning.
var patchMedia = []string{mediaPatch, mediaYAML}

// collection serves the objects of a kind that have names, other than services.
type collection struct {
	kind   lbstate.Kind
	plural string // its field in a list
	// decode reads an object, whose name is that of the path where it says none.
	decode func(body []byte, name string) (lbstate.Object, error)
}

var (
	sharedChecks = collection{lbstate.KindCheck, "checks", func(body []byte, name string) (lbstate.Object, error) {
		c, err := lbstate.DecodeCheck(body)
		c.Name = cmp.Or(c.Name, name)
		return lbstate.Object{Check: &c}, err
	}}
	directorProfiles = collection{lbstate.KindProfile, "profiles", func(body []byte, name string) (lbstate.Object, error) {
		p, err := lbstate.DecodeProfile(body)
		p.Name = cmp.Or(p.Name, name)
		return lbstate.Object{Profile: &p}, err
	}}
	settings = collection{lbstate.KindSettings, "", func(body []byte, _ string) (lbstate.Object, error) {
		s, err := lbstate.DecodeSettings(body)
		return lbstate.Object{Settings: &s}, err
	}}
)

// ref names the object of a request's path.
func (c collection) ref(r *http.Request) lbstate.Ref {
	if c.kind == lbstate.KindSettings {
		return lbstate.Object{Settings: &lbstate.Settings{}}.Ref()
	}
	return lbstate.Ref{Kind: c.kind, Name: r.PathValue("name")}
}

// shown is an object as its own path shows it.
func shown(o lbstate.Object) any {
	switch {
	case o.Check != nil:
		return o.Check
	case o.Profile != nil:
		return o.Profile
	case o.Settings != nil:
		return o.Settings
	}
	return o.Service
}

func (a *API) list(c collection) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := a.bounded(r)
		defer cancel()
		o, p := readOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		objects, revision, err := a.cfg.Store.Objects(ctx, c.kind, o)
		if err != nil {
			a.failed(err, read).send(w, r)
			return
		}
		if unmodified(w, r, strconv.FormatUint(revision, 10)) {
			return
		}
		values := make([]any, len(objects))
		for i, obj := range objects {
			values[i] = shown(obj)
		}
		send(w, r, http.StatusOK, map[string]any{"revision": revision, c.plural: values})
	}
}

func (a *API) get(c collection) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := a.bounded(r)
		defer cancel()
		o, p := readOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		obj, err := a.object(ctx, c.ref(r), o)
		if err != nil {
			a.failed(err, read).send(w, r)
			return
		}
		if !unmodified(w, r, strconv.FormatUint(obj.Revision(), 10)) {
			send(w, r, http.StatusOK, shown(obj))
		}
	}
}

// object is Store.Object, but for settings that were never written, which are
// the defaults at revision 0.
func (a *API) object(ctx context.Context, ref lbstate.Ref, o lbstate.ReadOptions) (lbstate.Object, error) {
	if ref.Kind == lbstate.KindSettings {
		s, err := a.cfg.Store.Settings(ctx, o)
		return lbstate.Object{Settings: &s}, err
	}
	return a.cfg.Store.Object(ctx, ref, o)
}

func (a *API) put(c collection) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
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
		ref := c.ref(r)
		obj, err := c.decode(body, ref.Name)
		if err != nil {
			a.failed(err, kind).send(w, r)
			return
		}
		if name := obj.Ref().Name; name != ref.Name {
			invalid(lbstate.Fault{Path: "name", Found: name, Allowed: ref.Name, Reason: "is not the name in the path; a " + string(c.kind) + " cannot be renamed"}).send(w, r)
			return
		}
		res, err := a.cfg.Store.Put(ctx, obj, o)
		a.wrote(w, r, kind, res, err)
	}
}

func (a *API) remove(c collection) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := a.bounded(r)
		defer cancel()
		o, kind, p := writeOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		res, err := a.cfg.Store.Delete(ctx, c.ref(r), o)
		a.wrote(w, r, kind, res, err)
	}
}

// patch changes some fields of an object.
func (a *API) patch(c collection) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := a.bounded(r)
		defer cancel()
		body, p := readText(w, r, maxBody, patchMedia...)
		if p != nil {
			p.send(w, r)
			return
		}
		o, kind, p := writeOptions(r)
		if p != nil {
			p.send(w, r)
			return
		}
		res, err := a.cfg.Store.Patch(ctx, c.ref(r), body, o)
		a.wrote(w, r, kind, res, err)
	}
}
