package lbstate

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// Bucket is the top-level bucket that a State keeps to.
const Bucket = "lbstate"

// Sub-buckets of Bucket. Every value is sealed.
var (
	objectsBucket   = []byte("objects")   // kind/name → record
	listenersBucket = []byte("listeners") // listener → name of its service
	vipsBucket      = []byte("vips")      // address, name of its service → nothing
	targetsBucket   = []byte("targets")   // backend's address, name of its service → nothing
	usesBucket      = []byte("uses")      // name of a check, name of a service that uses it → nothing
	healthBucket    = []byte("health")    // name of a service, address:port → BackendHealth
	changesBucket   = []byte("changes")   // revision → names of the objects that it changed
	historyBucket   = []byte("history")   // revision of a configuration change → Change
	versionsBucket  = []byte("versions")  // kind/name, revision → record; empty: deleted
	keysBucket      = []byte("keys")      // idempotency key → Done
	keyOrderBucket  = []byte("keyorder")  // number → idempotency key
	metaBucket      = []byte("meta")

	buckets = [][]byte{
		objectsBucket, listenersBucket, vipsBucket, targetsBucket, usesBucket, healthBucket,
		changesBucket, historyBucket, versionsBucket, keysBucket, keyOrderBucket, metaBucket,
	}

	countersKey = []byte("counters")
)

// view reads the state inside one transaction. What it returns is the
// caller's.
type view struct{ root *bbolt.Bucket } // nil: no command was ever applied

func openView(tx *bbolt.Tx) view { return view{tx.Bucket([]byte(Bucket))} }

// get returns a value's body, which is the database's, or nil where there is
// none.
func (v view) get(bucket, key []byte) ([]byte, error) {
	if v.root == nil {
		return nil, nil
	}
	data := v.root.Bucket(bucket).Get(key)
	if data == nil {
		return nil, nil
	}
	return unseal(bucket, key, data)
}

func (v view) message(bucket, key []byte, into proto.Message) (bool, error) {
	body, err := v.get(bucket, key)
	if err != nil || body == nil {
		return false, err
	}
	if err := proto.Unmarshal(body, into); err != nil {
		return false, damaged(bucket, key, err.Error())
	}
	return true, nil
}

// prefixed calls fn with the rest of each key that starts with prefix, and its
// body, until fn returns false.
func (v view) prefixed(bucket, prefix []byte, fn func(rest, body []byte) (bool, error)) error {
	if v.root == nil {
		return nil
	}
	c := v.root.Bucket(bucket).Cursor()
	for k, data := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, data = c.Next() {
		body, err := unseal(bucket, k, data)
		if err != nil {
			return err
		}
		if more, err := fn(k[len(prefix):], body); err != nil || !more {
			return err
		}
	}
	return nil
}

func (v view) numbers() (counters, error) {
	body, err := v.get(metaBucket, countersKey)
	if err != nil || body == nil {
		return counters{}, err
	}
	return decodeCounters(body)
}

func (v view) record(ref Ref) (record, bool, error) {
	key := []byte(ref.String())
	body, err := v.get(objectsBucket, key)
	if err != nil || body == nil {
		return record{}, false, err
	}
	r, err := decodeRecord(ref.Kind, body)
	if err != nil {
		return record{}, false, damaged(objectsBucket, key, err.Error())
	}
	r.raw = bytes.Clone(body)
	return r, true, nil
}

