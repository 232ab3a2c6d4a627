package lbstate

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// DamageError says that a value in the database is not what was written. The
// node must not go on from it.
type DamageError struct {
	Bucket string
	Key    string
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("damaged value of key %q in bucket %s: %s; restore this node from a snapshot or from the other members", e.Key, e.Bucket, e.Reason)
}

func damaged(bucket, key []byte, reason string) error {
	return &DamageError{Bucket: string(bucket), Key: string(key), Reason: reason}
}

func seal(bucket, key, body []byte) []byte { return stored.Seal(bucket, key, body) }

// unseal returns the body, which is the database's: not to be changed or kept.
func unseal(bucket, key, data []byte) ([]byte, error) {
	body, ok := stored.Unseal(bucket, key, data)
	if !ok {
		return nil, damaged(bucket, key, "the checksum does not match")
	}
	return body, nil
}

func encode(m proto.Message) ([]byte, error) { return stored.Encode(m) }

// revisionKey is the key of a number, in the order of numbers.
func revisionKey(r uint64) []byte { return stored.NumberKey(r) }

// number is the inverse of revisionKey; what is no number comes last.
func number(key []byte) uint64 { return stored.Number(key) }

// MaxCommandBytes bounds one command, as the replicated log has it.
const MaxCommandBytes = 1 << 20

// decodeCommand reads a command. An error means that this program cannot know
// what the command would do.
func decodeCommand(data []byte) (*lbstatepb.Command, error) {
	if len(data) > MaxCommandBytes {
		return nil, fmt.Errorf("command of %d bytes: at most %d are allowed", len(data), MaxCommandBytes)
	}
	c, whole, err := unmarshalCommand(data)
	if err != nil {
		return nil, fmt.Errorf("undecodable command: %w", err)
	}
	if v := c.GetVersion(); v == 0 || v > CommandVersion {
		return nil, fmt.Errorf("command of version %d: this program knows up to %d; it is older than a member that wrote to the log", v, CommandVersion)
	}
	if data := c.GetDeflated(); data != nil {
		tx, err := inflate(data)
		if err != nil {
			return nil, fmt.Errorf("undecodable transaction: %w", err)
		}
		c.Kind = &lbstatepb.Command_Transaction{Transaction: tx}
	}
	if c.GetKind() == nil || !whole && stored.Unknown(c.ProtoReflect()) {
		return nil, errors.New("command with a kind or field that this program does not know; it is older than a member that wrote to the log")
	}
	for _, op := range c.GetTransaction().GetOperations() {
		if op.GetOperation() == nil {
			return nil, errors.New("command with an operation that this program does not know")
		}
	}
	return c, nil
}

// unmarshalCommand reads a command. whole is the quick proof that it has no field
// that this program does not know: without those it would be as long again. It may
// fail to say so of one that is encoded otherwise than here.
func unmarshalCommand(data []byte) (c *lbstatepb.Command, whole bool, err error) {
	c = &lbstatepb.Command{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, c); err != nil {
		return nil, false, err
	}
	if c.GetDeflated() == nil && proto.Size(c) == len(data) {
		return c, true, nil
	}
	c = &lbstatepb.Command{}
	return c, false, proto.Unmarshal(data, c)
}

// encodeCommand is how a command rests in the log: a large transaction
// compressed, since whole sets of services travel as one.
func encodeCommand(c *lbstatepb.Command) ([]byte, error) {
	data, err := encode(c)
	if err != nil || len(data) < deflateFrom || c.GetTransaction() == nil {
		return data, err
	}
	body, err := encode(c.GetTransaction())
	if err != nil {
		return nil, err
	}
	if len(body) > maxInflated {
		return data, nil
	}
	var small bytes.Buffer
	w, err := flate.NewWriter(&small, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return encode(&lbstatepb.Command{
		Version: c.GetVersion(), Author: c.GetAuthor(), Reason: c.GetReason(), At: c.GetAt(), Key: c.GetKey(), Request: c.GetRequest(),
		Kind: &lbstatepb.Command_Deflated{Deflated: small.Bytes()},
	})
}

const (
	deflateFrom = 64 << 10 // bytes of a command
	maxInflated = 8 << 20
)

func inflate(data []byte) (*lbstatepb.Transaction, error) {
	r := flate.NewReader(bytes.NewReader(data))
	body, err := io.ReadAll(io.LimitReader(r, maxInflated+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxInflated {
		return nil, fmt.Errorf("more than %d bytes", maxInflated)
	}
	tx := &lbstatepb.Transaction{}
	return tx, proto.Unmarshal(body, tx)
}

// counters are the state's own numbers.
type counters struct {
	revision     uint64 // of the last change
	config       uint64 // of the last change of the configuration
	history      uint64 // entries in the history
	historyBytes uint64 // what they, and the versions kept for them, take
	floor        uint64 // revision of the newest entry that the history has dropped
	keys         uint64 // idempotency keys ever remembered
}

func (c counters) encode() []byte {
	b := make([]byte, 0, 48)
	for _, n := range []uint64{c.revision, c.config, c.history, c.historyBytes, c.floor, c.keys} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func decodeCounters(b []byte) (counters, error) {
	if len(b) != 48 {
		return counters{}, damaged(metaBucket, countersKey, fmt.Sprintf("%d bytes, not 48", len(b)))
	}
	var n []uint64
	for part := range slices.Chunk(b, 8) {
		n = append(n, binary.BigEndian.Uint64(part))
	}
	return counters{n[0], n[1], n[2], n[3], n[4], n[5]}, nil
}
