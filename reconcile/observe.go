package reconcile

import (
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
	links    []Link
	chains   map[Family]Chain
	chainErr map[Family]error
	sysctls  map[string]string
}

// forget makes the next reading a whole one.
func (r *reader) forget() { r.services, r.links, r.chains, r.sysctls = nil, nil, nil, nil }

// read brings what is kept up to date: all that is not known.
func (r *reader) read(ctx context.Context, services []DesiredService) error {
	if r.services == nil {
		list, err := r.kernel.Services(ctx)
		if err != nil {
			return fmt.Errorf("list services: %w", err)
		}
		r.services = make(map[Key]ServiceState, len(list))
		for _, s := range list {
			sortDestinations(s.Destinations)
			r.services[s.Key] = s
		}
		r.print = Fingerprint(list)
	}
	if r.links == nil {
		links, err := r.kernel.Links(ctx)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		r.links = links
	}
	if r.chains == nil {
		r.chains, r.chainErr = map[Family]Chain{}, map[Family]error{}
	}
	for _, f := range []Family{IPv4, IPv6} {
		_, known := r.chains[f]
		needed := slices.ContainsFunc(services, func(s DesiredService) bool { return s.Family == f && s.SNAT != SNATOff })
		if known && (r.chainErr[f] == nil || !needed) {
			continue
		}
		chain, err := r.kernel.Chain(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.chains[f], r.chainErr[f] = chain, err
	}
	if r.sysctls == nil {
		r.sysctls = map[string]string{}
	}
	names := []string{"net/ipv6/conf/" + r.cfg.DummyName + "/keep_addr_on_down"}
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

// touch reads again what operations worked on, whether they failed or not.
func (r *reader) touch(ctx context.Context, ops []Op) error {
	keys := map[Key]bool{}
	for _, op := range ops {
		switch {
		case op.Kind.ipvs():
			keys[op.Service.Key] = true
		case op.Kind == SetSysctl:
			delete(r.sysctls, op.Name)
		case op.Kind == SetChain || op.Kind == DelChain:
			delete(r.chains, op.Chain.Family)
		default:
			r.links = nil
			delete(r.sysctls, "net/ipv6/conf/"+r.cfg.DummyName+"/keep_addr_on_down")
		}
	}
	// A list of all is cheaper than many single questions.
	if len(keys) > 16 && len(keys) > len(r.services)/4 {
		r.services = nil
		return nil
	}
	for k := range keys {
		if err := r.readService(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) readService(ctx context.Context, k Key) error {
	if old, ok := r.services[k]; ok {
		r.print -= Fingerprint([]ServiceState{old})
		delete(r.services, k)
	}
	s, err := r.kernel.Service(ctx, k)
	switch {
	case IsMissing(err):
		return nil
	case err != nil:
		r.services = nil // what is kept is not whole
		return fmt.Errorf("read service %s: %w", k, err)
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
	links, err := r.kernel.Links(ctx)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	same := r.links != nil && slices.EqualFunc(links, r.links, func(a, b Link) bool {
		return a.Name == b.Name && a.Kind == b.Kind && a.Alias == b.Alias && a.Up == b.Up && slices.Equal(a.Addresses, b.Addresses)
	})
	if found == r.print && same {
		return false, nil
	}
	if found != r.print {
		r.services = nil
	}
	r.links = links
	r.sysctls = nil
	return true, nil
}

// actual is what is kept, as a plan for these services sees it, and the record
// with what those services add to what is ours.
func (r *reader) actual(services []DesiredService, rec *record, now time.Time) *Actual {
	a := &Actual{
		Held: map[netip.Addr]string{}, Chains: r.chains, Sysctls: r.sysctls, Now: now,
		chainErrs: r.chainErr, links: r.links,
	}
	var err error
	var exists bool
	a.Link, exists, err = ourLink(r.cfg.DummyName, r.links, services, rec)
	if exists && err != nil {
		a.linkErr = err
	}
	sc := &scope{marks: r.cfg.Marks, record: rec, forget: r.cfg.ReleaseVIPs, bound: map[netip.Addr]bool{}, held: a.Held}
	for _, p := range a.Link.Addresses {
		if p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
			sc.bound[p.Addr()] = true
		}
	}
	for _, l := range r.links {
		if l.Name == a.Link.Name {
			continue
		}
		for _, p := range l.Addresses {
			a.Held[p.Addr()] = l.Name
		}
	}
	keys := slices.SortedFunc(maps.Keys(r.services), Key.Compare)
	a.collide = sc.claim(rec, services, keys)
	for _, k := range keys {
		if sc.owns(k) {
			a.Services = append(a.Services, r.services[k])
		} else {
			a.Foreign = append(a.Foreign, k)
		}
	}
	for at, d := range rec.Drains {
		s, ok := r.services[at.service]
		if ok && slices.ContainsFunc(s.Destinations, func(h DestinationState) bool { return h.AddrPort() == at.addr }) {
			a.Drains = append(a.Drains, d)
		}
	}
	slices.SortFunc(a.Drains, func(x, y Drain) int {
		if c := x.Service.Compare(y.Service); c != 0 {
			return c
		}
		return x.Dest.Compare(y.Dest)
	})
	return a
}
