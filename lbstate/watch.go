package lbstate

import (
	"context"
)

// WatchOptions say what a Watcher follows.
type WatchOptions struct {
	// From is the revision that the caller has; what changed since comes first.
	// 0, or one that is no longer kept, or one that the state never had: the
	// full state comes first.
	From uint64
	// Labels are an agent's; only services whose selector they satisfy are
	// followed, and one that they no longer satisfy counts as removed; and the
	// agent's profile is. nil follows every service, and no profile.
	Labels map[string]string
	// Full asks for the full state first, whatever From is; it then carries the
	// removals after From, while they are kept.
	Full bool
	// Stale starts from what this node has. Otherwise the first Next waits until
	// this node has all that was acknowledged before.
	Stale bool
}

// Update is what a Watcher saw change. A full update carries every service; a
// delta those that changed after Since, and the names of those that are gone.
// It may be shared with other watchers: read it, do not change it.
type Update struct {
	Full     bool
	Since    uint64 // 0 in a full update that does not continue a known revision
	Revision uint64
	Services []ServiceStatus // by name
	Removed  []string        // explicit removals after Since; in a full update too, while they are kept

	// Profile is that of the labels as it is now, in every update; nil: none
	// selects them. ProfileChanged says that it may be another than at Since.
	Profile        *DirectorProfile
	ProfileChanged bool
}

// Watcher follows the state. It holds no resources, so there is no Close. Not
// safe for concurrent use.
type Watcher struct {
	store   *Store
	opts    WatchOptions
	at      uint64
	gen     generation
	started bool
	profile *DirectorProfile // at at, once started
}

// Watch returns a Watcher. Nothing happens until Next.
func (st *Store) Watch(opts WatchOptions) *Watcher {
	return &Watcher{store: st, opts: opts, at: opts.From}
}

// Next blocks until the state differs from what the Watcher last returned (the
// first time: from From), and returns the difference, coalesced: each service
// once, as it is now. Changes of services that the labels do not select, and of
// profiles that are not theirs, move the revision without an update. Once the database was replaced by a snapshot
// the full state comes. The error is ctx's, or that of a failing read; Next may
// be called again after it.
func (w *Watcher) Next(ctx context.Context) (Update, error) {
	for {
		changed, gen := w.store.state.next() // before reading, so that nothing is missed
		u, news, err := w.update(ctx, gen)
		if err != nil {
			return Update{}, err
		}
		w.started = true
		w.at, w.gen, w.profile = u.Revision, gen, u.Profile
		if news {
			return u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Update{}, ctx.Err()
		}
	}
}

// difference is what changed from one revision to another.
type difference struct {
	since, revision uint64
	gen             generation // before it was worked out
	services        []ServiceStatus
	removed         []string
	moved           map[string]*DirectorProfile // profiles that changed, as they are now; nil: gone
	profiles        []DirectorProfile           // where any changed: all of them
}

func (w *Watcher) update(ctx context.Context, gen generation) (u Update, news bool, err error) {
	cache := &w.store.state.cache
	full := !w.started && (w.opts.From == 0 || w.opts.Full) || w.started && gen.restores != w.gen.restores
	if !full && w.started {
		cache.mu.Lock()
		last := cache.last
		cache.mu.Unlock()
		if last != nil && last.gen == gen && last.since == w.at {
			u, news = w.filter(last)
			return u, news, nil
		}
	}
	err = w.store.read(ctx, ReadOptions{Stale: w.opts.Stale || w.started}, func(r *reader) (err error) {
		var changed changes
		kept := false
		if !full || w.at > 0 { // who has nothing needs no removals
			if changed, kept, err = r.namesChangedSince(w.at); err != nil {
				return err
			}
		}
		if full || !kept {
			u, err = w.full(r, changed.services, kept)
			news = true
			return err
		}
		d := &difference{since: w.at, revision: r.revision, gen: gen}
		if len(changed.profiles) > 0 || !w.started && w.opts.Labels != nil {
			if d.profiles, err = r.profiles(); err != nil {
				return err
			}
			d.moved = make(map[string]*DirectorProfile, len(changed.profiles))
			for _, name := range changed.profiles {
				d.moved[name] = nil
			}
			for i := range d.profiles {
				if _, moved := d.moved[d.profiles[i].Name]; moved {
					d.moved[d.profiles[i].Name] = &d.profiles[i]
				}
			}
		}
		for _, name := range changed.services {
			s, err := r.status(name)
			switch {
			case err != nil:
				return err
			case s != nil:
				d.services = append(d.services, *s)
			default:
				d.removed = append(d.removed, name)
			}
		}
		u, news = w.filter(d)
		cache.mu.Lock()
		defer cache.mu.Unlock()
		if cache.last == nil || cache.last.gen != gen || cache.last.revision < d.revision {
			cache.last = d
		}
		return nil
	})
	return u, news, err
}

