package lbstate

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

// Outcome of a write.
const (
	Created   = "created"
	Changed   = "changed"
	Unchanged = "unchanged"
	Deleted   = "deleted"
)

// WriteResult says what a write did. Revision is the state's revision that the
// write made, or for an unchanged object the one it has.
type WriteResult struct {
	Revision uint64  `json:"revision"`
	Outcome  string  `json:"outcome"`
	Warnings []Fault `json:"warnings,omitempty"`
}

// table is a view that is being changed by one command.
type table struct {
	view
	at  int64 // Unix milliseconds, by the proposer's clock
	rev uint64
}

// Apply applies commands; see the package documentation. The result for each
// is a WriteResult, or the error that refuses it.
func (s *State) Apply(tx *bbolt.Tx, term, _ uint64, cmds [][]byte) ([]any, error) {
	root, err := tx.CreateBucketIfNotExists([]byte(Bucket))
	if err != nil {
		return nil, err
	}
	for _, b := range [][]byte{servicesBucket, listenersBucket, vipsBucket, targetsBucket, healthBucket, changesBucket, metaBucket} {
		if _, err := root.CreateBucketIfNotExists(b); err != nil {
			return nil, err
		}
	}
	results := make([]any, len(cmds))
	for i, data := range cmds {
		c, err := decodeCommand(data)
		if err != nil {
			return nil, err
		}
		t := &table{view: view{root}, at: c.At, rev: revisionIn(root) + 1}
		res, err := t.apply(c, term)
		var refusal refused
		switch {
		case errors.As(err, &refusal):
			results[i] = refusal.error
		case err != nil:
			return nil, err
		default:
			results[i] = res
		}
	}
	return results, nil
}

// refused marks an error that is a command's result: the rules forbid it.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

func (t *table) apply(c command, term uint64) (WriteResult, error) {
	switch {
	case c.PutService != nil:
		return t.putService(*c.PutService, c.IfRevision)
	case c.DeleteService != "":
		return t.deleteService(c.DeleteService, c.IfRevision)
	case c.PutBackend != nil:
		return t.editBackends(c.PutBackend.Service, c.IfRevision, func(s *Service) error {
			b := c.PutBackend.Backend.withDefaults(*s)
			for i := range s.Backends {
				if s.Backends[i].Key() == b.Key() {
					s.Backends[i] = b
					return nil
				}
			}
			if len(s.Backends) >= maxBackends {
				return refused{&ValidationError{[]Fault{{Path: "backends", Reason: fmt.Sprintf("a service has at most %d", maxBackends)}}}}
			}
			s.Backends = append(s.Backends, b)
			return nil
		})
	case c.DeleteBackend != nil:
		return t.editBackends(c.DeleteBackend.Service, c.IfRevision, func(s *Service) error {
			n := len(s.Backends)
			s.Backends = slices.DeleteFunc(s.Backends, func(b Backend) bool { return b.Key() == c.DeleteBackend.Backend })
			if len(s.Backends) == n {
				return refused{fmt.Errorf("backend %s of service %s: %w", c.DeleteBackend.Backend, s.Name, ErrNotFound)}
			}
			return nil
		})
	default:
		return t.reportHealth(c.ReportHealth, term)
	}
}

func precondition(name string, current uint64, wanted *uint64) error {
	if wanted != nil && *wanted != current {
		return refused{&ConflictError{Object: "service " + name, Current: current, Wanted: *wanted}}
	}
	return nil
}

func (t *table) editBackends(name string, ifRevision *uint64, edit func(*Service) error) (WriteResult, error) {
	s, ok, err := t.service(name)
	if err != nil {
		return WriteResult{}, err
	}
	if !ok {
		return WriteResult{}, refused{fmt.Errorf("service %s: %w", name, ErrNotFound)}
	}
	if err := precondition(name, s.Revision, ifRevision); err != nil {
		return WriteResult{}, err
	}
	if err := edit(&s); err != nil {
		return WriteResult{}, err
	}
	return t.putService(s, nil)
}

