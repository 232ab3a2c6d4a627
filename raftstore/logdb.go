package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// logDB is the raft log: log.db on disk, each commit synced, and in memory the
// entries that have not been cut, which raft reads. Snapshot gives raft the
// metadata of the state as it is; the bytes follow when it is sent.
type logDB struct {
	*raft.MemoryStorage
	path    string
	db      *bbolt.DB
	bytes   uint64 // of entries in memory
	current func() *raftpb.SnapshotMetadata
	unsaved *raftpb.HardState // newer than on disk only in its commit index
}

var (
	entriesBucket = []byte("entries") // index → CRC-32C and raftpb.Entry
	logMetaBucket = []byte("log")     // hard state and where the log begins
	hardStateKey  = []byte("hard")    // CRC-32C and raftpb.HardState
	logStartKey   = []byte("start")   // CRC-32C and raftpb.SnapshotMetadata: entries follow this index
)

func openLogDB(path string) (*logDB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		if errors.Is(err, bbolt.ErrTimeout) {
			return nil, fmt.Errorf("%s: the directory is used by another process", path)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l := &logDB{MemoryStorage: raft.NewMemoryStorage(), path: path, db: db}
	if err := db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(entriesBucket); err != nil {
			return err
		}
		_, err := tx.CreateBucketIfNotExists(logMetaBucket)
		return err
	}); err != nil {
		db.Close()
		return nil, err
	}
	return l, nil
}

func sealProto(m proto.Message) ([]byte, error) {
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, len(body)+4), crc32.Checksum(body, castagnoli))
	return append(out, body...), nil
}

func unsealProto(data []byte, m proto.Message) error {
	if len(data) < 4 || crc32.Checksum(data[4:], castagnoli) != binary.BigEndian.Uint32(data) {
		return errors.New("the checksum does not match")
	}
	return proto.Unmarshal(data[4:], m)
}

// load reads the log into memory and fits it to the state, which has applied
// everything up to index applied, of that term. A log that does not reach
// there, or says otherwise, is one from before a snapshot was installed: the
// state is newer, and the log begins anew after it.
func (l *logDB) load(applied, term uint64, conf *raftpb.ConfState) error {
	start, hard := &raftpb.SnapshotMetadata{}, &raftpb.HardState{}
	var entries []*raftpb.Entry
	err := l.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(logMetaBucket)
		if b := meta.Get(logStartKey); b != nil {
			if err := unsealProto(b, start); err != nil {
				return fmt.Errorf("%s is damaged: start of the log: %w", l.path, err)
			}
		}
		if b := meta.Get(hardStateKey); b != nil {
			if err := unsealProto(b, hard); err != nil {
				return fmt.Errorf("%s is damaged: hard state: %w", l.path, err)
			}
		}
		next := start.GetIndex() + 1
		return tx.Bucket(entriesBucket).ForEach(func(k, v []byte) error {
			e := &raftpb.Entry{}
			if err := unsealProto(v, e); err != nil {
				return fmt.Errorf("%s is damaged: entry %d: %w", l.path, binary.BigEndian.Uint64(k), err)
			}
			if e.GetIndex() != next {
				return fmt.Errorf("%s is damaged: entry %d stands where %d belongs", l.path, e.GetIndex(), next)
			}
			next++
			entries = append(entries, e)
			return nil
		})
	})
	if err != nil {
		return err
	}
	if applied == 0 {
		if len(entries) > 0 || start.GetIndex() > 0 {
			return fmt.Errorf("%s has a log, but there is no state: was the state file removed? Start with an empty directory; the node comes back as a new member", l.path)
		}
		return nil
	}
	last := start.GetIndex() + uint64(len(entries))
	known := applied == start.GetIndex() && term == start.GetTerm()
	if applied > start.GetIndex() && applied <= last {
		known = entries[applied-start.GetIndex()-1].GetTerm() == term
	}
	if !known {
		if applied < start.GetIndex() {
			return fmt.Errorf("%s begins after entry %d, but the state has applied only %d: the state is older than the log", l.path, start.GetIndex(), applied)
		}
		start = &raftpb.SnapshotMetadata{Index: proto.Uint64(applied), Term: proto.Uint64(term)}
		entries = nil
		hard = &raftpb.HardState{
			Term: proto.Uint64(max(hard.GetTerm(), term)), Vote: hard.Vote, Commit: proto.Uint64(max(hard.GetCommit(), applied)),
		}
		if hard.GetCommit() > applied {
			hard.Commit = proto.Uint64(applied)
		}
		if err := l.restart(start, hard); err != nil {
			return err
		}
	}
	start = proto.CloneOf(start)
	start.ConfState = conf
	if err := l.ApplySnapshot(&raftpb.Snapshot{Metadata: start}); err != nil {
		return err
	}
	if err := l.Append(entries); err != nil {
		return err
	}
	for _, e := range entries {
		l.bytes += uint64(len(e.GetData()))
	}
	// What is applied is committed, whatever the last synced hard state says.
	if hard.GetCommit() < applied {
		hard.Commit = proto.Uint64(applied)
	}
	return l.SetHardState(hard)
}

