// Package releases is a state machine that keeps who let agents accept a state
// that their guard holds back, and why. It is in the replicated log because each
// server must know of a release (the agent goes from one to the next), and
// because the account must outlast any of them.
//
// State starts no goroutine. Apply, Committed and Restored are called by the
// store, one at a time; the rest is safe for concurrent use.
package releases

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// Bucket is the state machine's name.
const Bucket = "releases"

const (
	version = 1
	// kept bounds the releases of single agents that are remembered, and clusters
	// those of predecessors, which are kept for good.
	kept     = 1000
	clusters = 100
)

// Release says who let what pass, and why. Either Agent or Cluster is set.
type Release struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`

	Agent string `json:"agent,omitempty"`
	Held  string `json:"held,omitempty"` // why the agent held its state back: only that is released

	Cluster uint64 `json:"cluster,omitempty,string"` // a predecessor, whose agents may all accept this cluster's state
}

type command struct {
	Version int     `json:"version"`
	Release Release `json:"release"`
}

// ErrTooMany says that no more clusters can be released.
var ErrTooMany = fmt.Errorf("%d clusters have been released, and no more are possible", clusters)

// State is the replicated state.
type State struct {
	// OnRelease, where set before the store runs, is told of each release of an
	// agent that is committed. It must not block.
	OnRelease func(Release)

	applied []applied // not committed yet; of Apply and Committed alone

	mu           sync.Mutex // guards the field below
	predecessors []uint64   // released
}

type applied struct {
	index   uint64
	release Release
}

// Apply implements raftstore.StateMachine. The result of each command is nil or
// ErrTooMany.
func (s *State) Apply(tx *bbolt.Tx, _, index uint64, cmds [][]byte) ([]any, error) {
	if n := len(s.applied); n > 0 && s.applied[n-1].index >= index { // the transaction before was rolled back
		s.applied = slices.DeleteFunc(s.applied, func(a applied) bool { return a.index >= index })
	}
	root, err := tx.CreateBucketIfNotExists([]byte(Bucket))
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, data := range cmds {
		c, err := decode(data)
		if err != nil {
			return nil, err
		}
		switch err := put(root, c.Release); {
		case errors.Is(err, ErrTooMany):
			results[i] = err
		case err != nil:
			return nil, err
		default:
			s.applied = append(s.applied, applied{index, c.Release})
		}
	}
	return results, nil
}

func decode(data []byte) (command, error) {
	var c command
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("a release that this program cannot read; is it older than a member that wrote to the log? %w", err)
	}
	if c.Version != version || (c.Release.Agent == "") == (c.Release.Cluster == 0) {
		return c, fmt.Errorf("a release of version %d for agent %q and cluster %016x: this program knows version %d, with one of the two", c.Version, c.Release.Agent, c.Release.Cluster, version)
	}
	return c, nil
}

// put keeps a release: of agents the last ones, of a cluster the first.
func put(root *bbolt.Bucket, r Release) error {
	name, limit := []byte("agents"), kept
	if r.Cluster != 0 {
		name, limit = []byte("clusters"), clusters
	}
	b, err := root.CreateBucketIfNotExists(name)
	if err != nil {
		return err
	}
	key := r.Cluster
	if r.Agent != "" {
		if key, err = b.NextSequence(); err != nil {
			return err
		}
	}
	k := binary.BigEndian.AppendUint64(nil, key)
	if b.Get(k) != nil {
		return nil
	}
	count := 0
	if err := b.ForEach(func(_, _ []byte) error { count++; return nil }); err != nil {
		return err
	}
	if count >= limit {
		if r.Agent == "" {
			return ErrTooMany
		}
		oldest, _ := b.Cursor().First()
		if err := b.Delete(slices.Clone(oldest)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return b.Put(k, data)
}

// Committed implements raftstore.StateMachine.
func (s *State) Committed(index uint64) {
	n := 0
	for ; n < len(s.applied) && s.applied[n].index <= index; n++ {
		r := s.applied[n].release
		if r.Cluster != 0 {
			s.mu.Lock()
			if !slices.Contains(s.predecessors, r.Cluster) {
				s.predecessors = append(slices.Clip(s.predecessors), r.Cluster)
			}
			s.mu.Unlock()
		} else if s.OnRelease != nil {
			s.OnRelease(r)
		}
	}
	s.applied = append(s.applied[:0:0], s.applied[n:]...)
}

// Restored implements raftstore.StateMachine.
func (s *State) Restored(tx *bbolt.Tx) error {
	all, err := list(tx)
	if err != nil {
		return err
	}
	var released []uint64
	for _, r := range all {
		if r.Cluster != 0 {
			released = append(released, r.Cluster)
		}
	}
	s.applied = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.predecessors = released
	return nil
}

// Predecessors are the clusters whose agents may accept this one's state. The
// result is shared: it must not be changed.
func (s *State) Predecessors() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.predecessors
}

// list returns all releases, the newest first.
func list(tx *bbolt.Tx) ([]Release, error) {
	all := []Release{}
	root := tx.Bucket([]byte(Bucket))
	if root == nil {
		return all, nil
	}
	for _, name := range []string{"agents", "clusters"} {
		b := root.Bucket([]byte(name))
		if b == nil {
			continue
		}
		if err := b.ForEach(func(k, data []byte) error {
			var r Release
			if err := json.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("release %x in the database: %w", k, err)
			}
			all = append(all, r)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b Release) int { return b.At.Compare(a.At) })
	return all, nil
}

// Replicator is what a Store needs of the replicated log. *raftstore.Machine
// satisfies it.
type Replicator interface {
	Propose(ctx context.Context, cmd []byte) (result any, index uint64, err error)
	Read(ctx context.Context, fn func(*bbolt.Tx) error) error
}

// Store is a State in a replicated log.
type Store struct{ log Replicator }

// NewStore returns a Store.
func NewStore(log Replicator) *Store { return &Store{log} }

// Put makes a release known to all servers, for good.
func (s *Store) Put(ctx context.Context, r Release) error {
	data, err := json.Marshal(command{version, r})
	if err != nil {
		return err
	}
	result, _, err := s.log.Propose(ctx, data)
	if err != nil {
		return err
	}
	err, _ = result.(error)
	return err
}

// List returns the releases that are remembered, the newest first.
func (s *Store) List(ctx context.Context) (all []Release, err error) {
	err = s.log.Read(ctx, func(tx *bbolt.Tx) error {
		all, err = list(tx)
		return err
	})
	return all, err
}
