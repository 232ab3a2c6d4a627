package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// Store is one node of a replicated database. Its methods are safe for
// concurrent use.
type Store struct {
	cfg   Config
	log   *zap.Logger
	names []string // of the state machines, in order

	state *stateDB
	logdb *logDB

	proposals chan *proposal
	reads     chan *read
	calls     chan func(*loop) // carried out by the loop
	pending   atomic.Int64     // commands queued or waiting to be applied
	stopped   chan struct{}    // closed when Run has ended or Close was called before it

	mu       sync.Mutex // guards the fields below
	node     nodeFile
	formed   chan struct{} // closed when node has a cluster
	started  bool
	stopping bool
	cancel   context.CancelFunc
	done     chan struct{} // closed when Run has returned
	seen     seen
	changed  chan struct{} // closed and replaced when seen changes

	dbs   sync.Once
	dbErr error
}

// seen is what the loop shows to others.
type seen struct {
	term, leader, commit, applied uint64
	leading                       bool
	members                       map[uint64]Member
}

// Open opens or makes the data directory. It starts nothing: see Run.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger,
		proposals: make(chan *proposal, cfg.MaxPending),
		reads:     make(chan *read, 1024),
		calls:     make(chan func(*loop)),
		stopped:   make(chan struct{}),
		formed:    make(chan struct{}),
		done:      make(chan struct{}),
		changed:   make(chan struct{}),
	}
	for name := range cfg.StateMachines {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	if err := s.open(); err != nil {
		s.closeDBs()
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	return s, nil
}

func (s *Store) open() error {
	var err error
	if s.node, err = loadNodeFile(s.cfg.Dir); err != nil {
		return err
	}
	logPath, statePath := filepath.Join(s.cfg.Dir, "log.db"), filepath.Join(s.cfg.Dir, "state.db")
	if s.node.Cluster != 0 {
		for _, path := range []string{logPath, statePath} {
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("this node belongs to cluster %016x, but a file is missing: %w; start with an empty directory, and the node comes back as a new member", s.node.Cluster, err)
			}
		}
	}
	if s.logdb, err = openLogDB(logPath); err != nil {
		return err
	}
	if s.state, err = openStateDB(statePath); err != nil {
		return err
	}
	removeLeftovers(s.cfg.Dir)
	s.node.Boot++
	if err := s.node.save(s.cfg.Dir); err != nil {
		return err
	}
	if s.node.Cluster != 0 {
		close(s.formed)
	}
	return s.state.view(func(tx *bbolt.Tx) error {
		o := ownIn(tx)
		s.seen.applied, s.seen.term = o.applied()
		s.seen.members, err = o.members()
		return err
	})
}

// removeLeftovers removes files of snapshots that a crash left unfinished.
func removeLeftovers(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, "snapshot-*.tmp"))
	if err != nil {
		return
	}
	for _, name := range names {
		os.Remove(name)
	}
}

// Run takes part in the cluster until ctx ends or Close is called, which gives
// nil; any other error says why this node cannot go on. While the node has no
// identity yet, Run waits for Found or Join; without a Transport it founds a
// cluster of one. It may be called once.
func (s *Store) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return nil
	}
	if s.started {
		s.mu.Unlock()
		return errors.New("raftstore: Run was called twice")
	}
	s.started = true
	ctx, s.cancel = context.WithCancel(ctx)
	s.mu.Unlock()
	defer close(s.done)
	defer close(s.stopped)
	defer s.cancel()

	if s.cfg.Transport == nil && s.Identity().Cluster == 0 {
		if err := s.Found(Founding{Cluster: randomID(), Founders: []Founder{s.founder(randomID())}}); err != nil {
			return err
		}
	}
	select {
	case <-s.formed:
	case <-ctx.Done():
		return nil
	}
	l, err := s.newLoop()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if t := s.cfg.Transport; t != nil {
		l.setPeers()
		id := s.Identity()
		wg.Go(func() {
			err := t.Run(ctx, id.Cluster, id.Member, id.Incarnation, l.receive(ctx), l.receiveSnapshot(ctx), l.unreachable(ctx))
			if err != nil {
				cancel(fmt.Errorf("transport: %w", err))
			}
		})
	}
	err = l.run(ctx)
	l.fail(unknown(ErrStopped))
	if err == nil {
		if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
			err = c
		}
	}
	if err != nil {
		s.log.Error("this node stops", zap.Error(err))
	}
	cancel(nil)
	l.background.Wait()
	return err
}

// Close ends Run, waits for it and closes the files. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.stopping
	s.stopping = true
	started, cancel := s.started, s.cancel
	s.mu.Unlock()
	if started {
		cancel()
		<-s.done
	} else if first {
		close(s.stopped)
	}
	return s.closeDBs()
}

func (s *Store) closeDBs() error {
	s.dbs.Do(func() {
		var errs []error
		if s.state != nil {
			errs = append(errs, s.state.close())
		}
		if s.logdb != nil {
			errs = append(errs, s.logdb.close())
		}
		s.dbErr = errors.Join(errs...)
	})
	return s.dbErr
}

// show publishes what has changed to Status, Leadership and Changed.
func (s *Store) show(n seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wake := n.term != s.seen.term || n.leader != s.seen.leader || n.leading != s.seen.leading || len(n.members) != len(s.seen.members)
	for id, m := range n.members {
		wake = wake || s.seen.members[id] != m
	}
	s.seen = n
	if wake {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// zapRaft gives raft's messages to the logger.
type zapRaft struct{ *zap.SugaredLogger }

func (z zapRaft) Warning(v ...any)            { z.Warn(v...) }
func (z zapRaft) Warningf(f string, v ...any) { z.Warnf(f, v...) }

var _ raft.Logger = zapRaft{}
