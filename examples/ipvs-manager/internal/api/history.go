package api

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/ipvskit/ipvskit/lbstate"
)

const maxHistory = 1000 // entries in one answer

type historyList struct {
	History []lbstate.HistoryEntry `json:"history"`        // newest first
	Next    uint64                 `json:"next,omitempty"` // ?before= of what follows; 0: there is no more
}

// historyEntry is one revision of the configuration, with what it changed.
type historyEntry struct {
	lbstate.HistoryEntry
	Diff []lbstate.ObjectDiff `json:"diff"`
}

type diff struct {
	From uint64               `json:"from"`
	To   uint64               `json:"to"`
	Diff []lbstate.ObjectDiff `json:"diff"`
}

// history lists the revisions of the configuration: who, when, why, and which
// objects.
func (a *API) history(w http.ResponseWriter, r *http.Request) {
	o, p := historyOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	limit := o.Limit
	o.Limit = min(limit+1, maxHistory) // one more says whether there is more
	entries, err := a.cfg.Store.History(ctx, o)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	list := historyList{History: listed(entries)}
	if len(entries) > limit || len(entries) == maxHistory {
		list.History = entries[:limit]
		list.Next = list.History[limit-1].Revision
	}
	send(w, r, http.StatusOK, list)
}

func historyOptions(r *http.Request) (lbstate.HistoryOptions, *problem) {
	var o lbstate.HistoryOptions
	var p *problem
	if o.ReadOptions, p = readOptions(r); p != nil {
		return o, p
	}
	if o.Before, _, p = revisionOf(r, "before"); p != nil {
		return o, p
	}
	o.Limit = 100
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxHistory {
			return o, refused(http.StatusBadRequest, fmt.Sprintf("limit is %.100q; allowed: 1 to %d", text, maxHistory))
		}
		o.Limit = n
	}
	if text := r.URL.Query().Get("object"); text != "" {
		kind, name, ok := strings.Cut(text, "/")
		if o.Object = (lbstate.Ref{Kind: lbstate.Kind(kind), Name: name}); !ok || !knownKind(o.Object.Kind) || name == "" {
			return o, refused(http.StatusBadRequest, fmt.Sprintf("object is %.100q; allowed: a kind (%s) and a name, as in service/web", text, kindsAllowed))
		}
	}
	return o, nil
}

// revisionOf is a revision in the query; given is false where it is missing.
func revisionOf(r *http.Request, name string) (revision uint64, given bool, p *problem) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, false, nil
	}
	revision, p = parseRevision(name, text)
	return revision, true, p
}

func parseRevision(name, text string) (uint64, *problem) {
	revision, err := strconv.ParseUint(text, 10, 64)
	if err != nil || revision > math.MaxInt64 {
		return 0, refused(http.StatusBadRequest, fmt.Sprintf("%s is %.100q; allowed: a revision, such as 12", name, text))
	}
	return revision, nil
}

// revision shows one revision of the configuration, with what it changed.
func (a *API) revision(w http.ResponseWriter, r *http.Request) {
	o, p := readOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	revision, p := parseRevision("the path's revision", r.PathValue("revision"))
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	entries, err := a.cfg.Store.History(ctx, lbstate.HistoryOptions{ReadOptions: o, Before: revision + 1, Limit: 1})
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	// Also where there is no such entry: then the error says why.
	diffs, err := a.cfg.Store.Diff(ctx, max(revision, 1)-1, revision, o)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	if len(entries) == 0 || entries[0].Revision != revision {
		refused(http.StatusNotFound, fmt.Sprintf("revision %d changed no configuration", revision)).send(w, r)
		return
	}
	send(w, r, http.StatusOK, historyEntry{entries[0], listed(diffs)})
}

// diff compares the configurations of two revisions.
func (a *API) diff(w http.ResponseWriter, r *http.Request) {
	o, p := readOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	from, given, p := revisionOf(r, "from")
	if p == nil && !given {
		p = refused(http.StatusBadRequest, "from is missing; allowed: a revision, such as 12")
	}
	if p != nil {
		p.send(w, r)
		return
	}
	to, given, p := revisionOf(r, "to")
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	var err error
	if !given {
		if to, err = a.cfg.Store.Revision(ctx, o); err != nil {
			a.failed(err, read).send(w, r)
			return
		}
	}
	diffs, err := a.cfg.Store.Diff(ctx, from, to, o)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	send(w, r, http.StatusOK, diff{from, to, listed(diffs)})
}

// listed is a list that is never null.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// configuration shows all objects, now or at ?revision=, in the form that a
// plan takes. Its entity tag is the revision of the last change of any
// configuration, which is a rollback's precondition.
func (a *API) configuration(w http.ResponseWriter, r *http.Request) {
	o, p := readOptions(r)
	if p != nil {
		p.send(w, r)
		return
	}
	revision, past, p := revisionOf(r, "revision")
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	var c lbstate.Configuration
	var err error
	if past {
		c, err = a.cfg.Store.At(ctx, revision, o)
	} else {
		c, revision, err = a.cfg.Store.Configuration(ctx, o)
	}
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	if !unmodified(w, r, strconv.FormatUint(revision, 10)) {
		send(w, r, http.StatusOK, c)
	}
}

// rollback makes the configuration what it was at a revision.
func (a *API) rollback(w http.ResponseWriter, r *http.Request) {
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
	f, p := parseFields(body)
	if p != nil {
		p.send(w, r)
		return
	}
	to := f.revision("revision")
	if to == nil && len(f.faults.invalid) == 0 {
		f.fault("revision", "nothing", "a revision, such as 12", "is missing")
	}
	if p := f.end(&o); p != nil {
		p.send(w, r)
		return
	}
	if o.Reason == "" {
		o.Reason = fmt.Sprintf("rollback to revision %d", *to)
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	res, err := a.cfg.Store.Rollback(ctx, *to, o)
	a.wroteBatch(w, r, kind, res, err)
}