func (t *table) putService(s Service, ifRevision *uint64) (WriteResult, error) {
	old, exists, err := t.service(s.Name)
	if err != nil {
		return WriteResult{}, err
	}
	if err := precondition(s.Name, old.Revision, ifRevision); err != nil {
		return WriteResult{}, err
	}
	s.Revision = old.Revision
	if exists && equalJSON(s, old) {
		return WriteResult{Revision: old.Revision, Outcome: Unchanged}, nil
	}
	if faults := t.conflicts(s); len(faults) > 0 {
		return WriteResult{}, refused{&ValidationError{faults}}
	}
	if exists {
		if err := t.unindex(old); err != nil {
			return WriteResult{}, err
		}
	}
	if err := t.index(s); err != nil {
		return WriteResult{}, err
	}
	if err := t.keepHealth(old, s, exists); err != nil {
		return WriteResult{}, err
	}
	s.Revision = t.rev
	b, err := seal(s)
	if err != nil {
		return WriteResult{}, err
	}
	if err := t.root.Bucket(servicesBucket).Put([]byte(s.Name), b); err != nil {
		return WriteResult{}, err
	}
	outcome := Created
	if exists {
		outcome = Changed
	}
	return WriteResult{Revision: t.rev, Outcome: outcome}, t.record(s.Name)
}

func (t *table) deleteService(name string, ifRevision *uint64) (WriteResult, error) {
	old, exists, err := t.service(name)
	if err != nil {
		return WriteResult{}, err
	}
	if !exists {
		return WriteResult{}, refused{fmt.Errorf("service %s: %w", name, ErrNotFound)}
	}
	if err := precondition(name, old.Revision, ifRevision); err != nil {
		return WriteResult{}, err
	}
	if err := t.unindex(old); err != nil {
		return WriteResult{}, err
	}
	if err := t.root.Bucket(healthBucket).Delete([]byte(name)); err != nil {
		return WriteResult{}, err
	}
	if err := t.root.Bucket(servicesBucket).Delete([]byte(name)); err != nil {
		return WriteResult{}, err
	}
	return WriteResult{Revision: t.rev, Outcome: Deleted}, t.record(name)
}

// keepHealth carries the health over a change of configuration. A backend
// whose check changed keeps its state until the new check's own rise or fall;
// one that was in service before it had a check stays so; a new one is unknown.
func (t *table) keepHealth(old, s Service, existed bool) error {
	h, err := t.health(s.Name)
	if err != nil {
		return err
	}
	before := map[string]bool{} // backend → had a check
	for _, b := range old.Backends {
		before[b.Key()] = old.check(b) != nil
	}
	kept := serviceHealth{Version: h.Version, Backends: map[string]BackendHealth{}}
	for _, b := range s.Backends {
		if s.check(b) == nil {
			continue
		}
		key := b.Key()
		if state, ok := h.Backends[key]; ok {
			kept.Backends[key] = state
		} else if hadCheck, was := before[key]; existed && was && !hadCheck {
			kept.Backends[key] = BackendHealth{State: Up, Since: t.at, Message: "in service before it had a check"}
		}
	}
	if len(kept.Backends) == 0 {
		return t.root.Bucket(healthBucket).Delete([]byte(s.Name))
	}
	return t.putHealth(s.Name, kept)
}

func (t *table) putHealth(name string, h serviceHealth) error {
	b, err := seal(h)
	if err != nil {
		return err
	}
	return t.root.Bucket(healthBucket).Put([]byte(name), b)
}

// reportHealth applies transitions. One that was made in another term than the
// entry's, or for a check that has changed since, is dropped.
func (t *table) reportHealth(reports []healthReport, term uint64) (WriteResult, error) {
	changed := map[string]serviceHealth{}
	services := map[string]Service{}
	for _, r := range reports {
		if r.Term != term {
			continue
		}
		s, loaded := services[r.Service]
		if !loaded {
			var err error
			if s, _, err = t.service(r.Service); err != nil {
				return WriteResult{}, err
			}
			services[r.Service] = s
		}
		i := slices.IndexFunc(s.Backends, func(b Backend) bool { return b.Key() == r.Backend })
		if i < 0 {
			continue
		}
		check := s.check(s.Backends[i])
		if check == nil || CheckHash(*check, s.Backends[i].AddrPort()) != r.CheckHash {
			continue
		}
		h, ok := changed[r.Service]
		if !ok {
			var err error
			if h, err = t.health(r.Service); err != nil {
				return WriteResult{}, err
			}
		}
		if h.Backends[r.Backend].State == r.To {
			continue // reported again: the outcome of the first report was unknown
		}
		h.Backends[r.Backend] = BackendHealth{State: r.To, Since: r.At, Message: r.Message}
		h.Version = t.rev
		changed[r.Service] = h
	}
	if len(changed) == 0 {
		return WriteResult{Revision: t.rev - 1, Outcome: Unchanged}, nil
	}
	names := make([]string, 0, len(changed))
	for name := range changed {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := t.putHealth(name, changed[name]); err != nil {
			return WriteResult{}, err
		}
	}
	return WriteResult{Revision: t.rev, Outcome: Changed}, t.record(names...)
}

