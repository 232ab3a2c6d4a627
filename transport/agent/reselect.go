package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Recheck looks again at every agent that is connected: the Authenticator is
// asked whether it may stay, and LabelsFor what it is to be shown. Call it when
// their answers may have changed; it returns at once, and the streams follow
// within milliseconds.
func (s *Server) Recheck() {
	select {
	case s.recheck <- struct{}{}:
	default: // the last one has not begun yet
	}
}

// rechecks does what Recheck asks for, until the server ends.
func (s *Server) rechecks() {
	for {
		select {
		case <-s.recheck:
		case <-s.life.Done():
			return
		}
		s.mu.Lock()
		open := slices.Collect(maps.Values(s.open))
		s.mu.Unlock()
		for _, st := range open {
			if err := st.lookAgain(s.life); err != nil {
				st.cancel(err)
			}
		}
	}
}

// lookAgain finds out whether the agent may stay, and what it is to be shown. One
// that is not shown anything yet looks by itself once it is.
func (st *stream) lookAgain(ctx context.Context) error {
	st.looking.Lock()
	defer st.looking.Unlock()
	if err := st.proved(); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	labels, err := st.server.selecting(ctx, st.claims)
	if err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.labels = labels
	st.step()
	return nil
}

// selecting returns the labels that select the agent's services. An error
// refuses the agent.
func (s *Server) selecting(ctx context.Context, hello Hello) (map[string]string, error) {
	labels, err := s.cfg.LabelsFor(ctx, hello)
	if labels == nil {
		labels = map[string]string{} // nil would select everything
	}
	return labels, err
}

// reselect moves the stream from its view to that of its labels. The update that
// leads there is the whole of the new view, with what the old one had and the new
// one lacks as explicit removals, which the agent's guard lets pass. The caller
// holds mu.
func (st *stream) reselect() {
	s, old, p, labels := st.server, st.view, st.position, st.labels
	s.log.Info("other labels select the agent's services", zap.String("agent", st.hello.Name), zap.Any("from", old.labels), zap.Any("to", labels))
	var v *view
	st.later(func() (*encoding, error) {
		if v = s.acquire(labels, st); v == nil {
			return nil, &farewell{agentpb.Bye_STOPPING, "the server stops"}
		}
		return v.inPlaceOf(old, p)
	}, func(e *encoding, err error) (*encoding, error) {
		if v == nil {
			return nil, err
		}
		if err != nil || st.over {
			s.release(v, st)
			return nil, err
		}
		s.release(old, st)
		st.view = v
		st.position.full, st.position.resume, st.position.restores = false, false, -1
		s.known.update(st.hello.Name, func(a *AgentInfo) { a.Labels = labels })
		return e, nil
	})
}

// inPlaceOf is the update for an agent that has had old up to a position.
func (v *view) inPlaceOf(old *view, p position) (*encoding, error) {
	store := v.server.cfg.Store
	had, err := store.Watch(lbstate.WatchOptions{Labels: old.labels, Stale: true}).Next(old.ctx)
	if err != nil {
		return nil, err
	}
	u, err := store.Watch(lbstate.WatchOptions{From: p.have, Full: true, Labels: v.labels, Stale: true}).Next(v.ctx)
	if err != nil {
		return nil, err
	}
	if u.Revision < p.have {
		return nil, &farewell{agentpb.Bye_BEHIND, fmt.Sprintf("this server is at revision %d, the agent has seen %d", u.Revision, p.have)}
	}
	e := &encoding{revision: u.Revision}
	shown := make(map[string]bool, len(u.Services))
	for _, service := range u.Services {
		shown[service.Name] = true
		e.digest += pairDigest(service.Name, service.Version)
	}
	removed := u.Removed[:len(u.Removed):len(u.Removed)]
	for _, service := range had.Services {
		if !shown[service.Name] {
			removed = append(removed, service.Name)
		}
	}
	whole := &agentpb.Update{Cluster: p.cluster, Full: true, Since: p.have, Removed: removed}
	if p.profiles {
		if u.Profile != nil {
			e.digest += profileDigest(u.Profile.Name, u.Profile.Revision)
		}
		say(whole, u.Profile)
	}
	return e, e.encode(whole, u.Services)
}
