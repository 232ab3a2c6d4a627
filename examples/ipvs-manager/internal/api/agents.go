package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent"
)

const (
	askTimeout = time.Second
	maxAnswer  = 64 << 20
	// forwardedBy marks a request that a follower passed on, so that two nodes
	// that each take the other for the leader do not play ball with it.
	forwardedBy = "Ipvs-Manager-Forwarded-By"
)

type agentList struct {
	At         time.Time         `json:"at"` // the answering server's clock
	Agents     []agent.AgentInfo `json:"agents"`
	Unanswered []unanswered      `json:"unanswered,omitempty"`
}

// unanswered is a server whose part is missing in an answer.
type unanswered struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// agents lists the agents of all servers. Each server knows those connected to
// it, and keeps that in memory alone, so the others are asked; ?local=true
// leaves that out.
func (a *API) agents(w http.ResponseWriter, r *http.Request) {
	local, p := flag(r, "local")
	if p != nil {
		p.send(w, r)
		return
	}
	send(w, r, http.StatusOK, a.gather(r.Context(), local))
}

// agent shows one agent: what it holds, which profile is in force there, and what
// it could not do.
func (a *API) agent(w http.ResponseWriter, r *http.Request) {
	local, p := flag(r, "local")
	if p != nil {
		p.send(w, r)
		return
	}
	name := r.PathValue("name")
	list := a.gather(r.Context(), local)
	i := slices.IndexFunc(list.Agents, func(n agent.AgentInfo) bool { return n.Name == name })
	if i < 0 {
		why := fmt.Sprintf("no agent %.100q is connected, or was lately", name)
		for _, u := range list.Unanswered {
			why += fmt.Sprintf("; server %s was not heard: %s", u.Name, u.Reason)
		}
		refused(http.StatusNotFound, why).send(w, r)
		return
	}
	send(w, r, http.StatusOK, list.Agents[i])
}

func (a *API) gather(ctx context.Context, local bool) agentList {
	list := agentList{At: time.Now(), Agents: a.cfg.Agents()}
	if !local {
		list = a.everywhere(ctx)
	}
	list.Agents = newest(list.Agents)
	return list
}

// everywhere is what all servers know of agents.
func (a *API) everywhere(ctx context.Context) agentList {
	list := agentList{At: time.Now(), Agents: a.cfg.Agents()}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards list
	for _, m := range a.view().Members {
		if m.Name == a.cfg.About.Name {
			continue
		}
		wg.Go(func() {
			var theirs agentList
			err := a.ask(ctx, m.HTTPAddr, "/api/v1/agents?local=true", &theirs)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				list.Unanswered = append(list.Unanswered, unanswered{m.Name, err.Error()})
			}
			list.Agents = append(list.Agents, theirs.Agents...)
		})
	}
	wg.Wait()
	slices.SortFunc(list.Unanswered, func(a, b unanswered) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// newest keeps one account of each agent: of the server that it is connected
// to, else of the one that heard it last.
func newest(accounts []agent.AgentInfo) []agent.AgentInfo {
	byName := make(map[string]agent.AgentInfo, len(accounts))
	for _, n := range accounts {
		old, ok := byName[n.Name]
		if !ok || n.Connected && !old.Connected || n.Connected == old.Connected && n.LastHeard.After(old.LastHeard) {
			byName[n.Name] = n
		}
	}
	out := make([]agent.AgentInfo, 0, len(byName))
	for _, n := range byName {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b agent.AgentInfo) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ask reads a path of another server.
func (a *API) ask(ctx context.Context, address, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.cfg.Client.Do(req)
	if err != nil {
		var at *url.Error // says the URL, which the answer has no use for
		if errors.As(err, &at) {
			return at.Err
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", address, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into)
}