// record makes the command's revision and drops the oldest that is kept no
// longer.
func (t *table) record(names ...string) error {
	b, err := seal(names)
	if err != nil {
		return err
	}
	changes := t.root.Bucket(changesBucket)
	changes.FillPercent = 1 // keys only ever grow
	if err := changes.Put(revisionKey(t.rev), b); err != nil {
		return err
	}
	if t.rev > DefaultRetainChanges {
		if err := changes.Delete(revisionKey(t.rev - DefaultRetainChanges)); err != nil {
			return err
		}
	}
	return t.root.Bucket(metaBucket).Put(revisionMeta, revisionKey(t.rev))
}

// pairKey indexes a service's name under an address.
func pairKey(addr netip.Addr, name string) []byte { return []byte(addr.String() + "\x00" + name) }

func (t *table) index(s Service) error {
	if err := t.root.Bucket(listenersBucket).Put([]byte(s.listenerKey()), []byte(s.Name)); err != nil {
		return err
	}
	if s.VIP.IsValid() {
		if err := t.root.Bucket(vipsBucket).Put(pairKey(s.VIP, s.Name), nil); err != nil {
			return err
		}
	}
	for _, b := range s.Backends {
		if err := t.root.Bucket(targetsBucket).Put(pairKey(b.Address, s.Name), nil); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) unindex(s Service) error {
	if err := t.root.Bucket(listenersBucket).Delete([]byte(s.listenerKey())); err != nil {
		return err
	}
	if s.VIP.IsValid() {
		if err := t.root.Bucket(vipsBucket).Delete(pairKey(s.VIP, s.Name)); err != nil {
			return err
		}
	}
	for _, b := range s.Backends {
		if err := t.root.Bucket(targetsBucket).Delete(pairKey(b.Address, s.Name)); err != nil {
			return err
		}
	}
	return nil
}

// conflicts names what a service may not share with the others. Each look-up
// goes by an index, so the cost does not grow with the number of services.
func (v view) conflicts(s Service) []Fault {
	if v.root == nil {
		return nil
	}
	var faults []Fault
	if other := v.root.Bucket(listenersBucket).Get([]byte(s.listenerKey())); other != nil && string(other) != s.Name {
		path := "vip"
		if s.FWMark != 0 {
			path = "fwmark"
		}
		faults = append(faults, Fault{Path: path, Found: s.listenerKey(), Reason: fmt.Sprintf("service %s has this listener already", other)})
	}
	if s.VIP.IsValid() {
		if other := v.owner(targetsBucket, s.VIP, s.Name); other != "" {
			faults = append(faults, Fault{Path: "vip", Found: s.VIP.String(), Reason: fmt.Sprintf("is a backend of service %s; a VIP cannot be a backend", other)})
		}
	}
	for i, b := range s.Backends {
		if other := v.owner(vipsBucket, b.Address, ""); other != "" && other != s.Name {
			faults = append(faults, Fault{Path: fmt.Sprintf("backends[%d].address", i), Found: b.Address.String(), Reason: fmt.Sprintf("is the VIP of service %s; a VIP cannot be a backend", other)})
		}
	}
	return faults
}

// owner returns the first service but one that an address is indexed under.
func (v view) owner(bucket []byte, addr netip.Addr, but string) string {
	prefix := []byte(addr.String() + "\x00")
	c := v.root.Bucket(bucket).Cursor()
	for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if name := strings.TrimPrefix(string(k), string(prefix)); name != but {
			return name
		}
	}
	return ""
}