// filter is a difference as the watcher's labels see it.
func (w *Watcher) filter(d *difference) (u Update, news bool) {
	u = Update{Since: d.since, Revision: d.revision, Services: d.services, Removed: d.removed}
	news = len(d.services)+len(d.removed) > 0
	if w.opts.Labels == nil {
		return u, news
	}
	u.Profile, u.ProfileChanged = w.profileAfter(d)
	news = news || u.ProfileChanged
	if len(d.services) == 0 {
		return u, news
	}
	u.Services = nil
	removed := d.removed[:len(d.removed):len(d.removed)]
	for i := range d.services {
		if s := &d.services[i]; s.Selects(w.opts.Labels) {
			u.Services = append(u.Services, *s)
		} else {
			removed = append(removed, s.Name)
		}
	}
	u.Removed = removed
	return u, news
}

// profileAfter is the profile of the watcher's labels after a difference. Only
// where the watcher's own one changed are all of them looked at.
func (w *Watcher) profileAfter(d *difference) (p *DirectorProfile, changed bool) {
	if !w.started { // what it was at Since is not known
		return ProfileOf(d.profiles, w.opts.Labels), len(d.moved) > 0
	}
	p = w.profile
	if p != nil {
		if _, moved := d.moved[p.Name]; moved {
			now := ProfileOf(d.profiles, w.opts.Labels)
			return now, now == nil || now.Name != p.Name || now.Revision != p.Revision
		}
	}
	for _, q := range d.moved {
		if q != nil && q.Selects(w.opts.Labels) && (p == nil || q.before(*p)) {
			p, changed = q, true
		}
	}
	return p, changed
}

// full is the whole state, with what was removed after a revision that is kept.
func (w *Watcher) full(r *reader, changed []string, kept bool) (Update, error) {
	u := Update{Full: true, Revision: r.revision}
	if kept {
		u.Since = w.at
	}
	if w.opts.Labels != nil {
		profiles, err := r.profiles()
		if err != nil {
			return u, err
		}
		u.Profile, u.ProfileChanged = ProfileOf(profiles, w.opts.Labels), true
	}
	for _, name := range changed {
		s, err := r.status(name)
		if err != nil {
			return u, err
		}
		if s == nil || !w.selects(s) {
			u.Removed = append(u.Removed, name)
		}
	}
	services, err := r.services()
	if err != nil {
		return u, err
	}
	n := 0
	for i := range services {
		if w.selects(&services[i]) {
			n++
		}
	}
	if n == len(services) { // as where nothing has a selector: all share one list
		u.Services = services
		return u, nil
	}
	u.Services = make([]ServiceStatus, 0, n)
	for i := range services {
		if w.selects(&services[i]) {
			u.Services = append(u.Services, services[i])
		}
	}
	return u, nil
}

func (w *Watcher) selects(s *ServiceStatus) bool {
	return w.opts.Labels == nil || s.Selects(w.opts.Labels)
}
