package access

import (
	"context"
	"sync"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// Config says how a State works. The zero value is ready for use.
type Config struct {
	Logger *zap.Logger // nil: silent
}

// State is the state machine. Apply, Committed and Restored are called by one
// goroutine; lookups and Changed may be from any.
type State struct {
	logger  *zap.Logger
	pending []pending // applied and not committed; of the goroutine that applies

	mu       sync.RWMutex // guards the following
	index    index
	revision uint64 // of the index
	changed  map[lbstate.Kind]chan struct{}
	moved    chan struct{} // closed at the next change of revision
}

// pending is what a command made of an object.
type pending struct {
	raft     uint64 // index of the entry
	revision uint64 // that it made
	old, new *accesspb.Object
}

// New returns a State; its data are those of the transactions that it is given.
func New(cfg Config) *State {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	s := &State{logger: cfg.Logger.Named("access"), index: newIndex(), changed: map[lbstate.Kind]chan struct{}{}, moved: make(chan struct{})}
	for _, k := range kinds {
		s.changed[k] = make(chan struct{})
	}
	return s
}

// Committed makes what was applied visible to lookups, and wakes those who wait.
func (s *State) Committed(upTo uint64) {
	n := 0
	for n < len(s.pending) && s.pending[n].raft <= upTo {
		n++
	}
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending[:n] {
		s.index.take(p.old, p.new)
	}
	for _, k := range touched(s.pending[:n]) {
		s.wake(k)
	}
	s.move(s.pending[n-1].revision)
	s.pending = append(s.pending[:0:0], s.pending[n:]...)
}

func touched(ps []pending) []lbstate.Kind {
	seen := map[lbstate.Kind]bool{}
	var found []lbstate.Kind
	for _, p := range ps {
		o := p.new
		if o == nil {
			o = p.old
		}
		if k := refOf(o).Kind; !seen[k] {
			seen[k] = true
			found = append(found, k)
		}
	}
	return found
}

// Restored builds the lookups anew: another database has taken this one's
// place, or the node has just started.
func (s *State) Restored(tx *bbolt.Tx) error {
	v := openView(tx)
	n, err := v.numbers()
	if err != nil {
		return err
	}
	fresh := newIndex()
	if err := v.each("", func(o *accesspb.Object) error {
		fresh.take(nil, o)
		return nil
	}); err != nil {
		return err
	}
	s.logger.Debug("access data restored", zap.Uint64("revision", n.revision))
	s.pending = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = fresh
	for _, k := range kinds {
		s.wake(k)
	}
	s.move(n.revision)
	return nil
}

// move says which revision the lookups are of. The caller holds mu.
func (s *State) move(revision uint64) {
	s.revision = revision
	close(s.moved)
	s.moved = make(chan struct{})
}

// reached waits until the lookups are of a revision, or a later one.
func (s *State) reached(ctx context.Context, revision uint64) error {
	for {
		s.mu.RLock()
		at, moved := s.revision, s.moved
		s.mu.RUnlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wake wakes those who wait for a change of a kind. The caller holds mu.
func (s *State) wake(k lbstate.Kind) {
	close(s.changed[k])
	s.changed[k] = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of an object of a
// kind; nil for a kind that does not exist.
func (s *State) Changed(k lbstate.Kind) <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed[k]
}

// DigestState returns a digest over all keys and values, in order: two nodes
// with the same digest have the same state.
func DigestState(tx *bbolt.Tx) (uint64, error) { return stored.Digest(tx.Bucket([]byte(Bucket))) }
