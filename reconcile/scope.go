package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// scope decides what is ours in one kernel at one moment. Everything that is
// deleted or changed passes owns.
type scope struct {
	marks  MarkRange
	record *record
	forget bool                  // a released VIP is no longer ours
	bound  map[netip.Addr]bool   // on our interface
	held   map[netip.Addr]string // on another interface, by its name
}

// owns says whether a service is ours. An address on our interface is, and one
// in the journal unless another interface holds it: then only the services that
// the journal names.
func (s *scope) owns(k Key) bool {
	switch {
	case k.FWMark != 0:
		return s.marks.Contains(k.FWMark)
	case s.record.Foreign[k]:
		return false
	case s.bound[k.Addr]:
		return true
	case s.held[k.Addr] != "":
		return s.record.Own[k]
	}
	return s.record.VIPs[k.Addr]
}

// ourLink finds our interface among links. An interface of our name without our
// alias is adopted if it is a dummy without an alias whose every address is
// wanted or was ours before: another is in the way, which err says.
func ourLink(name string, links []Link, services []DesiredService, rec *record) (link Link, exists bool, err error) {
	at := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
	if at < 0 {
		return Link{}, false, nil
	}
	l := links[at]
	if l.Alias == Alias {
		return l, true, nil
	}
	if l.Kind != "dummy" || l.Alias != "" {
		return Link{}, true, fmt.Errorf("an interface of this name exists and is not ours (kind %q, alias %q); choose another name, or if it may be used: ip link set dev %s alias %s",
			l.Kind, l.Alias, name, Alias)
	}
	wanted := map[netip.Addr]bool{}
	for i := range services {
		wanted[services[i].Addr] = true
	}
	var strange []string
	for _, p := range l.Addresses {
		a := p.Addr()
		if !a.IsLinkLocalUnicast() && !wanted[a] && !rec.VIPs[a] {
			strange = append(strange, a.String())
		}
	}
	if len(strange) > 0 {
		return Link{}, true, fmt.Errorf("a dummy interface of this name exists with addresses that no service has (%s); remove them, or if all on it may be managed: ip link set dev %s alias %s",
			strings.Join(strange, ", "), name, Alias)
	}
	return l, true, nil
}

// claim notes in rec what must be ours before the first operation, and returns
// the services that collide with someone else's.
func (s *scope) claim(rec *record, services []DesiredService, actual []Key) map[Key]bool {
	exists := make(map[Key]bool, len(actual))
	byVIP := map[netip.Addr][]Key{}
	for _, k := range actual {
		exists[k] = true
		if k.FWMark == 0 {
			byVIP[k.Addr] = append(byVIP[k.Addr], k)
		}
	}
	// What was someone else's and is gone can be ours the next time.
	for k := range rec.Foreign {
		if !exists[k] {
			delete(rec.Foreign, k)
		}
	}
	// What is on our interface stays ours if someone deletes the interface.
	for vip := range s.bound {
		rec.VIPs[vip] = true
	}
	if s.forget {
		wanted := make(map[netip.Addr]bool, len(services))
		for i := range services {
			wanted[services[i].Addr] = true
		}
		for vip := range rec.VIPs {
			if !wanted[vip] && !s.bound[vip] && len(byVIP[vip]) == 0 {
				delete(rec.VIPs, vip)
			}
		}
	}
	for i := range services {
		vip := services[i].Addr
		if !vip.IsValid() || rec.VIPs[vip] {
			continue
		}
		for _, k := range byVIP[vip] {
			rec.Foreign[k] = true
		}
		rec.VIPs[vip] = true
	}
	collisions := map[Key]bool{}
	own := map[Key]bool{}
	for i := range services {
		k := services[i].Key
		held := k.FWMark == 0 && !s.bound[k.Addr] && s.held[k.Addr] != ""
		switch {
		case exists[k] && (rec.Foreign[k] || held && !rec.Own[k]):
			collisions[k] = true
		case held:
			own[k] = true
		}
	}
	for k := range rec.Own {
		if exists[k] {
			own[k] = true
		}
	}
	rec.Own = own
	return collisions
}
