package lbchecks

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/lbstate"
)

// retryWatch is the pause after a failed read of the state.
const retryWatch = 200 * time.Millisecond

// maxReport is how many transitions go into one command: with the longest
// messages they stay below the size that a command may have.
const maxReport = 500

// user is one backend of one service that a check speaks for.
type user struct {
	service string
	backend netip.AddrPort
	hash    uint64 // of the check
}

// verdict is the health of a backend as the store has it.
type verdict struct {
	state lbstate.HealthState
	held  bool
}

// follower keeps an engine's checks equal to the services, in one term.
type follower struct {
	store  *lbstate.Store
	engine *healthcheck.Engine
	log    *zap.Logger
	term   uint64

	mu       sync.Mutex // guards what follows
	probes   prober
	told     map[string]bool // why checks cannot be run, as the log has it
	services map[string][]string
	checks   map[string]map[user]verdict // by check: who uses it, and what the store has for it
}

func (r *Runner) newFollower(term uint64) (*follower, error) {
	f := &follower{
		store: r.cfg.Store, log: r.log, term: term, probes: prober{execDir: r.cfg.ExecDir, make: r.probes},
		told: map[string]bool{}, services: map[string][]string{}, checks: map[string]map[user]verdict{},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	cfg := r.cfg.Engine
	cfg.Sink, cfg.Epoch, cfg.Confirmations, cfg.Holds = healthcheck.SinkFunc(f.report), term, true, true
	var err error
	if f.engine, err = healthcheck.New(cfg); err != nil {
		return nil, fmt.Errorf("lbchecks: %w", err)
	}
	r.current = f
	return f, nil
}

// follow gives the engine what changes, until ctx ends.
func (f *follower) follow(ctx context.Context) error {
	watcher := f.store.Watch(lbstate.WatchOptions{})
	for failing := false; ; {
		u, err := watcher.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !failing {
				f.log.Warn("the services cannot be read; trying again", zap.Error(err))
			}
			failing = true
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryWatch):
			}
			continue
		}
		failing = false
		if err := f.update(u); err != nil {
			return fmt.Errorf("lbchecks: %w", err)
		}
	}
}

// update takes over one update of the watch. The store is the measure: where it
// does not have what a check has found (a report was dropped, a service joined
// a check that runs already), the check is announced again.
func (f *follower) update(u lbstate.Update) error {
	f.mu.Lock()
	var fresh []healthcheck.Check
	left := map[string]bool{} // checks that lost a user
	if u.Full {
		stay := make(map[string]bool, len(u.Services))
		for _, s := range u.Services {
			stay[s.Name] = true
		}
		for name := range f.services {
			if !stay[name] {
				f.leave(name, left)
			}
		}
	}
	for _, name := range u.Removed {
		f.leave(name, left)
	}
	var ids []string
	for _, s := range u.Services {
		f.leave(s.Name, left)
		fresh = f.enter(s, fresh)
		ids = append(ids, f.services[s.Name]...)
	}
	var gone []string
	for id := range left {
		if len(f.checks[id]) == 0 {
			delete(f.checks, id)
			gone = append(gone, id)
		}
	}
	f.mu.Unlock()
	if err := f.engine.Update(fresh, gone); err != nil {
		return err
	}
	f.engine.Announce(f.disputed(ids)...)
	return nil
}

// leave takes a service's backends off their checks. The caller holds mu.
func (f *follower) leave(name string, left map[string]bool) {
	for _, id := range f.services[name] {
		for u := range f.checks[id] {
			if u.service == name {
				delete(f.checks[id], u)
			}
		}
		left[id] = true
	}
	delete(f.services, name)
}

// enter puts a service's backends on their checks, and adds those that nobody
// has run yet to fresh. The caller holds mu.
func (f *follower) enter(s lbstate.ServiceStatus, fresh []healthcheck.Check) []healthcheck.Check {
	stored := make(map[netip.AddrPort]verdict, len(s.Backends))
	for _, b := range s.Backends {
		if b.Health != nil {
			stored[b.AddrPort()] = verdict{b.Health.State, b.Health.Held}
		}
	}
	for _, c := range s.Checks() {
		id := name(c)
		users := f.checks[id]
		if users == nil {
			check, err := f.probes.checkOf(id, c, stored[c.Backend].state)
			if err != nil {
				f.log.Error("a check cannot be run; its backend keeps its state",
					zap.String("service", c.Service), zap.Stringer("backend", c.Backend), zap.Error(err))
				continue
			}
			if cannot, is := check.Probe.(*unrunnable); is {
				f.cannot(c, cannot.why)
			}
			fresh = append(fresh, check)
			users = map[user]verdict{}
			f.checks[id] = users
		}
		users[user{c.Service, c.Backend, c.Hash}] = stored[c.Backend]
		f.services[s.Name] = append(f.services[s.Name], id)
	}
	return fresh
}

// maxTold bounds what the log says of checks that cannot be run.
const maxTold = 64

// cannot logs each reason once: thousands of checks may have the same. The
// caller holds mu.
func (f *follower) cannot(c lbstate.ResolvedCheck, why error) {
	if text := why.Error(); !f.told[text] && len(f.told) < maxTold {
		f.told[text] = true
		f.log.Warn("a check cannot be run here, nor any like it; its results are inconclusive",
			zap.String("service", c.Service), zap.Stringer("backend", c.Backend), zap.String("type", c.Check.Type), zap.Error(why))
	}
}

// disputed returns those checks that have found by themselves what the store
// does not have.
func (f *follower) disputed(ids []string) []string {
	var out []string
	for _, id := range ids {
		st, ok := f.engine.Status(id)
		if !ok || !st.Confirmed {
			continue
		}
		f.mu.Lock()
		for _, stored := range f.checks[id] {
			if stored != (verdict{fromEngine(st.State), st.Held}) {
				out = append(out, id)
				break
			}
		}
		f.mu.Unlock()
	}
	return out
}

// report is the engine's sink.
func (f *follower) report(ctx context.Context, batch []healthcheck.Transition) error {
	var out []lbstate.HealthTransition
	f.mu.Lock()
	for _, t := range batch {
		to := verdict{fromEngine(t.To), t.Held}
		for u, stored := range f.checks[t.ID] {
			// What the store has already need not travel through the log. Should
			// it have changed meanwhile, the watch says so, and update acts.
			if t.From == t.To && stored == to || to.state == lbstate.Unknown {
				continue
			}
			message := ""
			if to.state == lbstate.Down || to.held {
				message = t.Result.String()
			}
			out = append(out, lbstate.HealthTransition{
				Service: u.service, Backend: u.backend, CheckHash: u.hash,
				Term: f.term, To: to.state, Held: to.held, At: t.At, Message: message,
			})
		}
	}
	f.mu.Unlock()
	for part := range slices.Chunk(out, maxReport) {
		if err := f.store.ReportHealth(ctx, part); err != nil {
			return err
		}
	}
	return nil
}
