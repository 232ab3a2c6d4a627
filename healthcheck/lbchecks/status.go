package lbchecks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/lbstate"
)

// Errors of a Runner.
var (
	// ErrNotChecking says that this node does not lead, so it does not check.
	ErrNotChecking = errors.New("this node does not check: only the leader does")
	// ErrNoCheck says that there is no such service or backend, or that it has no
	// check, or is disabled.
	ErrNoCheck = errors.New("no check is run for this backend")
)

// BackendStatus is what this node knows of one backend of one service by its
// own checks. Services that share a backend and a check have the same figures.
type BackendStatus struct {
	Service string
	Backend netip.AddrPort
	healthcheck.Status
}

// Status tells of all backends that have a check, by service and backend;
// ErrNotChecking where this node does not lead.
func (r *Runner) Status() ([]BackendStatus, error) {
	return r.statusOf(func(user) bool { return true })
}

// ServiceStatus is Status of one service; empty when no check is run for it.
func (r *Runner) ServiceStatus(service string) ([]BackendStatus, error) {
	return r.statusOf(func(u user) bool { return u.service == service })
}

func (r *Runner) statusOf(wanted func(user) bool) ([]BackendStatus, error) {
	f := r.follower()
	if f == nil {
		return nil, ErrNotChecking
	}
	ids := map[user]string{}
	f.mu.Lock()
	for id, users := range f.checks {
		for u := range users {
			if wanted(u) {
				ids[u] = id
			}
		}
	}
	f.mu.Unlock()
	all := make([]BackendStatus, 0, len(ids))
	for u, id := range ids {
		if s, ok := f.engine.Status(id); ok {
			all = append(all, BackendStatus{u.service, u.backend, s})
		}
	}
	slices.SortFunc(all, byBackend)
	return all, nil
}

func byBackend(a, b BackendStatus) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), a.Backend.Compare(b.Backend))
}

// Noted tells of backends whose last result was a success with a warning (a
// certificate that ends soon), or inconclusive, as a check that this host cannot
// run is; by service and backend. ErrNotChecking where this node does not lead.
func (r *Runner) Noted() ([]BackendStatus, error) {
	f := r.follower()
	if f == nil {
		return nil, ErrNotChecking
	}
	var all []BackendStatus
	for _, s := range f.engine.Noted() {
		for _, u := range f.users(s.ID) {
			all = append(all, BackendStatus{u.service, u.backend, s})
		}
	}
	slices.SortFunc(all, byBackend)
	return all, nil
}

// Event is an event of this node's engine in one term.
type Event struct {
	healthcheck.Event
	Term     uint64
	Backends []Backend // that the check speaks for at present
}

// Backend is one backend of one service.
type Backend struct {
	Service string
	Address netip.AddrPort
}

// Events returns the events of this term after one of them, by its Seq, as
// healthcheck.Engine.Events does; 0 returns all that are kept. ErrNotChecking
// where this node does not lead.
func (r *Runner) Events(after uint64) (events []Event, more <-chan struct{}, err error) {
	f := r.follower()
	if f == nil {
		return nil, nil, ErrNotChecking
	}
	told, more := f.engine.Events(after)
	for _, ev := range told {
		e := Event{Event: ev, Term: f.term}
		for _, u := range f.users(ev.Check) {
			e.Backends = append(e.Backends, Backend{u.service, u.backend})
		}
		events = append(events, e)
	}
	return events, more, nil
}

// users are those that a check speaks for, in order.
func (f *follower) users(id string) []user {
	f.mu.Lock()
	all := slices.Collect(maps.Keys(f.checks[id]))
	f.mu.Unlock()
	slices.SortFunc(all, func(a, b user) int {
		return cmp.Or(cmp.Compare(a.service, b.service), a.backend.Compare(b.backend))
	})
	return all
}

// ProbeNow probes a backend of a service at once, from this node, whether it
// leads or not. The result counts for nothing else. It waits while 16 others
// run.
func (r *Runner) ProbeNow(ctx context.Context, service string, backend netip.AddrPort) (healthcheck.Result, error) {
	st, err := r.cfg.Store.Service(ctx, service, lbstate.ReadOptions{})
	if err != nil {
		return healthcheck.Result{}, err
	}
	i := slices.IndexFunc(st.Checks(), func(c lbstate.ResolvedCheck) bool { return c.Backend == backend })
	if i < 0 {
		return healthcheck.Result{}, fmt.Errorf("service %s, backend %v: %w", service, backend, ErrNoCheck)
	}
	c := st.Checks()[i]
	probes := prober{execDir: r.cfg.ExecDir}
	check, err := probes.checkOf(name(c), c, lbstate.Unknown)
	if err != nil {
		return healthcheck.Result{}, fmt.Errorf("service %s, backend %v: %w", service, backend, err)
	}
	select {
	case r.asking <- struct{}{}:
	case <-ctx.Done():
		return healthcheck.Result{}, fmt.Errorf("service %s, backend %v: %w", service, backend, ctx.Err())
	}
	defer func() { <-r.asking }()
	return healthcheck.Once(ctx, check)
}

// Stats are the figures of this node's engine; ErrNotChecking where it does not
// lead.
func (r *Runner) Stats() (healthcheck.Stats, error) {
	f := r.follower()
	if f == nil {
		return healthcheck.Stats{}, ErrNotChecking
	}
	return f.engine.Stats(), nil
}

// Hold tells whether a mass failure is suspected; ErrNotChecking where this
// node does not lead.
func (r *Runner) Hold() (healthcheck.HoldStatus, error) {
	f := r.follower()
	if f == nil {
		return healthcheck.HoldStatus{}, ErrNotChecking
	}
	return f.engine.Hold(), nil
}

// ReleaseHold ends a hold: what is held is believed at once. It says whether
// there was one; ErrNotChecking where this node does not lead.
func (r *Runner) ReleaseHold() (bool, error) {
	f := r.follower()
	if f == nil {
		return false, ErrNotChecking
	}
	return f.engine.ReleaseHold(), nil
}

// SetHold replaces the rules of the hold, now and in later terms of this node.
func (r *Runner) SetHold(h healthcheck.Hold) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		if err := r.current.engine.SetHold(h); err != nil {
			return err
		}
	} else if _, err := healthcheck.New(healthcheck.Config{Hold: h}); err != nil {
		return err
	}
	r.cfg.Engine.Hold = h
	return nil
}

func (r *Runner) follower() *follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}
