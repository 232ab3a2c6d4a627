package api

import (
	"context"
	"net/http"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	maxConfiguration = 64 << 20 // as lbstate has it
	// maxReading bounds the configurations that are read at once, since one takes
	// many times its size of memory.
	maxReading = 2
)

// plan says what it takes to make the state have a configuration, and writes
// nothing.
func (a *API) plan(w http.ResponseWriter, r *http.Request) {
	a.planned(w, r, dry, func(ctx context.Context, c lbstate.Configuration, po lbstate.PlanOptions) {
		p, err := a.cfg.Store.Plan(ctx, c, po)
		if err != nil {
			a.failed(err, dry).send(w, r)
			return
		}
		send(w, r, http.StatusOK, p)
	})
}

// apply does what a plan of the same configuration said, if it would still do
// the same.
func (a *API) apply(w http.ResponseWriter, r *http.Request) {
	o, p := batchOptions(r, "the precondition is ?hash=, of the plan that was reviewed")
	if p != nil {
		p.send(w, r)
		return
	}
	hash := r.URL.Query().Get("hash")
	if hash == "" {
		refused(http.StatusBadRequest, "hash is missing: send the same configuration to /api/v1/plan first, and say the hash of what was reviewed").send(w, r)
		return
	}
	a.planned(w, r, write, func(ctx context.Context, c lbstate.Configuration, po lbstate.PlanOptions) {
		res, err := a.cfg.Store.ApplyPlan(ctx, c, po, hash, o)
		a.wroteBatch(w, r, write, res, err)
	})
}

// planned reads the configuration of a plan, and goes on with it.
func (a *API) planned(w http.ResponseWriter, r *http.Request, kind access, next func(context.Context, lbstate.Configuration, lbstate.PlanOptions)) {
	prune, p := flag(r, "prune")
	if p != nil {
		p.send(w, r)
		return
	}
	done, p := a.place()
	if p != nil {
		p.send(w, r)
		return
	}
	defer done()
	body, p := readText(w, r, maxConfiguration, mediaJSON, mediaYAML)
	if p != nil {
		p.send(w, r)
		return
	}
	c, err := lbstate.DecodeConfiguration(body)
	if err != nil {
		a.failed(err, kind).send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	next(ctx, c, lbstate.PlanOptions{Prune: prune})
}

// place takes one of the places for reading a configuration; done gives it back.
func (a *API) place() (done func(), p *problem) {
	select {
	case a.reading <- struct{}{}:
		return func() { <-a.reading }, nil
	default:
		p := refused(http.StatusServiceUnavailable, "others send configurations at present; nothing was changed, try again")
		p.Type, p.Outcome, p.retryAfter = typeUnavailable, notApplied, 1
		return nil, p
	}
}