// restart makes an empty log on disk that begins after start.
func (l *logDB) restart(start *raftpb.SnapshotMetadata, hard *raftpb.HardState) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(entriesBucket); err != nil {
			return err
		}
		if _, err := tx.CreateBucket(entriesBucket); err != nil {
			return err
		}
		return putMeta(tx, start, hard)
	})
}

func putMeta(tx *bbolt.Tx, start *raftpb.SnapshotMetadata, hard *raftpb.HardState) error {
	meta := tx.Bucket(logMetaBucket)
	if start != nil {
		b, err := sealProto(&raftpb.SnapshotMetadata{Index: start.Index, Term: start.Term})
		if err != nil {
			return err
		}
		if err := meta.Put(logStartKey, b); err != nil {
			return err
		}
	}
	if hard != nil {
		b, err := sealProto(hard)
		if err != nil {
			return err
		}
		return meta.Put(hardStateKey, b)
	}
	return nil
}

// save makes entries and hard state durable, then shows them to raft. A commit
// index alone needs no sync: what is applied proves it.
func (l *logDB) save(entries []*raftpb.Entry, hard *raftpb.HardState, must bool) error {
	if hard != nil {
		l.unsaved = hard
	}
	if must || len(entries) > 0 {
		if err := l.db.Update(func(tx *bbolt.Tx) error {
			if err := l.put(tx, entries); err != nil {
				return err
			}
			return putMeta(tx, nil, l.unsaved)
		}); err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
		l.unsaved = nil
	}
	if hard != nil {
		if err := l.SetHardState(hard); err != nil {
			return err
		}
	}
	for _, e := range entries {
		l.bytes += uint64(len(e.GetData()))
	}
	return l.Append(entries)
}

func (l *logDB) put(tx *bbolt.Tx, entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	b := tx.Bucket(entriesBucket)
	b.FillPercent = 0.9 // indexes only grow
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	for _, e := range entries {
		v, err := sealProto(e)
		if err != nil {
			return err
		}
		if err := b.Put(indexKey(e.GetIndex()), v); err != nil {
			return err
		}
	}
	// A new leader's entries replace what a former one left beyond them.
	for i := entries[len(entries)-1].GetIndex() + 1; i <= last; i++ {
		if err := b.Delete(indexKey(i)); err != nil {
			return err
		}
	}
	return nil
}

// cut drops the entries up to index, which the state has applied durably.
func (l *logDB) cut(index uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	term, err := l.Term(index)
	if err != nil {
		return err
	}
	dropped, err := l.Entries(first, index+1, 1<<62)
	if err != nil {
		return err
	}
	if err := l.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(entriesBucket)
		for i := first; i <= index; i++ {
			if err := b.Delete(indexKey(i)); err != nil {
				return err
			}
		}
		return putMeta(tx, &raftpb.SnapshotMetadata{Index: proto.Uint64(index), Term: proto.Uint64(term)}, nil)
	}); err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	for _, e := range dropped {
		l.bytes -= min(l.bytes, uint64(len(e.GetData())))
	}
	return l.Compact(index)
}

// install begins the log anew after a snapshot whose state is in place.
func (l *logDB) install(meta *raftpb.SnapshotMetadata, hard *raftpb.HardState) error {
	if hard == nil {
		var err error
		if hard, _, err = l.InitialState(); err != nil {
			return err
		}
	}
	if err := l.restart(meta, hard); err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	l.bytes = 0
	if err := l.ApplySnapshot(&raftpb.Snapshot{Metadata: meta}); err != nil {
		return err
	}
	return l.SetHardState(hard)
}

// Snapshot gives raft the metadata of what a lagging follower will be sent.
func (l *logDB) Snapshot() (*raftpb.Snapshot, error) {
	meta := l.current()
	if meta == nil || meta.GetIndex() == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: meta}, nil
}

func (l *logDB) close() error { return l.db.Close() }

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }
