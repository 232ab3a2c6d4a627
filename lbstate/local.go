package lbstate

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// Local is a Replicator without replication: commands are applied in this
// process, to a database in one file. For tests, and for programs of one
// process. Safe for concurrent use.
type Local struct {
	state Machine
	db    *bbolt.DB

	mu    sync.Mutex // guards index and term, and orders Apply and Committed
	index uint64
	term  uint64
}

// Machine is a state machine that a Local applies commands to, as a replicated
// log does. *State is one, and so is that of the package access.
type Machine interface {
	Apply(tx *bbolt.Tx, term, index uint64, cmds [][]byte) ([]any, error)
	Committed(index uint64)
	Restored(tx *bbolt.Tx) error
	CommandVersion() uint64 // the highest version of commands that Apply takes
}

// NewLocal opens the database in dir, which must exist, and makes state's
// readers see it. The term is 1.
func NewLocal(dir string, state Machine) (*Local, error) {
	return newLocal(dir, state, &bbolt.Options{Timeout: time.Second})
}

func newLocal(dir string, state Machine, o *bbolt.Options) (*Local, error) {
	db, err := bbolt.Open(filepath.Join(dir, "lbstate.db"), 0o600, o)
	if err != nil {
		return nil, fmt.Errorf("open the local state: %w", err)
	}
	l := &Local{state: state, db: db, term: 1}
	if err := db.View(state.Restored); err != nil {
		db.Close()
		return nil, err
	}
	return l, nil
}

// Propose applies one command at once.
func (l *Local) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var results []any
	err := l.db.Update(func(tx *bbolt.Tx) (err error) {
		results, err = l.state.Apply(tx, l.term, l.index+1, [][]byte{cmd})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	l.index++
	l.state.Committed(l.index)
	return results[0], l.index, nil
}

// Accepts says whether this program knows commands of this version.
func (l *Local) Accepts(version uint64) error {
	if known := l.state.CommandVersion(); version > known {
		return &tooNewError{version, known}
	}
	return nil
}

// tooNewError says that a command is of a version that this program cannot apply.
type tooNewError struct{ version, known uint64 }

func (e *tooNewError) Error() string {
	return fmt.Sprintf("commands of version %d are not known to this program, only those up to %d", e.version, e.known)
}

// NotApplied says that nothing was proposed.
func (e *tooNewError) NotApplied() bool { return true }

// SetTerm changes the term that commands are applied in, as a change of leader
// does.
func (l *Local) SetTerm(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term = term
}

// Read calls fn with a transaction that sees every acknowledged write.
func (l *Local) Read(_ context.Context, fn func(*bbolt.Tx) error) error { return l.db.View(fn) }

// ReadStale is Read.
func (l *Local) ReadStale(fn func(*bbolt.Tx) error) error { return l.db.View(fn) }

// Close closes the database. It is idempotent.
func (l *Local) Close() error { return l.db.Close() }
