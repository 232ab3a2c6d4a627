package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Store is one node of a replicated database. Its methods are safe for
// concurrent use.
type Store struct {
	cfg   Config
	log   *zap.Logger
	names []string // of the state machines, in order

	lock  *dirLock
	state *stateDB
	logs  *logStore

	inbox           inbox
	reads           readQueue
	pending         pending
	pendingCommands atomic.Int64             // queued or waiting to be applied
	pendingBytes    atomic.Int64             // of these
	accepted        atomic.Pointer[Versions] // seen.accepted, for each proposal
	stopped         chan struct{}            // closed when Run has ended or Close was called before it

	mu       sync.Mutex // guards the fields below
	node     nodeFile
	formed   chan struct{} // closed when node has a cluster
	started  bool
	stopping bool
	cancel   context.CancelFunc
	done     chan struct{} // closed when Run has returned
	reason   error         // why Run has ended
	seen     seen
	changed  chan struct{} // closed and replaced when seen changes

	closing  sync.Once
	closeErr error
}

// seen is what the loop shows to others.
type seen struct {
	term, leader, commit, applied uint64
	leading                       bool
	members                       map[uint64]Member
	accepted                      Versions // never changed, only replaced
	replaced                      uint64   // how often these two were
}

// Open opens or makes the data directory. It starts nothing: see Run.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := cfg.files.MkdirAll(cfg.Dir); err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger,
		inbox:   inbox{ready: make(chan struct{}, 1)},
		stopped: make(chan struct{}),
		formed:  make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	for name := range cfg.StateMachines {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("raftstore: %w", errors.Join(err, s.release()))
	}
	return s, nil
}

func (s *Store) open() error {
	files, dir := s.cfg.files, s.cfg.Dir
	var err error
	if s.lock, err = lockDir(dir); err != nil {
		return err
	}
	if s.node, err = loadNodeFile(files, dir); err != nil {
		return err
	}
	member := s.node.Cluster != 0
	if s.state, err = openStateDB(files, dir, !member); err != nil {
		return err
	}
	s.state.write.waiting = s.pendingCommands.Load
	if s.logs, err = openLogStore(files, dir); err != nil {
		return err
	}
	if member && s.logs.contents.Fresh {
		return fmt.Errorf("this node belongs to cluster %016x, but its log is missing; start with an empty directory, and the node comes back as a new member", s.node.Cluster)
	}
	if t := s.logs.contents.Torn; t != nil {
		s.log.Warn("the log had a torn tail, never acknowledged: it is cut off", zap.String("file", t.File), zap.Int64("offset", t.Offset))
	}
	s.node.Boot++
	if err := s.node.save(files, dir); err != nil {
		return err
	}
	if member {
		close(s.formed)
	}
	return s.state.view(func(tx *bbolt.Tx) error {
		o := ownIn(tx)
		s.seen.applied, s.seen.term = o.applied()
		if s.seen.members, err = o.members(); err != nil {
			return err
		}
		if s.seen.accepted, err = o.accepted(); err != nil {
			return err
		}
		s.setAccepted(s.seen.accepted)
		return s.seen.accepted.Admits(s.cfg.programVersions())
	})
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
	defer s.reads.end()
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
	err := s.run(ctx)
	if err != nil {
		s.log.Error("this node stops", zap.Error(err))
	}
	s.mu.Lock()
	s.reason = err
	s.mu.Unlock()
	return err
}

func (s *Store) run(ctx context.Context) error {
	l, err := s.newLoop()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var transport sync.WaitGroup
	if t := s.cfg.Transport; t != nil {
		s.setPeers(l.self, l.applied.members)
		id := s.Identity()
		transport.Go(func() {
			receive := func(from uint64, msgs []*raftpb.Message) {
				s.inbox.receive(ctx, received{from, time.Now(), msgs})
			}
			err := t.Run(ctx, id.Cluster, id.Member, id.Incarnation, receive, s.receiveSnapshot(ctx), s.lost(ctx))
			if err != nil {
				s.inbox.fail(fmt.Errorf("transport: %w", err))
			}
		})
	}
	err = l.run(ctx)
	cancel()
	l.fail(ErrStopped)
	transport.Wait()
	l.background.Wait()
	if err == nil {
		// A clean end: nothing is to be brought back from the log.
		err = l.keep.work()
	}
	return err
}

// Err is why Run has ended, nil while it runs or if nothing was wrong.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
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
		s.reads.end()
		close(s.stopped)
	}
	return s.release()
}

// release closes what is open.
func (s *Store) release() error {
	s.closing.Do(func() {
		var errs []error
		if s.logs != nil {
			errs = append(errs, s.logs.wal.Close())
		}
		if s.state != nil {
			errs = append(errs, s.state.close())
		}
		if s.lock != nil {
			errs = append(errs, s.lock.release())
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// show publishes what has changed to Status, Leadership and Changed.
func (s *Store) show(n seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wake := n.term != s.seen.term || n.leader != s.seen.leader || n.leading != s.seen.leading
	if n.replaced != s.seen.replaced || len(n.members) != len(s.seen.members) {
		wake = wake || !maps.EqualFunc(n.members, s.seen.members, Member.equal) || !maps.Equal(n.accepted, s.seen.accepted)
		s.setAccepted(n.accepted)
	}
	s.seen = n
	if wake {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// showStalled publishes that this node does not lead for now.
func (s *Store) showStalled() {
	s.mu.Lock()
	n := s.seen
	s.mu.Unlock()
	n.leading = false
	s.show(n)
}

// zapRaft gives raft's messages to the logger.
type zapRaft struct{ *zap.SugaredLogger }

func (z zapRaft) Warning(v ...any)            { z.Warn(v...) }
func (z zapRaft) Warningf(f string, v ...any) { z.Warnf(f, v...) }

var _ raft.Logger = zapRaft{}
