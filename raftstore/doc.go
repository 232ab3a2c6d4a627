// Package raftstore is a replicated bbolt database: etcd/raft over a data
// directory. It hosts state machines, each in a bucket of its own, in one log
// and one transaction, and knows nothing of what they hold.
//
// Open a Store, call Run, propose through Machine, read with Read. A node
// without a Transport is a cluster of one; others get their identity once, by
// Found or Join (package formation does that over HTTP).
//
// # Files
//
//	node.json  incarnation, cluster, member; checksummed, replaced whole
//	log.db     the raft log and hard state; synced before anything is acknowledged
//	state.db   the state machines and the applied index; synced at each apply
//
// # Goroutines
//
//	goroutine        started by    stopped by   state it owns
//	loop             Run           ctx, Close   raft, the log, members, waiting proposals
//	Transport.Run    Run           ctx, Close   the transport's own
//	copies of state  the loop      their end    a temporary file each
package raftstore
