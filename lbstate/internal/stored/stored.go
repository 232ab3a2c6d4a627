// Package stored says how the state machines keep values in the database, and
// what they demand of a command that rests in the log.
package stored

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/fnv"
	"math"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(bucket, key, body []byte) uint32 {
	c := crc32.Update(0, castagnoli, bucket)
	c = crc32.Update(c, castagnoli, []byte{0})
	c = crc32.Update(c, castagnoli, key)
	c = crc32.Update(c, castagnoli, []byte{0})
	return crc32.Update(c, castagnoli, body)
}

// Seal makes a value of the database: CRC32C over where it is and what it
// says, then the body.
func Seal(bucket, key, body []byte) []byte {
	out := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(out, checksum(bucket, key, body))
	return append(out, body...)
}

// Unseal returns the body, which is the database's: not to be changed or kept.
// It is false where the checksum does not match.
func Unseal(bucket, key, data []byte) ([]byte, bool) {
	if len(data) < 4 || binary.BigEndian.Uint32(data) != checksum(bucket, key, data[4:]) {
		return nil, false
	}
	return data[4:], true
}

// Encode is deterministic for messages without maps and unknown fields.
func Encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// NumberKey is the key of a number, in the order of numbers.
func NumberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// Number is the inverse of NumberKey; what is no number comes last.
func Number(key []byte) uint64 {
	if len(key) != 8 {
		return math.MaxUint64
	}
	return binary.BigEndian.Uint64(key)
}

// Unknown says whether a message, or one below it, has fields that this
// program does not know.
func Unknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				found = found || Unknown(v.List().Get(i).Message())
			}
		default:
			found = Unknown(v.Message())
		}
		return !found
	})
	return found
}

// Digest is one over all keys and values below a bucket, in order; nil is an
// empty one.
func Digest(root *bbolt.Bucket) (uint64, error) {
	h := fnv.New64a()
	if root == nil {
		return h.Sum64(), nil
	}
	err := digest(h, root)
	return h.Sum64(), err
}

func digest(h hash.Hash64, b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(v), v)
		if v == nil {
			return digest(h, b.Bucket(k))
		}
		return nil
	})
}
