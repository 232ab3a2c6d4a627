package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
)

const expireEvery = time.Minute // tokens and revocations that are over

// revokedIn asks the replicated revocations, and before them those of a file.
func revokedIn(state *accessdata.State, file *identity.Revocations) func(identity.ID, string) string {
	return func(id identity.ID, serial string) string {
		if why := file.Revoked(id, serial); why != "" {
			return why
		}
		return state.Revoked(string(id.Role), id.Name, serial)
	}
}

// labelsIn gives agents the labels that the state has for them, else those of
// their certificates. It refuses a revoked name, which without certificates
// nobody else would do.
func labelsIn(state *accessdata.State) func(context.Context, agent.Hello) (map[string]string, error) {
	return func(_ context.Context, h agent.Hello) (map[string]string, error) {
		if why := state.Revoked(string(identity.RoleAgent), h.Name, ""); why != "" {
			return nil, fmt.Errorf("agent %q is revoked: %s", h.Name, why)
		}
		if labels, ok := state.Labels(h.Name); ok {
			return labels, nil
		}
		return h.Labels, nil
	}
}

// recheck ends what was let in and may no longer be, and shows agents what
// other labels select: at each change of the access data, and each second, for
// a file of revocations and the clock tell nobody.
func (s *server) recheck(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	tokens, users := s.people.Changed(accessdata.KindToken), s.people.Changed(accessdata.KindUser)
	revoked, labeled := s.people.Changed(accessdata.KindRevocation), s.people.Changed(accessdata.KindCredential)
	for {
		s.gate.recheck()
		if s.identity != nil {
			s.transport.Recheck(s.identity.Live)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C: // agents' streams look by themselves
		case <-tokens:
			tokens = s.people.Changed(accessdata.KindToken)
		case <-users:
			users = s.people.Changed(accessdata.KindUser)
		case <-revoked:
			revoked = s.people.Changed(accessdata.KindRevocation)
			s.agents.Recheck()
		case <-labeled:
			labeled = s.people.Changed(accessdata.KindCredential)
			s.agents.Recheck()
		}
	}
}

// expire drops tokens and revocations that are over, while this node leads.
func (s *server) expire(ctx context.Context) error {
	if leading, _, _ := s.store.Leadership(); !leading {
		return nil
	}
	if _, err := s.accessStore.Expire(ctx, accessdata.WriteOptions{Author: "server " + s.cfg.nodeID, Reason: "over"}); err != nil {
		return fmt.Errorf("drop tokens and revocations that are over: %w", err)
	}
	return nil
}

// issued is a certificate that this server has renewed.
type issued struct {
	id       identity.ID
	serial   string
	notAfter time.Time
}

// recorder is the agents' authenticator, and tells of each credential that it
// has renewed, for the record.
type recorder struct {
	*identity.Source
	made chan issued
	log  *zap.Logger
}

func newRecorder(source *identity.Source, log *zap.Logger) *recorder {
	return &recorder{source, make(chan issued, 1024), log}
}

// Renew implements agent.Authenticator.
func (r *recorder) Renew(state tls.ConnectionState, request []byte) ([]byte, error) {
	data, err := r.Source.Renew(state, request)
	if err != nil {
		return nil, err
	}
	_, c, err := identity.Parse(data)
	if err != nil {
		return nil, err
	}
	select {
	case r.made <- issued{c.ID(), c.Serial(), c.Expires()}:
	default:
		r.log.Warn("a renewed certificate is not on record: too many come at once", zap.Stringer("of", c.ID()), zap.String("serial", c.Serial()))
	}
	return data, nil
}

// record writes down what was renewed, until ctx ends.
func (s *server) record(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case i := <-s.renewals.made:
			within, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := s.accessStore.Issued(within, string(i.id.Role), i.id.Name, i.serial, i.notAfter, accessdata.WriteOptions{Author: "server " + s.cfg.nodeID, Reason: "renewed"})
			cancel()
			if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
				s.log.Warn("a renewed certificate is not on record", zap.Stringer("of", i.id), zap.String("serial", i.serial), zap.Error(err))
			}
		}
	}
}
