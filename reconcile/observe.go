package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// reader reads a kernel and keeps what it read, so that the next reading can be
// confined to what has been touched since.
type reader struct {
	kernel   Kernel
	cfg      Config
	services map[Key]ServiceState // every service, foreign ones too; nil: unknown
	print    uint64               // Fingerprint of services
	keys     []Key                // of services, sorted; nil: not known
	counted  map[Key]bool         // services whose connections were counted since recount
	ipvs     *IPVS                // nil: unknown
	links    []Link
	chains   map[ChainKey]Chain
	chainErr map[ChainKey]error
	sysctls  map[string]string
}

// forget makes the next reading a whole one.
func (r *reader) forget() {
	r.services, r.keys, r.ipvs, r.links, r.chains, r.sysctls = nil, nil, nil, nil, nil, nil
}

// recount begins a time in which connections are counted anew.
func (r *reader) recount() { clear(r.counted) }

// whole says that everything is known.
func (r *reader) whole() bool {
	return r.services != nil && r.ipvs != nil && r.links != nil && r.chains != nil && r.sysctls != nil
}

// read brings what is kept up to date: all that is not known.
func (r *reader) read(ctx context.Context, w *wanted, rec *record) error {
	if r.counted == nil {
		r.counted = map[Key]bool{}
	}
	services := w.services
	if r.services == nil {
		list, err := r.kernel.Services(ctx)
		if err != nil {
			return fmt.Errorf("list services: %w", err)
		}
		r.services = make(map[Key]ServiceState, len(list))
		for _, s := range list {
			sortDestinations(s.Destinations)
			r.services[s.Key] = s
			r.counted[s.Key] = true
		}
		r.print, r.keys = Fingerprint(list), nil
	}
	if r.ipvs == nil {
		state, err := r.kernel.IPVS(ctx)
		if err != nil {
			return fmt.Errorf("read IPVS's settings: %w", err)
		}
		r.ipvs = &state
	}
	if r.links == nil {
		links, err := r.kernel.Links(ctx)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		r.links = links
	}
	if err := r.readChains(ctx, services, rec); err != nil {
		return err
	}
	if r.sysctls == nil {
		r.sysctls = map[string]string{}
	}
	names := []string{keepAddresses(r.cfg.DummyName)}
	names = append(names, slices.Sorted(maps.Keys(rec.Before.Sysctls))...)
	for _, s := range r.cfg.settings(services) {
		names = append(names, s.name)
		if s.name == "net/ipv6/conf/all/forwarding" {
			for _, l := range r.links {
				if l.Name != "lo" && l.Name != r.cfg.DummyName {
					names = append(names, acceptRA(l.Name))
				}
			}
		}
	}
	for _, name := range names {
		if _, known := r.sysctls[name]; known {
			continue
		}
		v, err := r.kernel.Sysctl(ctx, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read sysctl %s: %w", name, err)
		}
		r.sysctls[name] = v
	}
	return nil
}

