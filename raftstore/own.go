package raftstore

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const ownBucketName = "raftstore"

// What the replicated state holds beside the state machines. Values are sealed:
// a CRC-32C goes before them.
var (
	ownBucket     = []byte(ownBucketName)
	formatKey     = []byte("format")   // one number, as text
	appliedKey    = []byte("applied")  // index and term, 8 bytes each
	acceptedKey   = []byte("accepted") // Versions
	confKey       = []byte("conf")     // raftpb.ConfState
	clusterKey    = []byte("cluster")  // clusterInfo
	membersBucket = []byte("members")  // member ID → Member
	seenBucket    = []byte("seen")     // member ID → boot and last sequence number, 8 bytes each
	goneBucket    = []byte("gone")     // incarnation of a removed member → its ID
)

const stateFormat = "1"

// clusterInfo is what never changes in a cluster.
type clusterInfo struct {
	ID          uint64 `json:"id"`
	Predecessor uint64 `json:"predecessor,omitempty"` // the cluster that this one was restored from
}

func seal(body []byte) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, len(body)+4), crc32.Checksum(body, castagnoli))
	return append(out, body...)
}

func unseal(data []byte) ([]byte, error) {
	if len(data) < 4 || crc32.Checksum(data[4:], castagnoli) != binary.BigEndian.Uint32(data) {
		return nil, errChecksum
	}
	return data[4:], nil
}

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

// own is our own bucket inside one transaction.
type own struct{ b *bbolt.Bucket }

func ownIn(tx *bbolt.Tx) own { return own{tx.Bucket(ownBucket)} }

func makeOwn(tx *bbolt.Tx) (own, error) {
	if b := tx.Bucket(ownBucket); b != nil {
		if f := b.Get(formatKey); string(f) != stateFormat {
			return own{}, fmt.Errorf("the state has format %q, this program knows format %s alone: was it written by a newer one?", f, stateFormat)
		}
		return own{b}, nil
	}
	b, err := tx.CreateBucket(ownBucket)
	if err != nil {
		return own{}, err
	}
	for _, name := range [][]byte{membersBucket, seenBucket, goneBucket} {
		if _, err := b.CreateBucket(name); err != nil {
			return own{}, err
		}
	}
	return own{b}, b.Put(formatKey, []byte(stateFormat))
}

// applied is 0, 0 of an empty state, and of one whose record is damaged: it
// then does not fit what the checkpoint says.
func (o own) applied() (index, term uint64) {
	if o.b == nil {
		return 0, 0
	}
	v, err := unseal(o.b.Get(appliedKey))
	if err != nil || len(v) != 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
}

func (o own) setApplied(index, term uint64) error {
	var v [16]byte
	binary.BigEndian.PutUint64(v[:], index)
	binary.BigEndian.PutUint64(v[8:], term)
	return o.b.Put(appliedKey, seal(v[:]))
}

func (o own) conf() (*raftpb.ConfState, error) {
	c := &raftpb.ConfState{}
	if o.b == nil || o.b.Get(confKey) == nil {
		return c, nil
	}
	v, err := unseal(o.b.Get(confKey))
	if err == nil {
		err = proto.Unmarshal(v, c)
	}
	if err != nil {
		return nil, fmt.Errorf("the configuration in the state is damaged: %w", err)
	}
	return c, nil
}

func (o own) setConf(c *raftpb.ConfState) error {
	v, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	return o.b.Put(confKey, seal(v))
}

func (o own) cluster() (clusterInfo, error) {
	var c clusterInfo
	if o.b == nil {
		return c, nil
	}
	v, err := unseal(o.b.Get(clusterKey))
	if err == nil {
		err = json.Unmarshal(v, &c)
	}
	if err != nil {
		return c, fmt.Errorf("the cluster in the state is damaged: %w", err)
	}
	return c, nil
}

func (o own) setCluster(c clusterInfo) error {
	v, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return o.b.Put(clusterKey, seal(v))
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
		m, err := readMember(k, v)
		members[m.ID] = m
		return err
	})
	return members, err
}

func (o own) member(id uint64) (m Member, ok bool, err error) {
	key := indexKey(id)
	data := o.b.Bucket(membersBucket).Get(key)
	if data == nil {
		return m, false, nil
	}
	m, err = readMember(key, data)
	return m, err == nil, err
}

func readMember(key, data []byte) (m Member, err error) {
	body, err := unseal(data)
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		err = fmt.Errorf("member %x in the state is damaged: %w", key, err)
	}
	return m, err
}

func (o own) putMember(m Member) error {
	v, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return o.b.Bucket(membersBucket).Put(indexKey(m.ID), seal(v))
}

// removeMember keeps the sequence number of what the member proposed: an entry of
// it that was overtaken may still come, and it was told that it will not be
// applied.
func (o own) removeMember(m Member) error {
	if err := o.b.Bucket(membersBucket).Delete(indexKey(m.ID)); err != nil {
		return err
	}
	return o.b.Bucket(goneBucket).Put(indexKey(m.Incarnation), seal(indexKey(m.ID)))
}

// removed are the IDs of all removed members.
func (o own) removed() ([]uint64, error) {
	var ids []uint64
	if o.b == nil {
		return nil, nil
	}
	err := o.b.Bucket(goneBucket).ForEach(func(k, v []byte) error {
		id, err := unseal(v)
		if err != nil || len(id) != 8 {
			return fmt.Errorf("the removed member of incarnation %x in the state is damaged", k)
		}
		ids = append(ids, binary.BigEndian.Uint64(id))
		return nil
	})
	return ids, err
}

// checkSeen checks the sequence numbers of all proposers, and what else no start
// reads whole.
func (o own) checkSeen() error {
	if o.b == nil {
		return nil
	}
	if _, err := o.removed(); err != nil {
		return err
	}
	if _, err := o.accepted(); err != nil {
		return err
	}
	return o.b.Bucket(seenBucket).ForEach(func(k, v []byte) error {
		if n, err := unseal(v); err != nil || len(n) != 16 {
			return fmt.Errorf("the last sequence number of member %x in the state is damaged", k)
		}
		return nil
	})
}

// gone says whether an incarnation was removed from the cluster.
func (o own) gone(incarnation uint64) bool {
	return o.b != nil && o.b.Bucket(goneBucket).Get(indexKey(incarnation)) != nil
}

// fresh says whether an envelope is the next of its proposer, and remembers it.
// A proposer numbers its commands, and its entries reach the leader in order;
// one that is not beyond the last is a delivery that came twice, or one that
// was overtaken, and is not applied.
func (o own) fresh(e *envelope) (bool, error) {
	seen := o.b.Bucket(seenBucket)
	key := indexKey(e.proposer)
	if data := seen.Get(key); data != nil {
		v, err := unseal(data)
		if err != nil || len(v) != 16 {
			return false, fmt.Errorf("the last sequence number of member %x in the state is damaged", e.proposer)
		}
		boot, last := binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
		if e.boot < boot || (e.boot == boot && e.first <= last) {
			return false, nil
		}
	}
	var v [16]byte
	binary.BigEndian.PutUint64(v[:], e.boot)
	binary.BigEndian.PutUint64(v[8:], e.first+uint64(max(1, len(e.commands)))-1)
	return true, seen.Put(key, seal(v[:]))
}