// each calls fn with every object of a kind, by name, but for those that skip,
// which may be nil, says true to.
func (v view) each(kind Kind, skip func(name string) bool, fn func(record) error) error {
	if v.root == nil {
		return nil
	}
	prefix := []byte(string(kind) + "/")
	c := v.root.Bucket(objectsBucket).Cursor()
	for k, data := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, data = c.Next() {
		if skip != nil && skip(string(k[len(prefix):])) {
			continue
		}
		body, err := unseal(objectsBucket, k, data)
		if err != nil {
			return err
		}
		r, err := decodeRecord(kind, body)
		if err != nil {
			return damaged(objectsBucket, k, err.Error())
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func (v view) settings() (Settings, error) {
	r, ok, err := v.record(settingsRef)
	if err != nil || !ok {
		return Settings{}.WithDefaults(), err
	}
	return r.Settings.WithDefaults(), nil
}

// pairKey indexes a name under another.
func pairKey(a, name string) []byte { return []byte(a + "\x00" + name) }

// under lists the names indexed under a name.
func (v view) under(bucket []byte, a string) (names []string, err error) {
	err = v.prefixed(bucket, pairKey(a, ""), func(name, _ []byte) (bool, error) {
		names = append(names, string(name))
		return true, nil
	})
	return names, err
}

// sharedChecks returns the shared checks that a service uses.
func (v view) sharedChecks(s Service) (map[string]SharedCheck, error) {
	var checks map[string]SharedCheck
	for name := range s.uses() {
		r, ok, err := v.record(Ref{KindCheck, name})
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, damaged(objectsBucket, []byte("check/"+name), "missing, though service "+s.Name+" uses it")
		}
		if checks == nil {
			checks = map[string]SharedCheck{}
		}
		checks[name] = *r.Check
	}
	return checks, nil
}

func (v view) statusOf(s Service) (ServiceStatus, error) {
	health, version, err := v.health(s.Name)
	if err != nil {
		return ServiceStatus{}, err
	}
	checks, err := v.sharedChecks(s)
	if err != nil {
		return ServiceStatus{}, err
	}
	version = max(version, s.Revision)
	for _, c := range checks {
		version = max(version, c.Revision)
	}
	return Effective(s, checks, health, version), nil
}

func (v view) status(name string) (ServiceStatus, bool, error) {
	r, ok, err := v.record(Ref{KindService, name})
	if err != nil || !ok {
		return ServiceStatus{}, false, err
	}
	st, err := v.statusOf(*r.Service)
	return st, err == nil, err
}

// changedSince returns the objects changed in revisions after since, each once
// and in order; ok is false when these revisions are no longer all kept.
func (v view) changedSince(since uint64) (refs []Ref, ok bool, err error) {
	numbers, err := v.numbers()
	now := numbers.revision
	if err != nil || since > now {
		return nil, false, err
	}
	if since == now {
		return nil, true, nil
	}
	c := v.root.Bucket(changesBucket).Cursor()
	k, data := c.Seek(revisionKey(since + 1))
	if k == nil || number(k) != since+1 {
		return nil, false, nil
	}
	seen := map[string]bool{}
	var names []string
	for ; k != nil; k, data = c.Next() {
		body, err := unseal(changesBucket, k, data)
		if err != nil {
			return nil, false, err
		}
		var changed lbstatepb.Names
		if err := proto.Unmarshal(body, &changed); err != nil {
			return nil, false, damaged(changesBucket, k, err.Error())
		}
		for _, name := range changed.GetNames() {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		ref, err := parseRef(name)
		if err != nil {
			return nil, false, damaged(changesBucket, revisionKey(since), err.Error())
		}
		refs = append(refs, ref)
	}
	return refs, true, nil
}

// changes are the names of what those who watch follow.
type changes struct{ services, profiles []string }

// namesChangedSince is changedSince for services and profiles: a service whose
// shared check changed has changed too.
func (v view) namesChangedSince(since uint64) (c changes, ok bool, err error) {
	refs, ok, err := v.changedSince(since)
	if err != nil || !ok {
		return c, ok, err
	}
	for _, ref := range refs {
		switch ref.Kind {
		case KindService:
			c.services = append(c.services, ref.Name)
		case KindCheck:
			users, err := v.under(usesBucket, ref.Name)
			if err != nil {
				return c, false, err
			}
			c.services = append(c.services, users...)
		case KindProfile:
			c.profiles = append(c.profiles, ref.Name)
		}
	}
	slices.Sort(c.services)
	c.services = slices.Compact(c.services)
	return c, true, nil
}

// listenerKey is what no two services may share.
func (s Service) listenerKey() string {
	if s.FWMark != 0 {
		return fmt.Sprintf("fwmark/%d/%s", s.FWMark, s.Family)
	}
	return string(s.Protocol) + "/" + netip.AddrPortFrom(s.VIP, uint16(s.Port)).String()
}

// uses returns the shared checks that a service uses.
func (s Service) uses() map[string]bool {
	var uses map[string]bool // most use none
	use := func(c *HealthCheck) {
		if c == nil || c.Use == "" {
			return
		}
		if uses == nil {
			uses = map[string]bool{}
		}
		uses[c.Use] = true
	}
	use(s.HealthCheck)
	for _, b := range s.Backends {
		use(b.HealthCheck)
	}
	return uses
}

// indexEntry is a key in one of the indexes.
type indexEntry struct{ bucket, key string }

// indexedLike says whether the indexes hold the same for two forms of a service.
func (s Service) indexedLike(o *Service) bool {
	return s.VIP == o.VIP && slices.Equal(s.targets(), o.targets()) && maps.Equal(s.uses(), o.uses())
}

// indexed lists what the indexes hold for a service, but for its listener.
func (s Service) indexed() []indexEntry {
	targets := s.targets()
	entries := make([]indexEntry, 0, 1+len(targets))
	add := func(bucket []byte, a string) {
		entries = append(entries, indexEntry{string(bucket), a + "\x00" + s.Name})
	}
	if s.VIP.IsValid() {
		add(vipsBucket, s.VIP.String())
	}
	for _, addr := range targets {
		add(targetsBucket, addr.String())
	}
	for _, name := range slices.Sorted(maps.Keys(s.uses())) {
		add(usesBucket, name)
	}
	return entries
}

// targets returns the addresses that a service sends to, each once.
func (s Service) targets() []netip.Addr {
	addrs := make([]netip.Addr, 0, len(s.Backends)+1)
	for _, b := range s.Backends {
		addrs = append(addrs, b.Address)
	}
	if s.SorryServer != nil {
		addrs = append(addrs, s.SorryServer.Address)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// owner returns the first service, but for those that skip names, that an
// address is indexed under.
func (v view) owner(bucket []byte, addr netip.Addr, skip func(string) bool) (owner string, err error) {
	err = v.prefixed(bucket, pairKey(addr.String(), ""), func(name, _ []byte) (bool, error) {
		if skip(string(name)) {
			return true, nil
		}
		owner = strings.Clone(string(name))
		return false, nil
	})
	return owner, err
}
