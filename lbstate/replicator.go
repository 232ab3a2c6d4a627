package lbstate

import (
	"context"

	"go.etcd.io/bbolt"
)

// Replicator is what this package needs of a replicated log. raftstore's
// Machine satisfies it; Local (for tests and programs of one process) does too.
type Replicator interface {
	// Propose replicates one command and returns what Apply returned for it.
	// An error with a method NotApplied() bool that says true means that the
	// command was and will never be applied; any other error leaves that unknown.
	Propose(ctx context.Context, cmd []byte) (result any, index uint64, err error)

	// Accepts says whether commands of this version (State.CommandVersion) may be
	// proposed: nil means that every member can apply them, and everyone who joins
	// later. Otherwise the error names who cannot, and its NotApplied says true. It
	// is asked before each proposal, and answers from memory.
	Accepts(version uint64) error

	// Read calls fn with a transaction that sees every write that was
	// acknowledged anywhere before Read was called.
	Read(ctx context.Context, fn func(*bbolt.Tx) error) error

	// ReadStale calls fn with whatever this node has applied.
	ReadStale(fn func(*bbolt.Tx) error) error
}
