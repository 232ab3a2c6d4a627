package raftstore

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
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

	TickInterval  time.Duration // default 50ms; a heartbeat each tick
	ElectionTicks int           // default 8: a leader that is silent for so long to twice as long is replaced

	ManualPromotion bool // learners stay so until Promote is called

	SnapshotEntries uint64 // applied entries after which the state is made durable and the log is cut; default 10,000
	SnapshotBytes   uint64 // of log since then that has the same effect; default 32 MiB
	TrailingEntries uint64 // entries kept for followers that lag a little, up to a quarter of SnapshotBytes; default 1,000

	MaxPending      int           // commands waiting to be applied on this node; default 4,096
	MaxPendingBytes int           // of them; default 64 MiB
	MaxCommandBytes int           // of one command; default 1 MiB
	ProposalTimeout time.Duration // of a proposal whose context has no deadline; default 10s

	Metrics Metrics // nil: none

	Logger *zap.Logger // nil: silent

	files  disk.FS            // nil: the real ones
	weaken func(*raft.Config) // nil; the simulation shows that it notices what this breaks
}

func (c Config) withDefaults() Config {
	def(&c.Name, "raft")
	def(&c.TickInterval, 50*time.Millisecond)
	def(&c.ElectionTicks, 8)
	def(&c.SnapshotEntries, 10_000)
	def(&c.TrailingEntries, 1_000)
	def(&c.SnapshotBytes, 32<<20)
	def(&c.MaxPending, 4096)
	def(&c.MaxPendingBytes, 64<<20)
	def(&c.MaxCommandBytes, 1<<20)
	def(&c.ProposalTimeout, 10*time.Second)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("raftstore")
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	if c.files == nil {
		c.files = disk.OS{}
	}
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
	case c.MaxCommandBytes > maxEnvelopeBytes/2:
		return fmt.Errorf("raftstore: MaxCommandBytes is %d, at most %d are possible", c.MaxCommandBytes, maxEnvelopeBytes/2)
	}
	for name := range c.StateMachines {
		if name == "" || len(name) > maxMachineName || name == ownBucketName {
			return fmt.Errorf("raftstore: %q cannot be the name of a state machine", name)
		}
	}
	return nil
}

// OnDisk returns a Config whose node lives on a simulated disk. It is for package
// raftstoretest: disk.FS is internal.
func (c Config) OnDisk(fs disk.FS) Config {
	c.files = fs
	return c
}
