package lbstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// staged are the services that a transaction leaves of those that it names, by
// what they may not share.
type staged struct {
	named     map[string]bool // those that it decides about, deleted ones too
	listeners map[string][]string
	vips      map[netip.Addr][]string
	targets   map[netip.Addr][]string
	uses      map[string][]string // by shared check
}

// left is what the transaction leaves, worked out when it is first asked for: an
// edit that moves no address never does. All changes must have been stamped.
func (t *txn) left() *staged {
	if t.staged == nil {
		t.staged = t.stage()
	}
	return t.staged
}

func (t *txn) stage() *staged {
	s := &staged{map[string]bool{}, map[string][]string{}, map[netip.Addr][]string{}, map[netip.Addr][]string{}, map[string][]string{}}
	for _, ref := range t.order {
		if ref.Kind != KindService {
			continue
		}
		s.named[ref.Name] = true
		service := t.changes[ref].new.Service
		if service == nil {
			continue
		}
		listener := service.listenerKey()
		s.listeners[listener] = append(s.listeners[listener], ref.Name)
		if service.VIP.IsValid() {
			s.vips[service.VIP] = append(s.vips[service.VIP], ref.Name)
		}
		for _, addr := range service.targets() {
			s.targets[addr] = append(s.targets[addr], ref.Name)
		}
		for check := range service.uses() {
			s.uses[check] = append(s.uses[check], ref.Name)
		}
	}
	return s
}

// conflicts names what an object may not be beside the others, in the state
// that the transaction will leave. Each look-up goes by an index, so the cost
// does not grow with the number of services. These rules are part of command
// version 1: to change one is to raise the version.
func (t *txn) conflicts(c *change) ([]Fault, error) {
	switch {
	case c.ref.Kind == KindCheck && !c.new.exists():
		return t.unusedCheck(c.ref.Name)
	case c.ref.Kind != KindService || !c.new.exists():
		return nil, nil
	}
	s := *c.new.Service
	// What the service had before it may have again: whoever comes to share it
	// in this transaction finds out for itself.
	var before Service
	if c.old.exists() {
		before = *c.old.Service
	}
	var f faults
	if !c.old.exists() || before.listenerKey() != s.listenerKey() {
		if err := t.uniqueListener(&f, s); err != nil {
			return nil, err
		}
	}
	if s.VIP.IsValid() && s.VIP != before.VIP {
		other, err := t.other(targetsBucket, t.left().targets, s.VIP, s.Name)
		if err != nil {
			return nil, err
		}
		if other != "" {
			f.add("vip", s.VIP, "", fmt.Sprintf("%s is a backend of service %s; a VIP cannot be a backend", s.VIP, other))
		}
	}
	had := before.targets()
	stays := func(addr netip.Addr) bool { // and so was found to be fine before
		_, ok := slices.BinarySearchFunc(had, addr, netip.Addr.Compare)
		return ok && addr != s.VIP
	}
	target := func(path string, addr netip.Addr) error {
		if addr == s.VIP {
			f.add(path, addr, "", "is the service's own VIP")
		}
		if _, ok := slices.BinarySearchFunc(had, addr, netip.Addr.Compare); ok {
			return nil
		}
		other, err := t.other(vipsBucket, t.left().vips, addr, s.Name)
		if other != "" {
			f.add(path, addr, "", fmt.Sprintf("%s is the VIP of service %s; a VIP cannot be a backend", addr, other))
		}
		return err
	}
	for i, b := range s.Backends {
		if stays(b.Address) {
			continue
		}
		if err := target(fmt.Sprintf("backends[%d].address", i), b.Address); err != nil {
			return nil, err
		}
	}
	if s.SorryServer != nil {
		if err := target("sorry_server.address", s.SorryServer.Address); err != nil {
			return nil, err
		}
	}
	err := t.knownChecks(&f, s)
	return f, err
}

func (t *txn) uniqueListener(f *faults, s Service) error {
	listener := s.listenerKey()
	owner, err := t.get(listenersBucket, []byte(listener))
	if err != nil {
		return err
	}
	other := string(owner)
	if t.left().named[other] {
		other = ""
	}
	other = first(other, t.left().listeners[listener], s.Name)
	if other != "" {
		path := "vip"
		if s.FWMark != 0 {
			path = "fwmark"
		}
		f.add(path, listener, "a listener of its own", fmt.Sprintf("service %s has the listener %s already", other, listener))
	}
	return nil
}

// other returns a service other than one that an address belongs to, by an
// index or within this transaction; "" where there is none.
func (t *txn) other(bucket []byte, within map[netip.Addr][]string, addr netip.Addr, name string) (string, error) {
	other, err := t.owner(bucket, addr, func(o string) bool { return o == name || t.left().named[o] })
	return first(other, within[addr], name), err
}

// first returns other, or else the first of names that is not one's own.
func first(other string, names []string, own string) string {
	if other != "" {
		return other
	}
	for _, name := range names {
		if name != own {
			return name
		}
	}
	return ""
}

func (t *txn) knownChecks(f *faults, s Service) error {
	uses := s.uses()
	if len(uses) == 0 {
		return nil
	}
	missing := map[string]bool{}
	for name := range uses {
		ref := Ref{KindCheck, name}
		if c, ok := t.changes[ref]; ok {
			missing[name] = !c.new.exists()
			continue
		}
		body, err := t.get(objectsBucket, []byte(ref.String()))
		if err != nil {
			return err
		}
		missing[name] = body == nil
	}
	use := func(path string, c *HealthCheck) {
		f.add(path+".use", c.Use, "the name of a shared check", fmt.Sprintf("there is no check %q", c.Use))
	}
	if c := s.HealthCheck; c != nil && missing[c.Use] {
		use("health_check", c)
	}
	for i, b := range s.Backends {
		if c := b.HealthCheck; c != nil && missing[c.Use] {
			use(fmt.Sprintf("backends[%d].health_check", i), c)
		}
	}
	return nil
}

// unusedCheck refuses to delete a check that a service uses.
func (t *txn) unusedCheck(name string) ([]Fault, error) {
	users, err := t.under(usesBucket, name)
	if err != nil {
		return nil, err
	}
	users = slices.DeleteFunc(users, func(o string) bool { return t.left().named[o] })
	users = append(users, t.left().uses[name]...)
	if len(users) == 0 {
		return nil, nil
	}
	slices.Sort(users)
	more := ""
	if n := len(users); n > 5 {
		users, more = users[:5], fmt.Sprintf(" and %d more", n-5)
	}
	return []Fault{{Path: "name", Found: name, Reason: fmt.Sprintf("check %s is used by service %s%s", name, strings.Join(users, ", "), more)}}, nil
}
