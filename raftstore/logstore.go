package raftstore

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// logStore is what raft reads of its log: the entries that have not been cut,
// in memory, and on disk in wal. The append stage writes, the keeper cuts, raft
// reads.
type logStore struct {
	*raft.MemoryStorage
	wal      *wal.Log
	contents *wal.Contents // of the log as it was opened, until load
	bytes    atomic.Int64  // of entries in memory
	cutting  sync.Mutex    // held while the log is cut, or begun anew
	saved    wal.HardState // as it is on disk, but for the commit index; belongs to the append stage

	// current gives raft the metadata of what a lagging follower will be sent.
	current func() (*raftpb.SnapshotMetadata, error)
}

func openLogStore(files disk.FS, dir string) (*logStore, error) {
	w, c, err := wal.Open(files, filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	return &logStore{MemoryStorage: raft.NewMemoryStorage(), wal: w, contents: &c}, nil
}

// load fits the log to the state of the last checkpoint. A log that does not
// reach there is one from before a snapshot was installed, if the checkpoint
// says that one was: then the log begins anew after it.
func (l *logStore) load(c checkpoint, conf *raftpb.ConfState) error {
	log := l.contents
	l.contents = nil
	l.saved = log.Hard
	known, err := fits(log, c)
	if err != nil {
		return err
	}
	if c.Index == 0 {
		return l.SetHardState(hardProto(log.Hard))
	}
	if !known {
		log.Base, log.Entries = c.mark(), nil
		log.Hard.Term, log.Hard.Commit = max(log.Hard.Term, c.Term), c.Index
		if err := l.wal.Reset(log.Base, log.Hard); err != nil {
			return err
		}
		l.saved = log.Hard
	}
	meta := &raftpb.SnapshotMetadata{Index: proto.Uint64(log.Base.Index), Term: proto.Uint64(log.Base.Term), ConfState: conf}
	if err := l.ApplySnapshot(&raftpb.Snapshot{Metadata: meta}); err != nil {
		return err
	}
	if err := l.Append(log.Entries); err != nil {
		return err
	}
	l.bytes.Store(entryBytes(log.Entries))
	// What is applied is committed, whatever the last synced hard state says; what
	// is not there is not.
	hard := log.Hard
	hard.Commit = min(max(hard.Commit, c.Index), log.Last().Index)
	return l.SetHardState(hardProto(hard))
}

// fits says whether a log goes on where a checkpoint ends. If it does not, it is
// begun anew: that it may be so is what the checkpoint says; otherwise it is an
// error.
func fits(log *wal.Contents, c checkpoint) (known bool, err error) {
	last := log.Last()
	if c.Index == 0 {
		if last.Index > 0 {
			return false, fmt.Errorf("the log has entries up to %d, but there is no state; start with an empty directory, and the node comes back as a new member", last.Index)
		}
		return true, nil
	}
	known = c.mark() == log.Base
	if c.Index > log.Base.Index && c.Index <= last.Index {
		known = log.Entries[c.Index-log.Base.Index-1].GetTerm() == c.Term
	}
	if !known && !c.Installed && (c.Index != foundingIndex || last.Index > 0) {
		return false, fmt.Errorf("the log goes from entry %d to %d, the state has applied %d of term %d: the log has lost its end, or its files are not those of this state; start with an empty directory, and the node comes back as a new member", log.Base.Index+1, last.Index, c.Index, c.Term)
	}
	return known, nil
}

func hardProto(h wal.HardState) *raftpb.HardState {
	return &raftpb.HardState{Term: proto.Uint64(h.Term), Vote: proto.Uint64(h.Vote), Commit: proto.Uint64(h.Commit)}
}

func entryBytes(entries []*raftpb.Entry) int64 {
	n := int64(0)
	for _, e := range entries {
		n += int64(len(e.GetData()))
	}
	return n
}

// save makes entries and hard state durable, then shows the entries to raft. A
// commit index alone needs no sync: what is applied proves it.
func (l *logStore) save(entries []*raftpb.Entry, hard wal.HardState) error {
	if len(entries) == 0 && hard.Term == l.saved.Term && hard.Vote == l.saved.Vote {
		return nil
	}
	if err := l.wal.Append(wal.Batch{Hard: &hard, Entries: entries}); err != nil {
		return err
	}
	l.saved = hard
	l.bytes.Add(entryBytes(entries))
	return l.Append(entries)
}

// install begins the log anew after a snapshot whose state is in place.
func (l *logStore) install(meta *raftpb.SnapshotMetadata, hard wal.HardState) error {
	l.cutting.Lock()
	defer l.cutting.Unlock()
	m := wal.Mark{Index: meta.GetIndex(), Term: meta.GetTerm()}
	if err := l.wal.Reset(m, hard); err != nil {
		return err
	}
	l.saved = hard
	l.bytes.Store(0)
	return l.ApplySnapshot(&raftpb.Snapshot{Metadata: meta})
}

// cut drops the entries up to to. What is dropped must be durable in the state;
// cutting is held. A log that does not reach to is one that has not heard yet of a
// snapshot which is in place.
func (l *logStore) cut(to uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if to < first || to > last {
		return nil
	}
	dropped, err := l.Entries(first, to+1, 1<<62)
	if err != nil {
		return err
	}
	if err := l.Compact(to); err != nil {
		return err
	}
	l.bytes.Add(-entryBytes(dropped))
	return l.wal.Cut(to)
}

// Snapshot gives raft the metadata of the state as it is; the bytes follow when
// it is sent.
func (l *logStore) Snapshot() (*raftpb.Snapshot, error) {
	meta, err := l.current()
	if err != nil {
		return nil, err
	}
	if meta.GetIndex() == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: meta}, nil
}
