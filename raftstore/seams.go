package raftstore

import (
	"context"
	"io"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
)

// StateMachine is what a replicated state must offer. A Store hosts several,
// each under its own name, in one log and one database; a machine keeps to the
// top-level bucket that carries its name.
//
// No two of the methods are called concurrently. Committed must not block.
type StateMachine interface {
	// Apply applies commands in order inside tx and returns one result for each
	// command. All of them come from the entry at index, which was written in
	// term; a command's result is handed to the caller that proposed it, if that
	// caller is on this node. A command that is refused by its own rules is a
	// result (an error value, say), not an error: a non-nil error stops the node,
	// because going on would be divergence.
	//
	// Its effects are in every read from the moment that the command is answered.
	//
	// Apply must be deterministic: it reads tx and cmds, nothing else. It must
	// not keep cmds, nor publish anything to watchers: tx may still be rolled
	// back, and the same entry applied again.
	Apply(tx *bbolt.Tx, term, index uint64, cmds [][]byte) ([]any, error)

	// Committed says that everything up to index is committed, and in every read
	// that begins from now on. It is the only place that publishes to watchers. It
	// may come a few milliseconds after the commands were answered, once for many.
	Committed(index uint64)

	// Restored says that tx shows a database that replaced the former one (a
	// snapshot was installed), or the first one (the node has just started):
	// caches are to be rebuilt and watchers get a full state.
	Restored(tx *bbolt.Tx) error
}

// Transport carries raft's messages and snapshots between members. Its
// signatures name only the standard library and raftpb, so that a transport
// need not import this package. All methods but Run may be called from any
// goroutine, at any time, and do not block.
type Transport interface {
	// Run serves until ctx ends and returns nil then, otherwise the reason. The
	// Store calls it once, when it knows its cluster and its own member ID;
	// incarnation is the random number made with this node's data directory.
	//
	// receive takes messages that arrived, in order for each sender; the callee
	// owns them. snapshot takes a MsgSnap and the snapshot's bytes; it returns
	// when they are installed or refused. unreachable reports a peer whose
	// connection was reset or whose messages were dropped.
	Run(ctx context.Context, cluster, self, incarnation uint64,
		receive func(from uint64, msgs []*raftpb.Message),
		snapshot func(msg *raftpb.Message, body io.Reader) error,
		unreachable func(peer uint64, err error)) error

	// Send queues messages to their To. Where a queue is full messages are
	// dropped and unreachable is called. The transport owns msgs' elements, not
	// the slice.
	Send(msgs []*raftpb.Message)

	// SendSnapshot streams size bytes from body to msg.To, closes body, and calls
	// done exactly once with the outcome.
	SendSnapshot(msg *raftpb.Message, size int64, body io.ReadCloser, done func(error))

	// SetPeer tells where a member is reached and which incarnation it must show
	// (0: any); RemovePeer forgets it, and refuses it from then on.
	SetPeer(member, incarnation uint64, address string)
	RemovePeer(member uint64)
}
