package access

import (
	"bytes"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// What is in the state's bucket: objects by "kind/name"; the ID of each token by
// the hash of its secret, and below its user; history by revision.
var (
	metaBucket    = []byte("meta")
	objectsBucket = []byte("objects")
	hashesBucket  = []byte("hashes")
	ownedBucket   = []byte("owned")
	historyBucket = []byte("history")
	countersKey   = []byte("counters")

	buckets = [][]byte{metaBucket, objectsBucket, hashesBucket, ownedBucket, historyBucket}
)

// view reads the state in a transaction.
type view struct{ root *bbolt.Bucket } // nil: nothing was ever written

func openView(tx *bbolt.Tx) view { return view{tx.Bucket([]byte(Bucket))} }

func (v view) get(bucket, key []byte) (body []byte, err error) {
	if v.root == nil {
		return nil, nil
	}
	data := v.root.Bucket(bucket).Get(key)
	if data == nil {
		return nil, nil
	}
	return unseal(bucket, key, data)
}

func unseal(bucket, key, data []byte) ([]byte, error) {
	body, ok := stored.Unseal(bucket, key, data)
	if !ok {
		return nil, damaged(bucket, key, "the checksum does not match")
	}
	return body, nil
}

func (v view) numbers() (counters, error) {
	body, err := v.get(metaBucket, countersKey)
	if err != nil || body == nil {
		return counters{}, err
	}
	return decodeCounters(body)
}

// object returns an object, or nil.
func (v view) object(ref lbstate.Ref) (*accesspb.Object, error) {
	if !slices.Contains(kinds, ref.Kind) {
		return nil, nil // "credential/agent" and "a" would make the key of another kind's "agent/a"
	}
	key := []byte(ref.String())
	body, err := v.get(objectsBucket, key)
	if err != nil || body == nil {
		return nil, err
	}
	return decodeObject(key, body)
}

func decodeObject(key, body []byte) (*accesspb.Object, error) {
	o := &accesspb.Object{}
	if err := proto.Unmarshal(body, o); err != nil {
		return nil, damaged(objectsBucket, key, err.Error())
	}
	if o.GetKind() == nil {
		return nil, damaged(objectsBucket, key, "an object of a kind that this program does not know")
	}
	return o, nil
}

// each calls fn with every object of a kind, by name; an empty kind is all.
func (v view) each(kind lbstate.Kind, fn func(*accesspb.Object) error) error {
	if v.root == nil {
		return nil
	}
	var prefix []byte
	if kind != "" {
		prefix = []byte(string(kind) + "/")
	}
	c := v.root.Bucket(objectsBucket).Cursor()
	for k, data := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, data = c.Next() {
		body, err := unseal(objectsBucket, k, data)
		if err != nil {
			return err
		}
		o, err := decodeObject(k, body)
		if err != nil {
			return err
		}
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// tokenOf returns the token whose secret has a hash, or nil.
func (v view) tokenOf(hash []byte) (*accesspb.Object, error) {
	id, err := v.get(hashesBucket, hash)
	if err != nil || id == nil {
		return nil, err
	}
	return v.object(lbstate.Ref{Kind: KindToken, Name: string(id)})
}

func ownedKey(user, id string) []byte { return []byte(user + "/" + id) }

// tokensOf lists the tokens of a user.
func (v view) tokensOf(user string) (ids []string, err error) {
	if v.root == nil {
		return nil, nil
	}
	prefix := ownedKey(user, "")
	c := v.root.Bucket(ownedBucket).Cursor()
	for k, data := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, data = c.Next() {
		if _, err := unseal(ownedBucket, k, data); err != nil {
			return nil, err
		}
		ids = append(ids, strings.TrimPrefix(string(k), string(prefix)))
	}
	return ids, nil
}

// entries calls fn with the history's entries before a revision (0: all),
// newest first, until fn returns false.
func (v view) entries(before uint64, fn func(revision uint64, entry *accesspb.Change) bool) error {
	if v.root == nil {
		return nil
	}
	c := v.root.Bucket(historyBucket).Cursor()
	k, data := c.Last()
	if before != 0 {
		if k, _ = c.Seek(stored.NumberKey(before)); k == nil {
			k, data = c.Last()
		} else {
			k, data = c.Prev()
		}
	}
	for ; k != nil; k, data = c.Prev() {
		body, err := unseal(historyBucket, k, data)
		if err != nil {
			return err
		}
		entry := &accesspb.Change{}
		if err := proto.Unmarshal(body, entry); err != nil {
			return damaged(historyBucket, k, err.Error())
		}
		if !fn(stored.Number(k), entry) {
			return nil
		}
	}
	return nil
}
