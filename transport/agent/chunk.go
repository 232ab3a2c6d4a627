package agent

import (
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

const (
	// chunkBytes bounds the data of one chunk, and so what one send to an agent
	// that does not read keeps in memory: gRPC encodes each message anew, in a
	// buffer of 32 KiB where it fits, else in one of 1 MiB.
	chunkBytes = 32<<10 - 64

	maxAgentMessage  = 1 << 20   // from an agent
	maxServerMessage = 320 << 10 // from a server; those of before sent chunks of 256 KiB
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunker cuts an update's encoding into chunks. The chunks it made are
// shared by every stream that sends them and never change.
type chunker struct {
	chunks []*agentpb.ServerMessage
	buf    []byte
	crc    uint32
	size   int
}

func (c *chunker) write(p []byte) {
	c.size += len(p)
	for len(p) > 0 {
		n := min(len(p), chunkBytes-len(c.buf))
		c.buf = append(c.buf, p[:n]...)
		p = p[n:]
		if len(c.buf) == chunkBytes {
			c.cut(false)
		}
	}
}

// cut ends the current chunk, which is empty if nothing was written.
func (c *chunker) cut(last bool) {
	c.crc = crc32.Update(c.crc, castagnoli, c.buf)
	c.chunks = append(c.chunks, &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Chunk{
		Chunk: &agentpb.Chunk{Data: c.buf, Crc: c.crc, Last: last},
	}})
	c.buf = nil
}

// assembler puts an update together again.
type assembler struct {
	limit int // bytes
	buf   []byte
	crc   uint32
}

var errTooLarge = errors.New("update is larger than this agent takes")

// add takes one chunk and returns the update with its last one, else nil.
func (a *assembler) add(c *agentpb.Chunk) (*agentpb.Update, error) {
	if len(a.buf)+len(c.GetData()) > a.limit {
		return nil, fmt.Errorf("%w (%d bytes)", errTooLarge, a.limit)
	}
	a.crc = crc32.Update(a.crc, castagnoli, c.GetData())
	if a.crc != c.GetCrc() {
		return nil, fmt.Errorf("chunk at byte %d has checksum %08x, want %08x: lost, repeated or changed on the way", len(a.buf), c.GetCrc(), a.crc)
	}
	a.buf = append(a.buf, c.GetData()...)
	if !c.GetLast() {
		return nil, nil
	}
	u := new(agentpb.Update)
	err := proto.Unmarshal(a.buf, u)
	a.buf, a.crc = nil, 0
	if err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	return u, nil
}
