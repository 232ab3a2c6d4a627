package lbstate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// check compares the indexes, the health and the history of a state with its
// objects: what a transaction keeps must be what one would work out anew.
func check(tx *bbolt.Tx) error {
	v := openView(tx)
	if v.root == nil {
		return nil
	}
	n, err := v.numbers()
	if err != nil {
		return err
	}
	want := map[string]map[string]string{}
	for _, bucket := range [][]byte{listenersBucket, vipsBucket, targetsBucket, usesBucket} {
		want[string(bucket)] = map[string]string{}
	}
	services := map[string]Service{}
	for _, kind := range kinds {
		err := v.each(kind, nil, func(r record) error {
			if rev := r.Revision(); rev == 0 || rev > n.config {
				return fmt.Errorf("%s has revision %d, the last change is %d", r.Ref(), rev, n.config)
			}
			s := r.Service
			if s == nil {
				return nil
			}
			services[s.Name] = *s
			if other, twice := want[string(listenersBucket)][s.listenerKey()]; twice {
				return fmt.Errorf("%s and %s have the same listener", other, s.Name)
			}
			want[string(listenersBucket)][s.listenerKey()] = s.Name
			for _, e := range s.indexed() {
				want[e.bucket][e.key] = ""
			}
			_, err := v.sharedChecks(*s)
			return err
		})
		if err != nil {
			return err
		}
	}
	for bucket, entries := range want {
		have := map[string]string{}
		if err := v.prefixed([]byte(bucket), nil, func(key, body []byte) (bool, error) {
			have[string(key)] = string(body)
			return true, nil
		}); err != nil {
			return err
		}
		if !maps.Equal(have, entries) {
			return fmt.Errorf("index %s has %q, should have %q", bucket, have, entries)
		}
	}
	for name, s := range services {
		health, version, err := v.health(name)
		if err != nil {
			return err
		}
		if version > n.revision {
			return fmt.Errorf("the health of %s is of revision %d, the state at %d", name, version, n.revision)
		}
		for backend := range health {
			if !slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.AddrPort() == backend && s.checkOf(b) != nil }) {
				return fmt.Errorf("%s has health for %s, which has no check", name, backend)
			}
		}
		delete(want[string(vipsBucket)], name)
	}
	if err := v.prefixed(healthBucket, nil, func(key, _ []byte) (bool, error) {
		name, _, _ := cutPair(key)
		if _, ok := services[name]; !ok {
			return false, fmt.Errorf("there is health for %q", key)
		}
		return true, nil
	}); err != nil {
		return err
	}
	return checkHistory(v, n, services)
}

// checkValid validates every object: what a Store let in must be valid.
func checkValid(tx *bbolt.Tx) error {
	v := openView(tx)
	for _, kind := range kinds {
		if err := v.each(kind, nil, func(r record) error { return r.validate() }); err != nil {
			return err
		}
	}
	return nil
}

func checkHistory(v view, n counters, services map[string]Service) error {
	var entries, size, last uint64
	versions := map[string]bool{}
	err := v.entries(0, n.revision, func(rev uint64, e *lbstatepb.Change) (bool, error) {
		entries++
		size += e.GetBytes()
		last = rev
		if rev <= n.floor {
			return false, fmt.Errorf("the history has revision %d, but starts after %d", rev, n.floor)
		}
		for _, o := range e.GetObjects() {
			ref := Ref{Kind(o.GetKind()), o.GetName()}
			if o.GetBefore() != 0 {
				versions[string(versionKey(ref, o.GetBefore()))] = true
			}
			if o.GetOutcome() == Deleted {
				versions[string(versionKey(ref, rev))] = true
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if entries != n.history || size != n.historyBytes || entries > 0 && last != n.config {
		return fmt.Errorf("the history has %d entries of %d bytes up to %d, the counters say %+v", entries, size, last, n)
	}
	if err := v.prefixed(versionsBucket, nil, func(key, _ []byte) (bool, error) {
		if !versions[string(key)] {
			return false, fmt.Errorf("the version %q is kept for nothing", key)
		}
		delete(versions, string(key))
		return true, nil
	}); err != nil {
		return err
	}
	if len(versions) > 0 {
		return fmt.Errorf("these versions are missing: %q", slices.Collect(maps.Keys(versions)))
	}
	return nil
}

// cutPair is the inverse of pairKey.
func cutPair(key []byte) (a, b string, ok bool) {
	for i, c := range key {
		if c == 0 {
			return string(key[:i]), string(key[i+1:]), true
		}
	}
	return string(key), "", false
}

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func mustAddr(text string) netip.Addr { return netip.MustParseAddr(text) }
