package lbstate

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"
)

// Bucket is the top-level bucket that a State keeps to.
const Bucket = "lbstate"

// DefaultRetainChanges is how many revisions a watcher may lag behind before
// it gets the full state instead of what changed.
const DefaultRetainChanges = 10_000

// Sub-buckets of Bucket.
var (
	servicesBucket  = []byte("services")  // name → Service
	listenersBucket = []byte("listeners") // listener → name of its service
	vipsBucket      = []byte("vips")      // address and name of its service → nothing
	targetsBucket   = []byte("targets")   // backend's address and name of its service → nothing
	healthBucket    = []byte("health")    // name → serviceHealth
	changesBucket   = []byte("changes")   // revision → names of the services that it changed
	metaBucket      = []byte("meta")      // revision
	revisionMeta    = []byte("revision")
)

// Config says how a State works. The zero value is ready for use.
type Config struct {
	Logger *zap.Logger // nil: silent
}

// State is the state machine. Apply, Committed and Restored are called by one
// goroutine; everything else of a node goes through a Store.
type State struct {
	logger *zap.Logger

	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// New returns a State; its data are those of the transactions that it is given.
func New(cfg Config) *State {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &State{logger: cfg.Logger.Named("lbstate"), changed: make(chan struct{})}
}

// Committed wakes the watchers.
func (s *State) Committed(uint64) { s.wake() }

// Restored wakes the watchers; one whose revision the new state does not know
// gets the full state.
func (s *State) Restored(*bbolt.Tx) error {
	s.wake()
	return nil
}

func (s *State) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// next returns a channel that is closed at the next change.
func (s *State) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// serviceHealth is the stored health of one service's backends.
type serviceHealth struct {
	Version  uint64                   `json:"version"` // revision of the last change
	Backends map[string]BackendHealth `json:"backends"`
}

// view reads, and table writes too, the state inside one transaction.
type view struct{ root *bbolt.Bucket }

func openView(tx *bbolt.Tx) view { return view{tx.Bucket([]byte(Bucket))} }

func (v view) revision() uint64 {
	if v.root == nil {
		return 0
	}
	return revisionIn(v.root)
}

func revisionIn(root *bbolt.Bucket) uint64 {
	meta := root.Bucket(metaBucket)
	if meta == nil {
		return 0
	}
	b := meta.Get(revisionMeta)
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (v view) service(name string) (Service, bool, error) {
	var s Service
	if v.root == nil {
		return s, false, nil
	}
	b := v.root.Bucket(servicesBucket).Get([]byte(name))
	if b == nil {
		return s, false, nil
	}
	return s, true, unseal("services", []byte(name), b, &s)
}

func (v view) health(name string) (serviceHealth, error) {
	h := serviceHealth{Backends: map[string]BackendHealth{}}
	if v.root == nil {
		return h, nil
	}
	b := v.root.Bucket(healthBucket).Get([]byte(name))
	if b == nil {
		return h, nil
	}
	err := unseal("health", []byte(name), b, &h)
	if h.Backends == nil {
		h.Backends = map[string]BackendHealth{}
	}
	return h, err
}

func (v view) status(name string) (ServiceStatus, bool, error) {
	s, ok, err := v.service(name)
	if err != nil || !ok {
		return ServiceStatus{}, ok, err
	}
	h, err := v.health(name)
	if err != nil {
		return ServiceStatus{}, false, err
	}
	return Effective(s, h.Backends, max(s.Revision, h.Version)), true, nil
}

// each calls fn with every service, by name, until it returns an error.
func (v view) each(fn func(ServiceStatus) error) error {
	if v.root == nil {
		return nil
	}
	c := v.root.Bucket(servicesBucket).Cursor()
	for k, b := c.First(); k != nil; k, b = c.Next() {
		var s Service
		if err := unseal("services", k, b, &s); err != nil {
			return err
		}
		h, err := v.health(string(k))
		if err != nil {
			return err
		}
		if err := fn(Effective(s, h.Backends, max(s.Revision, h.Version))); err != nil {
			return err
		}
	}
	return nil
}

// changedSince returns the names changed in revisions after since, each once
// and in order; ok is false when these revisions are no longer all kept.
func (v view) changedSince(since uint64) (names []string, ok bool, err error) {
	now := v.revision()
	if since == now {
		return nil, true, nil
	}
	if since > now || v.root == nil {
		return nil, false, nil
	}
	c := v.root.Bucket(changesBucket).Cursor()
	k, b := c.Seek(revisionKey(since + 1))
	if k == nil || binary.BigEndian.Uint64(k) != since+1 {
		return nil, false, nil
	}
	seen := map[string]bool{}
	for ; k != nil; k, b = c.Next() {
		var changed []string
		if err := unseal("changes", k, b, &changed); err != nil {
			return nil, false, err
		}
		for _, name := range changed {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, true, nil
}

// DigestState returns a digest over all keys and values, in order: two nodes
// with the same digest have the same state.
func DigestState(tx *bbolt.Tx) (uint64, error) {
	h := fnv.New64a()
	root := tx.Bucket([]byte(Bucket))
	if root == nil {
		return h.Sum64(), nil
	}
	return h.Sum64(), digestBucket(h, root)
}

func digestBucket(h hash.Hash64, b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(v), v)
		if v == nil {
			return digestBucket(h, b.Bucket(k))
		}
		return nil
	})
}

// listenerKey is what no two services may share.
func (s Service) listenerKey() string {
	if s.FWMark != 0 {
		return fmt.Sprintf("fwmark/%d/%s", s.FWMark, s.Family)
	}
	return fmt.Sprintf("%s/%s", s.Protocol, netip.AddrPortFrom(s.VIP, uint16(s.Port)))
}

func equalJSON(a, b any) bool {
	x, err := json.Marshal(a)
	if err != nil {
		return false
	}
	y, err := json.Marshal(b)
	return err == nil && string(x) == string(y)
}
