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
//	node.json   incarnation, boot number, cluster, member; checksummed, replaced whole
//	log/        the raft log and hard state in segments; synced before anything is
//	            acknowledged (internal/wal says how)
//	state-N.db  the state machines and the applied index, a bbolt file that is
//	            synced at checkpoints alone; N is one up for each snapshot installed
//	checkpoint  which file is the state, up to which entry, and its two meta pages
//	            as they were when it was last synced; checksummed, replaced whole
//	lock        keeps other processes out
//
// Each carries the version of its format, and a newer one is refused.
//
// # Goroutines
//
//	goroutine         started by   stopped by   state it owns
//	loop              Run          ctx, Close   raft, what waits for it, membership changes
//	append stage      loop         its end      writing the log
//	apply stage       loop         its end      updates of the state, calls of state machines
//	keeper            loop         its end      checkpoints, cutting the log
//	watch             loop         its end      nothing; it notices a stalled disk
//	Transport.Run     Run          ctx, Close   the transport's own
//	copies of state   loop         their end    a temporary file each
//
// The loop waits for no disk while much is to be done. What is small, while a
// stage has nothing to do, it does itself: the stage's state is the loop's then.
// What comes for the loop goes through the inbox, which is bounded in bytes.
//
// The transaction that commands are applied in stays open until there is much in
// it, for a second at most, and is committed when someone reads, whoever comes
// first (writetx.go). Its commands are answered before: the log holds them.
//
// # What is bounded
//
// Proposals by Config.MaxPending and MaxPendingBytes: beyond it ErrOverloaded, at
// once. Entries on their way to a slow member by raft's window (256 messages, 16
// MiB); then it is probed, and the others go on. Entries to apply by 8 MiB. Log
// in memory by Config.SnapshotBytes, about; a member that lags further gets a
// snapshot, streamed from a copy. A read waits without memory of its own.
//
// # Versions of commands
//
// A program that is upgraded member by member must not propose what the older ones
// cannot apply. Each member's record tells what its program knows (Versioned); a
// node whose program is another says so through the log when it starts. What all
// members know is what the state accepts: it is worked out where a record changes,
// so at the same place of the log everywhere, and never goes down. Machine.Accepts
// answers from that, and names who is behind. Whoever knows less than the state
// accepts is refused: by the leader when it asks to join, where its record is
// applied if the others have agreed on more since, by Open with an older program,
// and by a running node before the first command that it could not apply.
//
// # Recovery
//
// Every start is the same (docs/adr/0001): the state of the last checkpoint, then
// the log. Why each case is safe:
//
//   - Killed, or power cut. The log holds everything acknowledged: one sync came
//     before. A torn tail was never acknowledged; it is cut off and reported. The
//     checkpoint's pages are synced, and bbolt was kept from using them again.
//   - Cut while a snapshot is installed. The checkpoint names the former state or
//     the new one. A log that does not reach the new one is begun anew only when
//     the checkpoint says that it came by a snapshot.
//   - Wiped disk. The incarnation is new, so the transport of the others refuses
//     the old identity, and the node joins as a new member, learner first.
//   - Log or state removed, or of different age. The log must hold the entry that
//     the checkpoint names, of that term; otherwise the node refuses to start.
//   - Disk set back to an older copy, log and state alike. The leader's heartbeat
//     says what this node once acknowledged; if its log ends before that, it stops
//     and is to come back as a new member. Until it hears that leader it may vote,
//     so two such disks in three can elect each other, as with any raft: what they
//     forgot is lost.
//   - Damaged files. Frames, small files and our own values carry checksums: an
//     error names the file. State machines are to do so with their values.
//   - A lost quorum. Recover makes a cluster of one, offline, with a new ID, so that
//     a member that comes back after all is refused. It says what may be lost.
//   - A backup. Restore makes a cluster of one with a new ID, too.
//   - Removed while it was away. The others refuse it and say why; it stops.
//   - A founder stops in the middle of formation. The record is durable before the
//     first message, and none other is accepted ever.
//   - Full disk, failing sync, a command that is not known. Run returns with the
//     reason, nothing more is written, the others go on.
//   - Stalled disk. A leader hands over, or is silent; it says that it does not
//     lead.
//   - Paused process, clock that jumps. Nothing relies on a lease or on wall time:
//     reads ask a quorum each time.
package raftstore
