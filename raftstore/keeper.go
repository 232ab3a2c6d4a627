package raftstore

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// keeper is the stage that makes the state durable now and then, and cuts the
// log up to there: off the path of acknowledgement.
type keeper struct {
	s   *Store
	log *logStore
	due chan struct{} // holds a token when a checkpoint is asked for

	mu    sync.Mutex // one checkpoint and cut at a time; guards stays
	stays bool       // a reader does, and it was said
}

func (k *keeper) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-k.due:
			err := k.s.state.writeBack(stop)
			if err == nil {
				err = k.work()
			}
			if err != nil {
				k.s.inbox.fail(err)
				return
			}
		}
	}
}

func (k *keeper) work() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	began := time.Now()
	mark, err := k.s.state.checkpoint()
	if err != nil {
		return err
	}
	k.s.cfg.Metrics.Checkpointed(time.Since(began))
	stays := k.s.state.readersStay()
	if stays && !k.stays {
		k.s.log.Warn("a reader has stayed since before the last checkpoint: the pages that it sees cannot be used again, and the file grows as the state changes")
	}
	k.stays = stays
	k.log.cutting.Lock()
	defer k.log.cutting.Unlock()
	to, err := k.cutTo(mark)
	if err != nil {
		return err
	}
	k.s.log.Debug("checkpoint", zap.Uint64("index", mark.Index), zap.Uint64("cut", to), zap.Duration("took", time.Since(began)))
	return k.log.cut(to)
}

// trailingShare is the part of Config.SnapshotBytes that entries may take which
// are kept for followers that lag a little.
const trailingShare = 4

// cutTo is up to where the log is not needed: never past what is durable in the
// state, and not what a follower that lags a little may ask for.
func (k *keeper) cutTo(mark wal.Mark) (uint64, error) {
	c := k.s.cfg
	to := mark.Index - min(mark.Index, c.TrailingEntries)
	keep := c.SnapshotBytes / trailingShare
	if uint64(k.log.bytes.Load()) <= keep {
		return to, nil
	}
	last, err := k.log.LastIndex()
	if err != nil {
		return 0, err
	}
	first, err := k.log.FirstIndex()
	if err != nil || last < first {
		return to, err
	}
	entries, err := k.log.Entries(first, last+1, 1<<62)
	if err != nil {
		return 0, err
	}
	large := last // up to here they take too much
	for size := uint64(0); large >= first; large-- {
		if size += uint64(len(entries[large-first].GetData())); size > keep {
			break
		}
	}
	// One is kept in any case, for its term.
	return min(max(to, large), mark.Index-min(mark.Index, 1)), nil
}

// restTicks is how long nothing is applied before the log is cut to what is kept
// for followers: what a burst has left there takes memory, and time at a start.
const restTicks = 20

// rest is how long the applied index has been the same.
type rest struct {
	index uint64
	since uint64 // tick
}

// restUp has the state made durable and the log cut where a burst has ended.
func (l *loop) restUp() {
	if l.rest.index != l.applied.index {
		l.rest = rest{l.applied.index, l.ticks}
		return
	}
	keep := l.s.cfg.SnapshotBytes / trailingShare
	if l.ticks-l.rest.since == restTicks && uint64(l.log.bytes.Load()) > keep {
		wake(l.keep.due)
	}
}

// Snapshot makes the state durable now and cuts the log, as happens by itself
// after Config.SnapshotEntries.
func (s *Store) Snapshot(ctx context.Context) error {
	var keep *keeper
	if err := s.on(ctx, func(l *loop) { keep = l.keep }); err != nil {
		return err
	}
	err := keep.work()
	if err != nil {
		s.inbox.fail(err)
	}
	return err
}
