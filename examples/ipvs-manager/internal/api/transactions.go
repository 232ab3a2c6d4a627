package api

import (
	"fmt"
	"net/http"
	"net/netip"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	maxTransaction = 4 << 20 // as text; the command that it makes is bounded by lbstate
	maxOperations  = 10_000
)

// transact applies operations as one revision, all of them or none.
func (a *API) transact(w http.ResponseWriter, r *http.Request) {
	body, p := readText(w, r, maxTransaction, mediaJSON, mediaYAML)
	if p != nil {
		p.send(w, r)
		return
	}
	o, p := batchOptions(r, "a transaction's preconditions are its operations' if_revision")
	if p != nil {
		p.send(w, r)
		return
	}
	f, p := parseFields(body)
	if p != nil {
		p.send(w, r)
		return
	}
	ops := operations(f)
	if p := f.end(&o); p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	res, err := a.cfg.Store.Transact(ctx, ops, o)
	a.wroteBatch(w, r, write, res, err)
}

// batchOptions are those of a write whose precondition is not in its headers.
func batchOptions(r *http.Request, why string) (lbstate.WriteOptions, *problem) {
	o, kind, p := writeOptions(r)
	if p == nil && kind == conditional {
		p = refused(http.StatusBadRequest, "If-Match and If-None-Match are of no use here: "+why)
	}
	return o, p
}

// end reads the reason, which a body may carry in place of the query, and says
// what is wrong with the body.
func (f *fields) end(o *lbstate.WriteOptions) *problem {
	if reason := f.text("reason"); reason != "" {
		o.Reason = reason
	}
	f.done()
	if p := f.faults.problem(); p != nil {
		return p
	}
	if len(o.Reason) > maxReason {
		return tooLongReason()
	}
	return nil
}

// wroteBatch answers a write of several objects.
func (a *API) wroteBatch(w http.ResponseWriter, r *http.Request, kind access, res lbstate.BatchResult, err error) {
	if err != nil {
		a.failed(err, kind).send(w, r)
		return
	}
	res.Objects = listed(res.Objects)
	send(w, r, http.StatusOK, res)
}

// operations reads the operations of a transaction:
//
//	operations:
//	- put: {service: {name: web, ...}}    # or check, profile, settings
//	- put_backend: {service: web, backend: {address: 10.1.0.1}}
//	- delete_backend: {service: web, address: "10.1.0.1:80"}
//	- delete: {kind: check, name: up}
//	  if_revision: 12                     # with any of them; 0: must not exist
func operations(f *fields) []lbstate.Operation {
	list := f.objects("operations")
	switch {
	case len(list) == 0:
		f.fault("operations", "nothing", "a list of operations", "is missing or empty")
	case len(list) > maxOperations:
		f.fault("operations", len(list), fmt.Sprintf("at most %d", maxOperations), "there are too many")
		return nil
	}
	ops := make([]lbstate.Operation, 0, len(list))
	for _, o := range list {
		ops = append(ops, operation(o))
		o.done()
	}
	return ops
}

func operation(f *fields) lbstate.Operation {
	op := lbstate.Operation{IfRevision: f.revision("if_revision")}
	named := 0
	if put := f.object("put"); put != nil {
		op.Put = putObject(put)
		named++
	}
	if b := f.object("put_backend"); b != nil {
		op.PutBackend = &lbstate.BackendPut{Service: b.text("service")}
		if backend := b.object("backend"); backend != nil {
			op.PutBackend.Backend = decodeIn(backend, lbstate.DecodeBackend)
		} else {
			b.fault("backend", "nothing", "a backend", "is missing")
		}
		b.done()
		named++
	}
	if b := f.object("delete_backend"); b != nil {
		text := b.text("address")
		at, err := netip.ParseAddrPort(text)
		if err != nil || at.Addr().Zone() != "" {
			b.fault("address", text, "address:port, as in 10.1.0.1:8080 or [2001:db8::1]:8080", "is not a backend's address")
		}
		op.DeleteBackend = &lbstate.BackendRef{Service: b.text("service"), Address: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())}
		b.done()
		named++
	}
	if d := f.object("delete"); d != nil {
		op.Delete = lbstate.Ref{Kind: lbstate.Kind(d.text("kind")), Name: d.text("name")}
		if !knownKind(op.Delete.Kind) {
			d.fault("kind", op.Delete.Kind, kindsAllowed, "is not a kind of object")
		}
		if op.Delete.Name == "" {
			d.fault("name", "nothing", "a name", "is missing")
		}
		d.done()
		named++
	}
	if named != 1 {
		f.faults.invalid = append(f.faults.invalid, lbstate.Fault{
			Path: f.path[:len(f.path)-1], Found: fmt.Sprintf("%d of them", named),
			Allowed: "put, put_backend, delete_backend or delete", Reason: "an operation is one of these",
		})
	}
	return op
}

// putObject reads the object that is put, in the field of its kind.
func putObject(f *fields) lbstate.Object {
	var o lbstate.Object
	named := 0
	if v := f.object("service"); v != nil {
		s := decodeIn(v, lbstate.DecodeService)
		o = lbstate.Object{Service: &s}
		named++
	}
	if v := f.object("check"); v != nil {
		c := decodeIn(v, lbstate.DecodeCheck)
		o = lbstate.Object{Check: &c}
		named++
	}
	if v := f.object("profile"); v != nil {
		d := decodeIn(v, lbstate.DecodeProfile)
		o = lbstate.Object{Profile: &d}
		named++
	}
	if v := f.object("settings"); v != nil {
		s := decodeIn(v, lbstate.DecodeSettings)
		o = lbstate.Object{Settings: &s}
		named++
	}
	if named != 1 {
		f.faults.invalid = append(f.faults.invalid, lbstate.Fault{
			Path: f.path[:len(f.path)-1], Found: fmt.Sprintf("%d of them", named),
			Allowed: kindsAllowed, Reason: "one object is put",
		})
	}
	f.done()
	return o
}

const kindsAllowed = "service, check, profile, settings"

func knownKind(k lbstate.Kind) bool {
	switch k {
	case lbstate.KindService, lbstate.KindCheck, lbstate.KindProfile, lbstate.KindSettings:
		return true
	}
	return false
}
