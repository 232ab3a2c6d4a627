package raftstore

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// stallElections is how many election timeouts a sync may take: a disk that is
// merely busy, with others' data, say, has no better successor.
const stallElections = 5

func (l *loop) stallLimit() time.Duration {
	return stallElections * time.Duration(l.s.cfg.ElectionTicks) * l.s.cfg.TickInterval
}

// watchDisk makes a leader whose disk stalls hand over: the others can still
// commit, but nothing would be applied here, nor answered. Where no one takes
// over within an election timeout it falls silent, so that they elect another.
func (l *loop) watchDisk() {
	took := l.append.stalledFor(l.now())
	if took < l.stallLimit() {
		l.stalled, l.muted = 0, false
		return
	}
	if l.stalled == 0 {
		l.stalled = max(1, l.ticks)
		if to := l.successor(); l.leads() && to != 0 {
			l.rn.TransferLeader(to)
		}
	}
	l.muted = l.leads() && l.ticks-l.stalled >= uint64(l.s.cfg.ElectionTicks) && len(l.applied.members) > 1
}

// watch reports a disk that stalls, and that this node does not lead while it
// does: the loop itself may be in that sync, and so be silent to the others.
func (l *loop) watch(stop <-chan struct{}) {
	tick := time.NewTicker(l.s.cfg.TickInterval)
	defer tick.Stop()
	for stalled := false; ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		took := l.append.stalledFor(time.Now())
		switch now := took >= l.stallLimit(); {
		case now && !stalled:
			stalled = true
			l.s.cfg.Metrics.DiskStalled(took)
			l.s.log.Error("the disk stalls: a sync of the log does not return", zap.Duration("since", took))
			l.s.showStalled()
		case !now && stalled:
			stalled = false
			l.s.log.Info("the disk answers again")
		}
	}
}

// successor is the voter that is furthest, of those that were heard lately.
func (l *loop) successor() uint64 {
	best, match := uint64(0), uint64(0)
	l.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id != l.self && !p.IsLearner && p.RecentActive && (best == 0 || p.Match > match) {
			best, match = id, p.Match
		}
	})
	return best
}
