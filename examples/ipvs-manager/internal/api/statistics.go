package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// maxSince is how far back an agent's statistics go.
const maxSince = time.Hour

type statistics struct {
	Agent  string    `json:"agent"`
	Server string    `json:"server"` // that asked it
	Since  time.Time `json:"since"`
	agent.Statistics
}

// agentStatistics asks an agent what it counted: of ?service=NAME with its
// backends, or of all services without theirs; since ?since=, a time (RFC 3339)
// or how long ago, at most and by default an hour. Only the server that the agent
// is connected to can ask it; another passes the request on.
func (a *API) agentStatistics(w http.ResponseWriter, r *http.Request) {
	name, service, now := r.PathValue("name"), r.FormValue("service"), time.Now()
	since, p := sinceWhen(r.FormValue("since"), now)
	if p != nil {
		p.send(w, r)
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	s, err := a.cfg.Statistics(ctx, name, service, since)
	if errors.Is(err, agent.ErrNotConnected) && r.Header.Get(forwardedBy) == "" {
		list := newest(a.everywhere(ctx).Agents)
		i := slices.IndexFunc(list, func(n agent.AgentInfo) bool { return n.Name == name })
		switch {
		case i < 0:
			refused(http.StatusNotFound, fmt.Sprintf("no server knows an agent %q", name)).send(w, r)
			return
		case list[i].Connected:
			members := a.view().Members
			if j := slices.IndexFunc(members, func(m MemberView) bool { return m.Name == list[i].Server && m.Name != a.cfg.About.Name }); j >= 0 {
				a.pass(w, r, members[j], "server "+members[j].Name, nil)
				return
			}
		}
	}
	switch {
	case err == nil:
		send(w, r, http.StatusOK, statistics{name, a.cfg.About.Name, since.UTC(), s})
	case errors.Is(err, agent.ErrBusy):
		(&problem{Status: http.StatusTooManyRequests, Detail: err.Error(), retryAfter: 1}).send(w, r)
	case errors.Is(err, agent.ErrNoStatistics):
		refused(http.StatusNotFound, err.Error()).send(w, r)
	case errors.Is(err, agent.ErrNotConnected), errors.Is(err, context.DeadlineExceeded):
		(&problem{Type: typeUnavailable, Status: http.StatusServiceUnavailable, retryAfter: 1, Detail: fmt.Sprintf("agent %q: %v", name, err)}).send(w, r)
	default:
		a.failed(err, read).send(w, r)
	}
}

func sinceWhen(text string, now time.Time) (time.Time, *problem) {
	since := now.Add(-maxSince)
	if text == "" {
		return since, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if ago, e := time.ParseDuration(text); e == nil {
		at, err = now.Add(-ago), nil
	}
	if err != nil || at.After(now) {
		return since, invalid(lbstate.Fault{Path: "since", Found: text, Allowed: "a time of before, as 2026-01-02T15:04:05Z, or how long ago, as 10m", Reason: "is not a time"})
	}
	if at.Before(since) {
		return since, nil
	}
	return at, nil
}
