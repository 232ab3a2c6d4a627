package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/releases"
	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// Releases keeps who let agents accept a state that they hold back.
// *releases.Store satisfies it.
type Releases interface {
	// Put makes a release known to all servers, which let the agent know.
	Put(context.Context, releases.Release) error
	// List returns those that are remembered, the newest first.
	List(context.Context) ([]releases.Release, error)
}

// maxWhy is the longest reason in bytes.
const maxWhy = 500

// releaseAgent lets an agent accept the state that it holds back now. Each server
// learns of it by the replicated log, so whichever the agent comes to next tells
// it.
func (a *API) releaseAgent(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Reason string `json:"reason"`
	}
	if p := why(w, r, &body, &body.Reason); p != nil {
		p.send(w, r)
		return
	}
	name := r.PathValue("name")
	list := a.everywhere(r.Context())
	known := newest(list.Agents)
	i := slices.IndexFunc(known, func(n agent.AgentInfo) bool { return n.Name == name })
	switch {
	case i < 0 && len(list.Unanswered) > 0:
		(&problem{
			Type: typeUnavailable, Status: http.StatusServiceUnavailable, Outcome: notApplied, retryAfter: 1,
			Detail: fmt.Sprintf("agent %q is not known here, and server %s did not answer: %s", name, list.Unanswered[0].Name, list.Unanswered[0].Reason),
		}).send(w, r)
		return
	case i < 0:
		refused(http.StatusNotFound, fmt.Sprintf("no server knows an agent %q", name)).send(w, r)
		return
	case known[i].Held == "":
		(&problem{Type: typeConflict, Status: http.StatusConflict, Outcome: notApplied, Detail: fmt.Sprintf("agent %q holds nothing back", name)}).send(w, r)
		return
	}
	a.release(w, r, releases.Release{Reason: body.Reason, Agent: name, Held: known[i].Held})
}

// releasePredecessor lets all agents that hold the state of the cluster that this
// one was restored from accept this one's.
func (a *API) releasePredecessor(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Cluster string `json:"cluster"`
		Reason  string `json:"reason"`
	}
	if p := why(w, r, &body, &body.Reason); p != nil {
		p.send(w, r)
		return
	}
	was := a.view().Predecessor
	if body.Cluster == "" || body.Cluster != was {
		f := lbstate.Fault{Path: "cluster", Found: body.Cluster, Allowed: was, Reason: "is not the cluster that this one was restored from"}
		if was == "" {
			f.Reason = "cannot be released: this cluster was not restored from another"
		}
		invalid(f).send(w, r)
		return
	}
	id, err := strconv.ParseUint(was, 16, 64)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	a.release(w, r, releases.Release{Reason: body.Reason, Cluster: id})
}

func (a *API) release(w http.ResponseWriter, r *http.Request, rel releases.Release) {
	rel.At, rel.By = time.Now().UTC(), author(r)
	ctx, cancel := a.bounded(r)
	defer cancel()
	if err := a.cfg.Releases.Put(ctx, rel); err != nil {
		a.unavailable(err, true).send(w, r)
		return
	}
	send(w, r, http.StatusOK, releaseOf(rel))
}

// releaseView is a release as it is shown: a cluster's ID is written as elsewhere.
type releaseView struct {
	releases.Release
	Cluster string `json:"cluster,omitempty"`
}

func releaseOf(r releases.Release) releaseView {
	v := releaseView{Release: r}
	if r.Cluster != 0 {
		v.Cluster = fmt.Sprintf("%016x", r.Cluster)
	}
	return v
}

// listReleases shows who released what, and why.
func (a *API) listReleases(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.bounded(r)
	defer cancel()
	all, err := a.cfg.Releases.List(ctx)
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	views := make([]releaseView, 0, len(all))
	for _, rel := range all {
		views = append(views, releaseOf(rel))
	}
	send(w, r, http.StatusOK, map[string]any{"releases": views})
}

// why reads a body whose reason is required: that is what the account is for.
func why(w http.ResponseWriter, r *http.Request, into any, reason *string) *problem {
	body, p := readBody(w, r)
	if p != nil {
		return p
	}
	if p := decode(body, into); p != nil {
		return p
	}
	if *reason = strings.TrimSpace(*reason); *reason == "" || len(*reason) > maxWhy {
		return invalid(lbstate.Fault{Path: "reason", Found: fmt.Sprintf("%d bytes", len(*reason)), Allowed: fmt.Sprintf("1 to %d bytes", maxWhy), Reason: "is required, for the account of who released what"})
	}
	return nil
}
