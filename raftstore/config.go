package raftstore

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Config says what a Store is. Dir and StateMachines are required.
type Config struct {
	Dir      string // made if it is missing; used by one process
	Name     string // unique in the cluster; default "raft"
	RaftAddr string // announced address of the raft port
	HTTPAddr string // announced address of the HTTP port; not used here, shown to others

	// StateMachines by name, which is also their top-level bucket. Every member
	// must have the same.
	StateMachines map[string]StateMachine

	Transport Transport // nil: a cluster of one, formed by Run itself

	TickInterval  time.Duration // default 100ms; a heartbeat each tick
	ElectionTicks int           // default 10: a leader that is silent so long is replaced

	SnapshotEntries uint64 // applied entries after which the log is cut; default 10,000
	TrailingEntries uint64 // entries kept for followers that lag a little; default 1,000
	SnapshotBytes   uint64 // of log in memory after which it is cut; default 64 MiB

	MaxPending      int           // commands waiting to be applied on this node; default 4,096
	MaxCommandBytes int           // of one command; default 1 MiB
	ProposalTimeout time.Duration // of a proposal whose context has no deadline; default 10s

	Logger *zap.Logger // nil: silent
}

func (c Config) withDefaults() Config {
	def(&c.Name, "raft")
	def(&c.TickInterval, 100*time.Millisecond)
	def(&c.ElectionTicks, 10)
	def(&c.SnapshotEntries, 10_000)
	def(&c.TrailingEntries, 1_000)
	def(&c.SnapshotBytes, 64<<20)
	def(&c.MaxPending, 4096)
	def(&c.MaxCommandBytes, 1<<20)
	def(&c.ProposalTimeout, 10*time.Second)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("raftstore")
	return c
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("raftstore: Dir is required")
	case len(c.StateMachines) == 0:
		return errors.New("raftstore: StateMachines is required")
	case c.TickInterval < time.Millisecond:
		return fmt.Errorf("raftstore: TickInterval is %v, want at least 1ms", c.TickInterval)
	case c.ElectionTicks < 3:
		return fmt.Errorf("raftstore: ElectionTicks is %d, want at least 3", c.ElectionTicks)
	}
	for name := range c.StateMachines {
		if name == "" || len(name) > maxMachineName || name == ownBucketName {
			return fmt.Errorf("raftstore: %q cannot be the name of a state machine", name)
		}
	}
	return nil
}
