package lbstate

import (
	"slices"
	"strings"
	"sync"
)

// cache shares what readers work out of the state: many watchers that wake at
// once decode a change once, and encode it once. It holds no more than the
// services and profiles that there are. What it gives out is never changed.
type cache struct {
	mu       sync.Mutex // guards the following
	restores uint64     // of the state that it is of
	revision uint64
	statuses map[string]*ServiceStatus // as at the revision; those not asked for are missing
	list     []ServiceStatus           // all of them; nil: not asked for
	profiles []DirectorProfile         // all of them; nil: not asked for
	last     *difference               // that a watcher worked out last
}

// reader reads the state inside one transaction, through the cache.
type reader struct {
	view
	counters
	cache    *cache
	restores uint64 // before the transaction began
}

// follow brings the cache to the reader's revision. It is false for a reader
// that the cache has left behind. The caller holds mu.
func (c *cache) follow(r *reader) (bool, error) {
	if r.restores < c.restores || r.restores == c.restores && r.revision < c.revision {
		return false, nil
	}
	fresh := r.restores != c.restores || c.statuses == nil
	if !fresh && r.revision > c.revision {
		changed, kept, err := r.namesChangedSince(c.revision)
		if err != nil {
			return false, err
		}
		fresh = !kept
		for _, name := range changed.services {
			delete(c.statuses, name)
		}
		c.list = nil
		if len(changed.profiles) > 0 {
			c.profiles = nil
		}
	}
	if fresh {
		c.statuses, c.list, c.profiles, c.last = map[string]*ServiceStatus{}, nil, nil, nil
	}
	c.restores, c.revision = r.restores, r.revision
	return true, nil
}

// status returns a service with its effective state, or nil.
func (r *reader) status(name string) (*ServiceStatus, error) {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	shared, err := r.cache.follow(r)
	if err != nil {
		return nil, err
	}
	if shared && r.cache.statuses[name] != nil {
		return r.cache.statuses[name], nil
	}
	st, ok, err := r.view.status(name)
	if err != nil || !ok {
		return nil, err
	}
	if shared {
		r.cache.statuses[name] = &st
	}
	return &st, nil
}

// services returns every service, by name.
func (r *reader) services() ([]ServiceStatus, error) {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	shared, err := r.cache.follow(r)
	if err != nil {
		return nil, err
	}
	if shared && r.cache.list != nil {
		return r.cache.list, nil
	}
	list := []ServiceStatus{}
	known := func(string) bool { return false }
	if shared {
		list = make([]ServiceStatus, 0, len(r.cache.statuses))
		known = func(name string) bool {
			st := r.cache.statuses[name]
			if st != nil {
				list = append(list, *st)
			}
			return st != nil
		}
	}
	err = r.each(KindService, known, func(rec record) error {
		st, err := r.statusOf(*rec.Service)
		if err != nil {
			return err
		}
		list = append(list, st)
		if shared {
			r.cache.statuses[strings.Clone(st.Name)] = &st
		}
		return nil
	})
	if err == nil && shared {
		list = slices.Clip(list)
		r.cache.list = list
	}
	return list, err
}

// profiles returns every profile.
func (r *reader) profiles() ([]DirectorProfile, error) {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	shared, err := r.cache.follow(r)
	if err != nil {
		return nil, err
	}
	if shared && r.cache.profiles != nil {
		return r.cache.profiles, nil
	}
	list := []DirectorProfile{}
	err = r.each(KindProfile, nil, func(rec record) error {
		list = append(list, *rec.Profile)
		return nil
	})
	if err == nil && shared {
		r.cache.profiles = list
	}
	return list, err
}
