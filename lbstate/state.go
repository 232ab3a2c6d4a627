package lbstate

import (
	"sync"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// Config says how a State works. The zero value is ready for use.
type Config struct {
	Logger *zap.Logger // nil: silent
}

// State is the state machine. Apply, Committed and Restored are called by one
// goroutine; everything else of a node goes through a Store.
type State struct {
	logger *zap.Logger
	cache  cache
	dirty  bool // Apply changed something since Committed; of the goroutine that applies

	mu      sync.Mutex // guards the following
	changed chan struct{}
	gen     generation
}

// generation counts what happened to the state of this node since it started.
type generation struct {
	commits  uint64
	restores uint64
}

// New returns a State; its data are those of the transactions that it is given.
func New(cfg Config) *State {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &State{logger: cfg.Logger.Named("lbstate"), changed: make(chan struct{})}
}

// Committed wakes the watchers, if there is anything to see.
func (s *State) Committed(uint64) {
	if !s.dirty {
		return
	}
	s.dirty = false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen.commits++
	s.wake()
}

// Restored wakes the watchers: each gets the full state, since another database
// has taken this one's place.
func (s *State) Restored(tx *bbolt.Tx) error {
	n, err := openView(tx).numbers()
	if err != nil {
		return err
	}
	s.logger.Debug("state restored", zap.Uint64("revision", n.revision))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen.restores++
	s.wake()
	return nil
}

// wake wakes those who wait for the next change. The caller holds mu.
func (s *State) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// next returns a channel that is closed at the next change, and what happened
// up to now.
func (s *State) next() (<-chan struct{}, generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed, s.gen
}

// DigestState returns a digest over all keys and values, in order: two nodes
// with the same digest have the same state.
func DigestState(tx *bbolt.Tx) (uint64, error) { return stored.Digest(tx.Bucket([]byte(Bucket))) }
