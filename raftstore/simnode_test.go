package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

type simNode struct {
	sim      *sim
	id       uint64 // 0: not a member yet
	name     string
	dir      string
	fs       *simdisk.FS
	up       bool
	s        *Store
	l        *loop
	tasks    []func() // of the background
	nextTick time.Time
	slow     time.Time // the disk works again then
	paused   time.Time // the process runs again then
	drift    time.Time // the clock is slow until then
	gone     bool      // removed
	awaits   []simInstall
	version  uint64 // of its program
}

// open opens the store of a node.
func (n *simNode) open() error {
	cfg := Config{
		Dir: n.dir, Name: n.name, RaftAddr: n.name + ":1", StateMachines: map[string]StateMachine{"sim": simMachine{n.version}},
		Transport: simTransport{n}, TickInterval: 10 * time.Millisecond, ElectionTicks: 8,
		SnapshotEntries: 60, TrailingEntries: 10, files: n.fs,
	}
	if n.sim.broken == skipsReadQuorum {
		cfg.weaken = func(c *raft.Config) { c.ReadOnlyOption = raft.ReadOnlyLeaseBased }
	}
	var err error
	n.s, err = Open(cfg)
	return err
}

// newest makes a command of the newest version that may be proposed.
func (n *simNode) newest(cmd []byte) []byte {
	for v := n.version; v > 1; v-- {
		if n.s.Machine("sim").Accepts(v) == nil {
			return append([]byte{byte(v)}, cmd...)
		}
	}
	return cmd
}

// start makes the loop of a node that has an identity.
func (n *simNode) start() error {
	n.s.state.moreRoom = 16 << 10
	n.s.state.write.now = func() time.Time { return n.sim.now }
	n.s.state.write.stagger = func() int64 { return int64(n.sim.rng.IntN(50)) }
	n.s.state.write.later = func(time.Duration, func()) {} // see work
	if n.sim.broken == forgetsApplied && n.s.state.lastCheckpoint().Index > foundingIndex {
		if err := n.forget(); err != nil {
			return err
		}
	}
	l, err := n.s.newLoop()
	if err != nil {
		return err
	}
	n.l, n.up = l, true
	n.nextTick = n.sim.now
	l.now = func() time.Time { return n.sim.now }
	l.spawn = func(fn func()) { n.tasks = append(n.tasks, fn) }
	l.after = func(time.Duration, func()) {}
	l.append.install = func(in *incomingSnapshot) error {
		if err := l.apply.work(); err != nil {
			return err
		}
		n.sim.snapshots++
		if err := l.apply.install(in); err != nil || n.sim.rng.IntN(2) == 0 {
			return err
		}
		return l.keep.work() // before the log hears of the snapshot
	}
	l.apply.confChange = func(cc *raftpb.ConfChangeV2) (*raftpb.ConfState, error) { return l.rn.ApplyConfChange(cc), nil }
	return l.begin()
}

// forget makes the state say that it has applied less than it has.
func (n *simNode) forget() error {
	base := n.s.logs.contents.Base
	if base.Index == 0 {
		base.Index, base.Term = foundingIndex, 1
	}
	if base.Index >= n.s.state.lastCheckpoint().Index {
		return nil
	}
	err := n.s.state.update(1, func(tx *bbolt.Tx) error {
		b := tx.Bucket(ownBucket)
		if err := b.DeleteBucket(seenBucket); err != nil {
			return err
		}
		if _, err := b.CreateBucket(seenBucket); err != nil {
			return err
		}
		return own{b}.setApplied(base.Index, base.Term)
	})
	if err == nil {
		_, err = n.s.state.checkpoint()
	}
	return err
}

// crash ends a node as a power cut does.
func (n *simNode) crash() error {
	n.sim.note("crash %d", n.id)
	n.sim.crashes++
	n.fs.Cut()
	if n.l != nil {
		n.l.round.fail(ErrStopped)
	}
	if n.s != nil {
		_ = n.s.logs.wal.Close() // the power is cut: it fails
		if err := errors.Join(n.s.state.close(), n.s.lock.release()); err != nil {
			return err
		}
	}
	for _, op := range slices.Clone(n.sim.ops) {
		if op.node == n {
			n.sim.end(op, outcome{err: op.left()})
		}
	}
	for _, i := range n.awaits {
		i.report(errors.New("the receiver has crashed"))
	}
	n.up, n.l, n.s, n.tasks, n.awaits = false, nil, nil, nil, nil
	n.fs.Before = nil
	return n.fs.Restart()
}

// do lets a node work; a power cut on the way ends it.
func (n *simNode) do(fn func() error) error {
	err := fn()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, simdisk.ErrPowerCut):
		return n.crash()
	case errors.Is(err, ErrRemoved):
		n.gone = true
		return n.crash()
	}
	return fmt.Errorf("%s: %w", n.name, err)
}

// restart brings a node back.
func (n *simNode) restart() error {
	if n.sim.rng.IntN(3) == 0 {
		n.version = min(n.version+1, newestVersion)
	}
	n.sim.note("restart %d %d", n.id, n.version)
	return n.do(func() error {
		if err := n.open(); err != nil {
			return err
		}
		if n.s.node.Cluster == 0 {
			return errors.New("it has forgotten what cluster it belongs to")
		}
		return n.start()
	})
}

// work is one step of a node.
func (n *simNode) work() error {
	s := n.sim
	if !n.up || s.now.Before(n.paused) {
		return nil
	}
	if !s.now.Before(n.nextTick) {
		n.l.tick()
		n.nextTick = s.now.Add(time.Duration(9+s.rng.IntN(3)) * time.Millisecond)
		if s.now.Before(n.drift) {
			n.nextTick = s.now.Add(100 * time.Millisecond)
		}
	}
	slow := s.now.Before(n.slow)
	order := s.rng.Perm(4)
	for _, what := range order {
		if !n.up {
			return nil
		}
		var err error
		switch chance := s.rng.IntN(10); {
		case what == 0 && chance < 8:
			err = n.do(n.l.turn)
		case what == 1 && chance < 6 && !slow:
			err = n.do(n.l.append.work)
		case what == 2 && chance < 6:
			err = n.do(n.l.apply.work)
		case what == 3 && chance < 4:
			err = n.do(n.s.state.flush)
		case what == 3 && chance < 6:
			select {
			case <-n.l.keep.due:
				err = n.do(n.l.keep.work)
			default:
			}
			if tasks := n.tasks; n.up && len(tasks) > 0 {
				n.tasks = nil
				for _, fn := range tasks {
					fn()
				}
			}
		}
		if err != nil {
			return err
		}
	}
	n.awaits = slices.DeleteFunc(n.awaits, func(i simInstall) bool {
		select {
		case err := <-i.outcome:
			i.report(err)
			return true
		default:
			return false
		}
	})
	if n.up {
		s.leaders[n.l.rn.BasicStatus().GetTerm()] = true
	}
	return nil
}
