package access

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// CommandVersion is the version of the commands that this program writes, and
// the highest that it can apply.
const CommandVersion = 1

// CommandVersion is the highest version of commands that Apply takes.
func (s *State) CommandVersion() uint64 { return CommandVersion }

// MaxCommandBytes bounds one command.
const MaxCommandBytes = 256 << 10

// decodeCommand reads a command. An error means that this program cannot know
// what the command would do.
func decodeCommand(data []byte) (*accesspb.Command, error) {
	if len(data) > MaxCommandBytes {
		return nil, fmt.Errorf("command of %d bytes: at most %d are allowed", len(data), MaxCommandBytes)
	}
	c := &accesspb.Command{}
	if err := proto.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("undecodable command: %w", err)
	}
	if v := c.GetVersion(); v == 0 || v > CommandVersion {
		return nil, fmt.Errorf("command of version %d: this program knows up to %d; it is older than a member that wrote to the log", v, CommandVersion)
	}
	put, ok := c.GetKind().(*accesspb.Command_Put)
	if c.GetKind() == nil || ok && put.Put.GetObject().GetKind() == nil || stored.Unknown(c.ProtoReflect()) {
		return nil, errors.New("command with a kind or field that this program does not know; it is older than a member that wrote to the log")
	}
	return c, nil
}

func damaged(bucket, key []byte, reason string) error {
	return &lbstate.DamageError{Bucket: Bucket + "/" + string(bucket), Key: string(key), Reason: reason}
}

// counters are the state's own numbers.
type counters struct {
	revision     uint64 // of the last change
	history      uint64 // entries in the history
	historyBytes uint64 // what they take
	objects      [4]uint64
}

func (c counters) encode() []byte {
	b := make([]byte, 0, 56)
	for _, n := range append([]uint64{c.revision, c.history, c.historyBytes}, c.objects[:]...) {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func decodeCounters(b []byte) (c counters, err error) {
	if len(b) != 56 {
		return c, damaged(metaBucket, countersKey, fmt.Sprintf("%d bytes, not 56", len(b)))
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	return counters{n(0), n(1), n(2), [4]uint64{n(3), n(4), n(5), n(6)}}, nil
}
