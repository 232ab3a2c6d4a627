package raftstore

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// appender is the stage that makes the log durable: it merges all that waits
// into one write and one sync, and delivers what raft says is to be said
// afterwards.
type appender struct {
	s       *Store
	self    uint64
	log     *logStore
	queue   *queue[appendTask]
	install func(*incomingSnapshot) error // by the apply stage, after what it was given before

	hard  wal.HardState // the last that raft has said
	since atomic.Int64  // nanoseconds since 1970 at which the write on its way began; 0: none
}

// appendTask is one MsgStorageAppend, and the file of its snapshot if it has one.
type appendTask struct {
	msg      *raftpb.Message
	snapshot *incomingSnapshot
}

// maxAppendBytes bounds what one write merges, beyond its first task.
const maxAppendBytes = 8 << 20

func (a *appender) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-a.queue.ready:
			if err := a.work(); err != nil {
				a.s.inbox.fail(err)
				return
			}
		}
	}
}

// work does everything that waits.
func (a *appender) work() error {
	tasks := a.queue.take()
	for len(tasks) > 0 {
		n, size := 0, int64(0)
		for n < len(tasks) && (n == 0 || size < maxAppendBytes && tasks[n].snapshot == nil && tasks[0].snapshot == nil) {
			size += entryBytes(tasks[n].msg.Entries)
			n++
		}
		out, back, err := a.do(tasks[:n])
		if err != nil {
			return err
		}
		a.deliver(out, back, n)
		tasks = tasks[n:]
	}
	return nil
}

// deliver sends what is to be said to others, and gives the loop the rest.
func (a *appender) deliver(out, back []*raftpb.Message, tasks int) {
	if t := a.s.cfg.Transport; t != nil && len(out) > 0 {
		t.Send(out)
	}
	a.s.inbox.put(func() {
		a.s.inbox.responses = append(a.s.inbox.responses, back...)
		a.s.inbox.appends += tasks
	})
}

// do carries out tasks with one sync. out is for other members, back for raft
// here.
func (a *appender) do(tasks []appendTask) (out, back []*raftpb.Message, err error) {
	var entries []*raftpb.Entry
	for _, t := range tasks {
		if t.msg.Term != nil {
			a.hard = wal.HardState{Term: t.msg.GetTerm(), Vote: t.msg.GetVote(), Commit: t.msg.GetCommit()}
		}
		if t.snapshot != nil {
			if err := a.take(t); err != nil {
				return nil, nil, err
			}
		}
		entries = mergeEntries(entries, t.msg.Entries)
	}
	began := time.Now()
	a.since.Store(began.UnixNano())
	err = a.log.save(entries, a.hard)
	a.since.Store(0)
	if err != nil {
		return nil, nil, err
	}
	if len(entries) > 0 {
		a.s.cfg.Metrics.Synced(len(entries), time.Since(began))
	}
	for _, t := range tasks {
		for _, m := range t.msg.Responses {
			if m.GetTo() == a.self {
				back = append(back, m)
			} else {
				out = appendCoalesced(out, m)
			}
		}
	}
	return out, back, nil
}

// take installs the snapshot of a task: the state first, so that a crash leaves
// a log that is begun anew when the checkpoint says so.
func (a *appender) take(t appendTask) error {
	meta := t.msg.GetSnapshot().GetMetadata()
	err := a.install(t.snapshot)
	if err == nil {
		err = a.log.install(meta, a.hard)
	}
	if err == nil {
		a.s.state.behind.Store(false)
	}
	t.snapshot.done <- err
	if err != nil {
		return fmt.Errorf("install a snapshot: %w", err)
	}
	a.s.log.Info("snapshot installed", zap.Uint64("index", meta.GetIndex()))
	return nil
}

// mergeEntries puts more behind entries; from where they begin they replace
// what is there.
func mergeEntries(entries, more []*raftpb.Entry) []*raftpb.Entry {
	if len(more) == 0 {
		return entries
	}
	if len(entries) == 0 {
		return more[:len(more):len(more)]
	}
	first := more[0].GetIndex()
	if begin := entries[0].GetIndex(); first <= begin {
		return more[:len(more):len(more)]
	} else if keep := first - begin; keep < uint64(len(entries)) {
		entries = entries[:keep:keep]
	}
	return append(entries, more...)
}

// appendCoalesced leaves out an acknowledgement that the next one covers.
func appendCoalesced(out []*raftpb.Message, m *raftpb.Message) []*raftpb.Message {
	if n := len(out); n > 0 {
		last := out[n-1]
		if plainAck(m) && plainAck(last) && m.GetTo() == last.GetTo() && m.GetTerm() == last.GetTerm() && m.GetIndex() >= last.GetIndex() {
			out[n-1] = m
			return out
		}
	}
	return append(out, m)
}

func plainAck(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && !m.GetReject() && len(m.GetContext()) == 0
}

// stalledFor is how long the write on its way has taken.
func (a *appender) stalledFor(now time.Time) time.Duration {
	since := a.since.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}
