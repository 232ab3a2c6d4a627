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
	// followed, and one that they no longer satisfy counts as removed. nil
	// follows everything.
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
type Update struct {
	Full     bool
	Since    uint64 // 0 in a full update that does not continue a known revision
	Revision uint64
	Services []ServiceStatus // by name
	Removed  []string        // explicit removals after Since; in a full update too, while they are kept
}

// Watcher follows the state. It holds no resources, so there is no Close. Not
// safe for concurrent use.
type Watcher struct {
	store   *Store
	opts    WatchOptions
	at      uint64
	started bool
}

// Watch returns a Watcher. Nothing happens until Next.
func (st *Store) Watch(opts WatchOptions) *Watcher {
	return &Watcher{store: st, opts: opts, at: opts.From}
}

// Next blocks until the state differs from what the Watcher last returned (the
// first time: from From), and returns the difference, coalesced: each service
// once, as it is now. Changes of services that the labels do not select move
// the revision without an update. The error is ctx's, or that of a failing read.
func (w *Watcher) Next(ctx context.Context) (Update, error) {
	for {
		changed := w.store.state.next() // before reading, so that nothing is missed
		var u Update
		any := false
		err := w.store.read(ctx, ReadOptions{Stale: w.opts.Stale || w.started}, func(v view) (err error) {
			u, any, err = w.difference(v)
			return err
		})
		if err != nil {
			return Update{}, err
		}
		w.started = true
		w.at = u.Revision
		if any {
			return u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Update{}, ctx.Err()
		}
	}
}

func (w *Watcher) difference(v view) (u Update, any bool, err error) {
	u.Since, u.Revision = w.at, v.revision()
	names, kept, err := v.changedSince(w.at)
	if err != nil {
		return u, false, err
	}
	full := !w.started && (w.opts.From == 0 || w.opts.Full)
	if full || !kept {
		u.Full = true
		if !kept {
			u.Since, names = 0, nil
		}
		if w.at == 0 {
			names = nil // who has nothing has nothing to remove
		}
		for _, name := range names {
			if s, ok, err := v.status(name); err != nil {
				return u, false, err
			} else if !ok || !w.selects(s) {
				u.Removed = append(u.Removed, name)
			}
		}
		u.Services = []ServiceStatus{}
		err := v.each(func(s ServiceStatus) error {
			if w.selects(s) {
				u.Services = append(u.Services, s)
			}
			return nil
		})
		return u, true, err
	}
	for _, name := range names {
		s, ok, err := v.status(name)
		switch {
		case err != nil:
			return u, false, err
		case ok && w.selects(s):
			u.Services = append(u.Services, s)
		default:
			u.Removed = append(u.Removed, name)
		}
	}
	return u, len(names) > 0, nil
}

func (w *Watcher) selects(s ServiceStatus) bool {
	return w.opts.Labels == nil || s.Selects(w.opts.Labels)
}
