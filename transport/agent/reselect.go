package agent

import (
	"context"
	"fmt"
	"maps"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Recheck looks again at every agent that is connected: the Authenticator is
// asked whether it may stay, and LabelsFor what it is to be shown. Call it when
// their answers may have changed; it returns at once, and the streams follow
// within milliseconds.
func (s *Server) Recheck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.open {
		st.lookAgain()
	}
}

func (st *stream) lookAgain() {
	select {
	case st.recheck <- struct{}{}:
	default: // it has not looked yet
	}
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

// relabel finds out whether the agent may stay, and returns the labels of the
// view that it is to have if they are others than those of v.
func (st *stream) relabel(ctx context.Context, v *view) (map[string]string, error) {
	if err := st.proved(); err != nil {
		return nil, &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	labels, err := st.server.selecting(ctx, st.claims)
	if err != nil {
		return nil, &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	if maps.Equal(labels, v.labels) {
		return nil, nil
	}
	return labels, nil
}

// reselect moves the stream from one view to that of other labels, and returns
// the update that leads there: the whole of the new view, with what the old one
// had and the new one lacks as explicit removals, which the agent's guard lets
// pass. The old view is released; the new one is the caller's to release.
func (st *stream) reselect(old *view, labels map[string]string, p *position) (*view, *encoding, error) {
	s := st.server
	s.log.Info("other labels select the agent's services", zap.String("agent", st.hello.Name), zap.Any("from", old.labels), zap.Any("to", labels))
	had, err := s.cfg.Store.Watch(lbstate.WatchOptions{Labels: old.labels, Stale: true}).Next(old.ctx)
	if err != nil {
		return old, nil, err
	}
	v := s.acquire(labels)
	if v == nil {
		return old, nil, &farewell{agentpb.Bye_STOPPING, "the server stops"}
	}
	s.release(old)
	st.hello.Labels = labels
	s.known.update(st.hello.Name, func(a *AgentInfo) { a.Labels = labels })
	u, err := s.cfg.Store.Watch(lbstate.WatchOptions{From: p.have, Full: true, Labels: labels, Stale: true}).Next(v.ctx)
	if err != nil {
		return v, nil, err
	}
	if u.Revision < p.have {
		return v, nil, &farewell{agentpb.Bye_BEHIND, fmt.Sprintf("this server is at revision %d, the agent has seen %d", u.Revision, p.have)}
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
	p.full, p.resume, p.restores = false, false, -1
	return v, e, e.encode(&agentpb.Update{Cluster: p.cluster, Full: true, Since: p.have, Removed: removed}, u.Services)
}
