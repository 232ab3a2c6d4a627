package raftstore

import "time"

// Metrics hears what a Store does. The methods are called from the goroutines
// that do the work: they must return at once, and may be called concurrently.
type Metrics interface {
	// Answered says that a batch of own proposals was answered, and how long the
	// oldest of them took.
	Answered(commands int, took time.Duration)
	// Synced says that one write and sync of the log is done.
	Synced(entries int, took time.Duration)
	// Applied says that one transaction of the state is done.
	Applied(entries, commands int, took time.Duration)
	// Checkpointed says that the state was made durable.
	Checkpointed(took time.Duration)
	// Queued says, once a tick, how many proposals wait to be proposed, and to be
	// applied.
	Queued(proposals, pending int)
	// LeaderChanged names the new leader, 0 if there is none, and the term.
	LeaderChanged(leader, term uint64)
	// SnapshotSent and SnapshotReceived say that a snapshot has gone to a member
	// or has come from one; err is nil when it was installed.
	SnapshotSent(member uint64, bytes int64, err error)
	SnapshotReceived(member uint64, bytes int64, err error)
	// DiskStalled says that a sync of the log takes longer than an election.
	DiskStalled(since time.Duration)
}

type noMetrics struct{}

func (noMetrics) Answered(int, time.Duration)           {}
func (noMetrics) Synced(int, time.Duration)             {}
func (noMetrics) Applied(int, int, time.Duration)       {}
func (noMetrics) Checkpointed(time.Duration)            {}
func (noMetrics) Queued(int, int)                       {}
func (noMetrics) LeaderChanged(uint64, uint64)          {}
func (noMetrics) SnapshotSent(uint64, int64, error)     {}
func (noMetrics) SnapshotReceived(uint64, int64, error) {}
func (noMetrics) DiskStalled(time.Duration)             {}
