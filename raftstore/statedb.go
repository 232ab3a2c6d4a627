package raftstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// stateDB is the replicated state, state.db: the state machines' buckets, and
// one of our own with the applied index, the members, and the last sequence
// number of each proposer. Each apply is one synced transaction, so that index
// and data cannot part.
type stateDB struct {
	path string

	mu sync.RWMutex // held for reading while db is in use, for writing while it is replaced
	db *bbolt.DB
}

const ownBucketName = "raftstore"

var (
	ownBucket     = []byte(ownBucketName)
	appliedKey    = []byte("applied") // index and term, 8 bytes each
	confKey       = []byte("conf")    // CRC-32C and raftpb.ConfState
	membersBucket = []byte("members") // member ID → Member
	seenBucket    = []byte("seen")    // member ID → boot and last sequence number, 8 bytes each
	goneBucket    = []byte("gone")    // incarnation of a removed member → name
)

// stateMapBytes is how much of the address space a state file is given at
// once: growing beyond it waits for readers.
const stateMapBytes = 1 << 30

func openStateDB(path string) (*stateDB, error) {
	db, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	return &stateDB{path: path, db: db}, nil
}

func openBolt(path string, readOnly bool) (*bbolt.DB, error) {
	opts := &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, InitialMmapSize: stateMapBytes, ReadOnly: readOnly}
	db, err := bbolt.Open(path, 0o600, opts)
	if errors.Is(err, bbolt.ErrTimeout) {
		return nil, fmt.Errorf("%s: the directory is used by another process", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return db, nil
}

func (s *stateDB) view(fn func(*bbolt.Tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db.View(fn)
}

func (s *stateDB) update(fn func(*bbolt.Tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db.Update(fn)
}

func (s *stateDB) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Close()
}

// own is our own bucket inside one transaction.
type own struct{ b *bbolt.Bucket }

func ownIn(tx *bbolt.Tx) own { return own{tx.Bucket(ownBucket)} }

func makeOwn(tx *bbolt.Tx) (own, error) {
	b, err := tx.CreateBucketIfNotExists(ownBucket)
	if err != nil {
		return own{}, err
	}
	for _, name := range [][]byte{membersBucket, seenBucket, goneBucket} {
		if _, err := b.CreateBucketIfNotExists(name); err != nil {
			return own{}, err
		}
	}
	return own{b}, nil
}

func (o own) applied() (index, term uint64) {
	if o.b == nil {
		return 0, 0
	}
	v := o.b.Get(appliedKey)
	if len(v) != 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
}

func (o own) setApplied(index, term uint64) error {
	v := binary.BigEndian.AppendUint64(nil, index)
	return o.b.Put(appliedKey, binary.BigEndian.AppendUint64(v, term))
}

func (o own) conf() (*raftpb.ConfState, error) {
	c := &raftpb.ConfState{}
	if o.b == nil {
		return c, nil
	}
	v := o.b.Get(confKey)
	if v == nil {
		return c, nil
	}
	if err := unsealProto(v, c); err != nil {
		return nil, fmt.Errorf("the configuration in the state is damaged: %w", err)
	}
	return c, nil
}

func (o own) setConf(c *raftpb.ConfState) error {
	v, err := sealProto(c)
	if err != nil {
		return err
	}
	return o.b.Put(confKey, v)
}

// metadata is what a snapshot of this transaction is.
func (o own) metadata() (*raftpb.SnapshotMetadata, error) {
	index, term := o.applied()
	conf, err := o.conf()
	if err != nil {
		return nil, err
	}
	return &raftpb.SnapshotMetadata{Index: proto.Uint64(index), Term: proto.Uint64(term), ConfState: conf}, nil
}

func (o own) members() (map[uint64]Member, error) {
	members := map[uint64]Member{}
	if o.b == nil {
		return members, nil
	}
	err := o.b.Bucket(membersBucket).ForEach(func(k, v []byte) error {
		var m Member
		if err := json.Unmarshal(v, &m); err != nil {
			return fmt.Errorf("member %x in the state is damaged: %w", k, err)
		}
		members[m.ID] = m
		return nil
	})
	return members, err
}

func (o own) putMember(m Member) error {
	v, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return o.b.Bucket(membersBucket).Put(indexKey(m.ID), v)
}

func (o own) removeMember(m Member) error {
	if err := o.b.Bucket(membersBucket).Delete(indexKey(m.ID)); err != nil {
		return err
	}
	if err := o.b.Bucket(seenBucket).Delete(indexKey(m.ID)); err != nil {
		return err
	}
	return o.b.Bucket(goneBucket).Put(indexKey(m.Incarnation), []byte(m.Name))
}

// gone says whether an incarnation was removed from the cluster.
func (o own) gone(incarnation uint64) bool {
	return o.b != nil && o.b.Bucket(goneBucket).Get(indexKey(incarnation)) != nil
}

// fresh says whether an envelope is the next of its proposer, and remembers it.
// A proposer numbers its commands, and its entries reach the leader in order;
// one that is not beyond the last is a delivery that came twice, or one that
// was overtaken, and is not applied.
func (o own) fresh(e envelope) (bool, error) {
	seen := o.b.Bucket(seenBucket)
	if v := seen.Get(indexKey(e.proposer)); len(v) == 16 {
		boot, last := binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
		if e.boot < boot || (e.boot == boot && e.first <= last) {
			return false, nil
		}
	}
	v := binary.BigEndian.AppendUint64(nil, e.boot)
	v = binary.BigEndian.AppendUint64(v, e.first+uint64(max(1, len(e.commands)))-1)
	return true, seen.Put(indexKey(e.proposer), v)
}