// readChains reads those chains that are needed or may be left from before. A
// table that nobody uses costs every packet something, and reading makes it.
func (r *reader) readChains(ctx context.Context, services []DesiredService, rec *record) error {
	if r.chains == nil {
		r.chains, r.chainErr = map[ChainKey]Chain{}, map[ChainKey]error{}
	}
	used := map[ChainKey]bool{} // true: a service needs it now
	for i := range services {
		s := &services[i]
		used[ChainKey{NAT, s.Family}] = used[ChainKey{NAT, s.Family}] || s.SNAT != SNATOff
	}
	for vip := range rec.VIPs {
		if k := (ChainKey{NAT, FamilyOf(vip)}); !used[k] {
			used[k] = false
		}
	}
	if r.cfg.ProtectVIPs || rec.Protected {
		used[ChainKey{Filter, IPv4}], used[ChainKey{Filter, IPv6}] = r.cfg.ProtectVIPs, r.cfg.ProtectVIPs
	}
	for _, k := range allChains {
		needed, use := used[k]
		_, known := r.chains[k]
		if !use || known && (r.chainErr[k] == nil || !needed) {
			continue
		}
		chain, err := r.kernel.Chain(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.chains[k], r.chainErr[k] = chain, err
	}
	return nil
}

// touch reads again what operations worked on, whether they failed or not: done
// are those of tried that did not.
func (r *reader) touch(ctx context.Context, tried, done []*Op) error {
	keys := map[Key]bool{}
	for i := range tried {
		switch op := tried[i]; op.Kind {
		case Zero:
		case SetSysctl:
			delete(r.sysctls, op.Name)
		case SetChain, DelChain:
			delete(r.chains, op.Chain.ChainKey)
		case SetTimeouts, StartDaemon, StopDaemon:
			r.ipvs = nil
		case AddService, SetService, DelService, AddDestination, SetDestination, DelDestination:
			keys[op.Service.Key] = true
		default:
			r.links = nil
			delete(r.sysctls, keepAddresses(r.cfg.DummyName))
		}
	}
	if len(keys) <= 16 || r.services == nil {
		for k := range keys {
			if err := r.readService(ctx, k); err != nil {
				return err
			}
		}
		return nil
	}
	// One listing is cheaper than many questions, and the cheap one tells whether
	// what was acknowledged is there. What it does not show was in the same
	// messages as what it does.
	r.predict(done)
	found, err := r.kernel.Fingerprint(ctx)
	if err != nil {
		return fmt.Errorf("read the services' fingerprint: %w", err)
	}
	if found != r.print {
		r.services = nil
	}
	return nil
}

// predict does to what is kept what the operations did to the kernel. Connections
// are not counted by it.
func (r *reader) predict(done []*Op) {
	r.keys = nil
	touched := map[Key]bool{}
	change := func(k Key) {
		if old, ok := r.services[k]; ok && !touched[k] {
			r.print -= Fingerprint([]ServiceState{old})
		}
		touched[k] = true
		delete(r.counted, k)
	}
	for _, op := range done {
		if !op.Kind.ofService() {
			continue
		}
		k := op.Service.Key
		change(k)
		s, exists := r.services[k]
		at, found := slices.BinarySearchFunc(s.Destinations, op.Dest.AddrPort(), func(d DestinationState, a netip.AddrPort) int {
			return d.AddrPort().Compare(a)
		})
		switch op.Kind {
		case AddService, SetService:
			s.Service = op.Service.Normal()
			r.services[k] = s
		case DelService:
			delete(r.services, k)
		case AddDestination:
			if exists && !found {
				s.Destinations = slices.Insert(s.Destinations, at, DestinationState{Destination: op.Dest.Normal()})
				r.services[k] = s
			}
		case SetDestination:
			if found {
				s.Destinations[at].Destination = op.Dest.Normal()
			}
		case DelDestination:
			if found {
				s.Destinations = slices.Delete(s.Destinations, at, at+1)
				r.services[k] = s
			}
		}
	}
	for k := range touched {
		if s, ok := r.services[k]; ok {
			r.print += Fingerprint([]ServiceState{s})
		}
	}
}

func (r *reader) readService(ctx context.Context, k Key) error {
	s, err := r.kernel.Service(ctx, k)
	missing := IsMissing(err)
	if err != nil && !missing {
		r.services = nil // what is kept is not whole
		return fmt.Errorf("read service %s: %w", k, err)
	}
	r.counted[k] = true
	old, had := r.services[k]
	if had {
		r.print -= Fingerprint([]ServiceState{old})
	}
	if had == missing {
		r.keys = nil
	}
	if missing {
		delete(r.services, k)
		return nil
	}
	sortDestinations(s.Destinations)
	r.services[k] = s
	r.print += Fingerprint([]ServiceState{s})
	return nil
}

func sortDestinations(ds []DestinationState) {
	compare := func(a, b DestinationState) int { return a.AddrPort().Compare(b.AddrPort()) }
	if !slices.IsSortedFunc(ds, compare) {
		slices.SortFunc(ds, compare)
	}
}

// drifted says whether the kernel is, as far as can be told cheaply, not what is
// kept; then it forgets that.
func (r *reader) drifted(ctx context.Context) (bool, error) {
	if r.services == nil {
		return true, nil // all is read anyway
	}
	found, err := r.kernel.Fingerprint(ctx)
	if err != nil {
		return false, fmt.Errorf("read the services' fingerprint: %w", err)
	}
	moved, err := r.linksDrifted(ctx)
	if err != nil {
		return false, err
	}
	if found == r.print {
		return moved, nil
	}
	r.services, r.sysctls = nil, nil
	return true, nil
}

// linksDrifted is the part of drifted that looks at interfaces.
func (r *reader) linksDrifted(ctx context.Context) (bool, error) {
	links, err := r.kernel.Links(ctx)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	if r.links != nil && slices.EqualFunc(links, r.links, func(a, b Link) bool {
		return a.Name == b.Name && a.Kind == b.Kind && a.Alias == b.Alias && a.Up == b.Up && slices.Equal(a.Addresses, b.Addresses)
	}) {
		return false, nil
	}
	r.links, r.sysctls = links, nil
	return true, nil
}

// actual is what is kept, as a plan for these services sees it, and the record
// with what is wanted added to what is ours.
func (r *reader) actual(w *wanted, rec *record, now time.Time) *Actual {
	a := &Actual{
		Held: map[netip.Addr]string{}, IPVS: *r.ipvs, Chains: r.chains, Sysctls: r.sysctls, Now: now,
		chainErrs: r.chainErr, links: r.links, ownDaemons: rec.Daemons,
		before: rec.Before, Profile: rec.Profile,
	}
	var err error
	var exists bool
	a.Link, exists, err = ourLink(r.cfg.DummyName, r.links, w.services, rec)
	if exists && err != nil {
		a.linkErr = err
	}
	sc := &scope{marks: r.cfg.Marks, record: rec, forget: r.cfg.ReleaseVIPs, bound: map[netip.Addr]bool{}, held: a.Held}
	for _, vip := range a.VIPs() {
		sc.bound[vip] = true
	}
	for _, l := range r.links {
		if l.Name == a.Link.Name {
			continue
		}
		for _, p := range l.Addresses {
			a.Held[p.Addr()] = l.Name
		}
	}
	if r.keys == nil {
		r.keys = slices.SortedFunc(maps.Keys(r.services), Key.Compare)
	}
	a.collide = sc.claim(rec, w.services, r.keys)
	a.Services = make([]ServiceState, 0, len(r.keys))
	for _, k := range r.keys {
		if sc.owns(k) {
			a.Services = append(a.Services, r.services[k])
		} else {
			a.Foreign = append(a.Foreign, k)
		}
	}
	a.Drains = r.drains(rec)
	return a
}

// drains are those of the record whose destination is still there, sorted.
func (r *reader) drains(rec *record) []Drain {
	var out []Drain
	for at, d := range rec.Drains {
		s, ok := r.services[at.service]
		if ok && slices.ContainsFunc(s.Destinations, func(h DestinationState) bool { return h.AddrPort() == at.addr }) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(x, y Drain) int {
		return cmp.Or(x.Service.Compare(y.Service), x.Dest.Compare(y.Dest))
	})
	return out
}
