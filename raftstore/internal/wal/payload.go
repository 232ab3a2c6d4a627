package wal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Mark names one entry.
type Mark struct{ Index, Term uint64 }

// HardState is raft's: what a node must not forget.
type HardState struct{ Term, Vote, Commit uint64 }

// Batch is what one sync makes durable.
type Batch struct {
	Hard    *HardState      // nil: as it was
	Entries []*raftpb.Entry // consecutive; replaces what stands at their indexes and after
}

func appendHard(buf []byte, h HardState) []byte {
	buf = binary.AppendUvarint(buf, h.Term)
	buf = binary.AppendUvarint(buf, h.Vote)
	return binary.AppendUvarint(buf, h.Commit)
}

// entryOverhead is above what an entry takes beyond its data.
const entryOverhead = 2*binary.MaxVarintLen64 + 2

func appendBatch(buf []byte, b Batch) []byte {
	if b.Hard == nil {
		buf = append(buf, 0)
	} else {
		buf = appendHard(append(buf, 1), *b.Hard)
	}
	buf = binary.AppendUvarint(buf, uint64(len(b.Entries)))
	if len(b.Entries) == 0 {
		return buf
	}
	buf = binary.AppendUvarint(buf, b.Entries[0].GetIndex())
	for _, e := range b.Entries {
		buf = binary.AppendUvarint(buf, e.GetTerm())
		buf = binary.AppendUvarint(buf, uint64(e.GetType()))
		buf = binary.AppendUvarint(buf, uint64(len(e.GetData())))
	}
	for _, e := range b.Entries {
		buf = append(buf, e.GetData()...)
	}
	return buf
}

var errPayload = errors.New("the payload of a frame does not decode")

// numbers reads unsigned varints; after a failure everything is 0.
type numbers struct {
	rest   []byte
	failed bool
}

func (n *numbers) next() uint64 {
	v, w := binary.Uvarint(n.rest)
	if w <= 0 || n.failed {
		n.failed = true
		return 0
	}
	n.rest = n.rest[w:]
	return v
}

func (n *numbers) hard() HardState {
	return HardState{Term: n.next(), Vote: n.next(), Commit: n.next()}
}

// decodeBatch reads what appendBatch wrote. The entries share memory of their
// own: one copy of all data of the batch.
func decodeBatch(payload []byte) (Batch, error) {
	var b Batch
	n := &numbers{rest: payload}
	switch n.next() {
	case 0:
	case 1:
		h := n.hard()
		b.Hard = &h
	default:
		return b, errPayload
	}
	count := n.next()
	// An entry takes three bytes at least: no count is believed beyond that.
	if n.failed || count > uint64(len(n.rest)/3) {
		return b, errPayload
	}
	if count == 0 {
		if len(n.rest) > 0 {
			return b, errPayload
		}
		return b, nil
	}
	first := n.next()
	if first == 0 || first+count < first {
		return b, errPayload
	}
	type fields struct {
		entry       raftpb.Entry
		term, index uint64
		kind        raftpb.EntryType
		size        int
	}
	slab := make([]fields, count)
	b.Entries = make([]*raftpb.Entry, count)
	total := 0
	for i := range slab {
		f := &slab[i]
		f.term, f.index = n.next(), first+uint64(i)
		kind, size := n.next(), n.next()
		if n.failed || kind > uint64(raftpb.EntryConfChangeV2) || size > uint64(len(n.rest)-total) {
			return b, errPayload
		}
		f.kind, f.size = raftpb.EntryType(kind), int(size)
		total += int(size)
	}
	if total != len(n.rest) {
		return b, errPayload
	}
	data := append([]byte(nil), n.rest...)
	for i := range slab {
		f := &slab[i]
		f.entry.Term, f.entry.Index, f.entry.Type = &f.term, &f.index, &f.kind
		if f.size > 0 {
			f.entry.Data = data[:f.size:f.size]
			data = data[f.size:]
		}
		b.Entries[i] = &f.entry
	}
	return b, nil
}

// head is the first frame of a segment.
type head struct {
	end  uint64 // of the segment before; 0: there was none
	last Mark   // entry before
	hard HardState
}

func (h head) append(buf []byte) []byte {
	buf = binary.AppendUvarint(buf, h.end)
	buf = binary.AppendUvarint(buf, h.last.Index)
	buf = binary.AppendUvarint(buf, h.last.Term)
	return appendHard(buf, h.hard)
}

func decodeHead(payload []byte) (head, error) {
	n := &numbers{rest: payload}
	h := head{end: n.next(), last: Mark{n.next(), n.next()}, hard: n.hard()}
	if n.failed || len(n.rest) > 0 {
		return head{}, errPayload
	}
	return h, nil
}

func appendReset(buf []byte, m Mark, h HardState) []byte {
	buf = binary.AppendUvarint(buf, m.Index)
	buf = binary.AppendUvarint(buf, m.Term)
	return appendHard(buf, h)
}

func decodeReset(payload []byte) (Mark, HardState, error) {
	n := &numbers{rest: payload}
	m, h := Mark{n.next(), n.next()}, n.hard()
	if n.failed || len(n.rest) > 0 {
		return Mark{}, HardState{}, errPayload
	}
	return m, h, nil
}

func (m Mark) String() string { return fmt.Sprintf("entry %d of term %d", m.Index, m.Term) }
