package lbstate

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// healthKey is where the health of a service's backend rests.
func healthKey(service string, backend netip.AddrPort) []byte {
	return pairKey(service, backend.String())
}

// keepHealth carries the health over a change of configuration. A backend
// whose check changed keeps its state until the new check's own rise or fall;
// one that was in service before it had a check stays so; a new one is unknown.
// Either form of the service may be nil.
func (t *table) keepHealth(old, now *Service) error {
	if old != nil && now != nil && slices.EqualFunc(old.Backends, now.Backends, func(a, b Backend) bool {
		return a.AddrPort() == b.AddrPort() && (old.checkOf(a) == nil) == (now.checkOf(b) == nil)
	}) {
		return nil
	}
	checked := map[netip.AddrPort]bool{} // of the old form: backend → had a check
	if old != nil {
		for _, b := range old.Backends {
			checked[b.AddrPort()] = old.checkOf(b) != nil
		}
	}
	stays := map[netip.AddrPort]bool{}
	if now != nil {
		for _, b := range now.Backends {
			if now.checkOf(b) == nil {
				continue
			}
			key := b.AddrPort()
			stays[key] = true
			if had, was := checked[key]; was && !had {
				p := &lbstatepb.BackendHealth{State: string(Up), Since: t.at, Message: "in service before it had a check", Version: t.revision}
				if err := t.putHealth(now.Name, key, p); err != nil {
					return err
				}
			}
		}
	}
	if old == nil {
		return nil
	}
	for _, b := range old.Backends {
		if key := b.AddrPort(); checked[key] && !stays[key] {
			if err := t.delete(healthBucket, healthKey(old.Name, key)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *table) putHealth(service string, backend netip.AddrPort, p *lbstatepb.BackendHealth) error {
	body, err := encode(p)
	if err != nil {
		return err
	}
	return t.put(healthBucket, healthKey(service, backend), body)
}

// reportHealth applies transitions. One that was made in another term than the
// entry's, or for a check that is no longer the backend's, is dropped.
func (t *table) reportHealth(transitions []*lbstatepb.HealthTransition) (BatchResult, error) {
	services := map[string]*checkedService{}
	changed := map[string]bool{}
	rev := t.revision + 1
	for _, r := range transitions {
		addr, ok := netip.AddrFromSlice(r.GetAddress())
		if !ok || r.GetTerm() != t.term || !slices.Contains([]HealthState{Up, Down}, HealthState(r.GetTo())) {
			continue
		}
		s, ok := services[r.GetService()]
		if !ok {
			var err error
			if s, err = t.checked(r.GetService()); err != nil {
				return BatchResult{}, err
			}
			services[r.GetService()] = s
		}
		backend := netip.AddrPortFrom(addr, uint16(r.GetPort()))
		if hash, ok := s.hash(backend); !ok || hash != r.GetCheckHash() {
			continue
		}
		key := healthKey(r.GetService(), backend)
		var before lbstatepb.BackendHealth
		if _, err := t.message(healthBucket, key, &before); err != nil {
			return BatchResult{}, err
		}
		if before.GetState() == r.GetTo() && before.GetHeld() == r.GetHeld() {
			continue // reported again: the outcome of the first report was unknown
		}
		err := t.putHealth(r.GetService(), backend, &lbstatepb.BackendHealth{
			State: r.GetTo(), Since: r.GetAt(), Message: r.GetMessage(), Held: r.GetHeld(), Version: rev,
		})
		if err != nil {
			return BatchResult{}, err
		}
		changed[r.GetService()] = true
	}
	if len(changed) == 0 {
		return BatchResult{Revision: t.revision, Outcome: Unchanged}, nil
	}
	t.revision = rev
	names := make([]string, 0, len(changed))
	for name := range changed {
		names = append(names, Ref{KindService, name}.String())
	}
	slices.Sort(names)
	return BatchResult{Revision: rev, Outcome: Changed}, t.publish(names)
}

// checkedService is a service with the shared checks that it uses; nil where
// there is none.
type checkedService struct {
	Service
	shared map[string]SharedCheck
}

func (v view) checked(name string) (*checkedService, error) {
	r, ok, err := v.record(Ref{KindService, name})
	if err != nil || !ok {
		return nil, err
	}
	shared, err := v.sharedChecks(*r.Service)
	return &checkedService{*r.Service, shared}, err
}

// hash is that of the check of a backend.
func (s *checkedService) hash(backend netip.AddrPort) (uint64, bool) {
	if s == nil {
		return 0, false
	}
	i := slices.IndexFunc(s.Backends, func(b Backend) bool { return b.AddrPort() == backend })
	if i < 0 {
		return 0, false
	}
	check := s.resolve(s.Backends[i], s.shared)
	if check == nil {
		return 0, false
	}
	return CheckHash(*check, backend), true
}

// health returns the stored health of a service's backends, and the revision
// of its last change.
func (v view) health(service string) (map[netip.AddrPort]BackendHealth, uint64, error) {
	var version uint64
	var health map[netip.AddrPort]BackendHealth
	err := v.prefixed(healthBucket, pairKey(service, ""), func(key, body []byte) (bool, error) {
		var p lbstatepb.BackendHealth
		backend, err := netip.ParseAddrPort(string(key))
		if err == nil {
			err = proto.Unmarshal(body, &p)
		}
		if err != nil {
			return false, damaged(healthBucket, pairKey(service, string(key)), err.Error())
		}
		if health == nil {
			health = map[netip.AddrPort]BackendHealth{}
		}
		health[backend] = BackendHealth{State: HealthState(p.GetState()), Since: p.GetSince(), Message: p.GetMessage(), Held: p.GetHeld()}
		version = max(version, p.GetVersion())
		return true, nil
	})
	return health, version, err
}
