package peer

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A batch is the payload of a frame of messages:
//
//	uvarint  number of messages
//	uvarint  number of entries in all of them
//	uvarint  number of bytes in the data section
//	         the messages: which fields are there, the fields, the entries
//	         the data section: contexts, snapshots' metadata and entries' data
//
// Bytes are kept apart from fields so that the receiver makes one copy of all of
// them. An entry costs two or three bytes beyond its data: its term and index
// are written only where they do not follow from what stands before.
//
// Fields are pointers in raftpb: one that is nil stays nil. Unknown protobuf
// fields and Responses, which only a node's own threads use, are not carried.

const (
	// maxBatchMessages and maxBatchEntries bound what one frame makes the
	// receiver allocate: an entry of two bytes becomes a struct of more than a
	// hundred.
	maxBatchMessages = 1 << 16
	maxBatchEntries  = 1 << 20

	// messageOverhead and entryOverhead are above what the fields of a message
	// and of an entry can take on the wire.
	messageOverhead = 128
	entryOverhead   = 40
)

// The fields of a message that are present.
const (
	hasType = 1 << iota
	hasTo
	hasFrom
	hasTerm
	hasLogTerm
	hasIndex
	hasCommit
	hasVote
	hasReject
	isReject
	hasRejectHint
	hasContext
	hasSnapshot
	hasEntries
	messageFields // the first bit that has no meaning
)

// The fields of an entry that are present. An index that is there and not
// written is one more than the one before it, the first one more than the
// message's; a term that is not written is that of the entry before, the first
// one that of the message.
const (
	entryHasType = 1 << iota
	entryTypeWritten
	entryHasTerm
	entryTermWritten
	entryHasIndex
	entryIndexWritten
	entryFields
)

// messageSize is an upper bound of what m takes on the wire, and about what it
// takes in memory.
func messageSize(m *raftpb.Message) int {
	n := messageOverhead + len(m.Context)
	for _, e := range m.Entries {
		n += entryOverhead + len(e.Data)
	}
	if m.Snapshot != nil {
		n += proto.Size(m.Snapshot)
	}
	return n
}

// appendBatch appends the encoding of msgs to buf. Of each message it reads
// what it encodes and nothing else; it changes nothing.
func appendBatch(buf []byte, msgs []*raftpb.Message) ([]byte, error) {
	var (
		entries, data int
		snapshots     [][]byte
	)
	for _, m := range msgs {
		entries += len(m.Entries)
		data += len(m.Context)
		for _, e := range m.Entries {
			data += len(e.Data)
		}
		if m.Snapshot != nil {
			s, err := proto.Marshal(m.Snapshot)
			if err != nil {
				return buf, fmt.Errorf("peer: encode snapshot metadata: %w", err)
			}
			data += len(s)
			snapshots = append(snapshots, s)
		}
	}
	if len(msgs) > maxBatchMessages || entries > maxBatchEntries {
		return buf, fmt.Errorf("%w: %d messages with %d entries, at most %d and %d are allowed",
			ErrTooLarge, len(msgs), entries, maxBatchMessages, maxBatchEntries)
	}
	buf = slices.Grow(buf, data+len(msgs)*messageOverhead/2+entries*4)
	buf = binary.AppendUvarint(buf, uint64(len(msgs)))
	buf = binary.AppendUvarint(buf, uint64(entries))
	buf = binary.AppendUvarint(buf, uint64(data))
	next := 0
	for _, m := range msgs {
		var snapshot []byte
		if m.Snapshot != nil {
			snapshot = snapshots[next]
			next++
		}
		buf = appendMessage(buf, m, len(snapshot))
	}
	next = 0
	for _, m := range msgs {
		buf = append(buf, m.Context...)
		if m.Snapshot != nil {
			buf = append(buf, snapshots[next]...)
			next++
		}
		for _, e := range m.Entries {
			buf = append(buf, e.Data...)
		}
	}
	return buf, nil
}

func appendMessage(buf []byte, m *raftpb.Message, snapshot int) []byte {
	var mask uint64
	set := func(present bool, bit uint64) {
		if present {
			mask |= bit
		}
	}
	set(m.Type != nil, hasType)
	set(m.To != nil, hasTo)
	set(m.From != nil, hasFrom)
	set(m.Term != nil, hasTerm)
	set(m.LogTerm != nil, hasLogTerm)
	set(m.Index != nil, hasIndex)
	set(m.Commit != nil, hasCommit)
	set(m.Vote != nil, hasVote)
	set(m.Reject != nil, hasReject)
	set(m.GetReject(), isReject)
	set(m.RejectHint != nil, hasRejectHint)
	set(m.Context != nil, hasContext)
	set(m.Snapshot != nil, hasSnapshot)
	set(len(m.Entries) > 0, hasEntries)
	buf = binary.AppendUvarint(buf, mask)
	if m.Type != nil {
		buf = binary.AppendUvarint(buf, uint64(uint32(*m.Type)))
	}
	for _, v := range [...]*uint64{m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit, m.Vote, m.RejectHint} {
		if v != nil {
			buf = binary.AppendUvarint(buf, *v)
		}
	}
	if m.Context != nil {
		buf = binary.AppendUvarint(buf, uint64(len(m.Context)))
	}
	if m.Snapshot != nil {
		buf = binary.AppendUvarint(buf, uint64(snapshot))
	}
	if len(m.Entries) == 0 {
		return buf
	}
	buf = binary.AppendUvarint(buf, uint64(len(m.Entries)))
	term, index := m.GetTerm(), m.GetIndex()
	for _, e := range m.Entries {
		var flags byte
		if e.Type != nil {
			flags |= entryHasType
			if *e.Type != 0 {
				flags |= entryTypeWritten
			}
		}
		if e.Term != nil {
			flags |= entryHasTerm
			if *e.Term != term {
				flags |= entryTermWritten
				term = *e.Term
			}
		}
		index++
		if e.Index != nil {
			flags |= entryHasIndex
			if *e.Index != index {
				flags |= entryIndexWritten
				index = *e.Index
			}
		}
		buf = append(buf, flags)
		if flags&entryTypeWritten != 0 {
			buf = binary.AppendUvarint(buf, uint64(uint32(*e.Type)))
		}
		if flags&entryTermWritten != 0 {
			buf = binary.AppendUvarint(buf, term)
		}
		if flags&entryIndexWritten != 0 {
			buf = binary.AppendUvarint(buf, index)
		}
		// 0 is no data, which is not the same as data of length 0.
		n := uint64(0)
		if e.Data != nil {
			n = uint64(len(e.Data)) + 1
		}
		buf = binary.AppendUvarint(buf, n)
	}
	return buf
}

// messageSlot and entrySlot hold a struct of raftpb together with what its
// pointers point to, so that a whole batch is one allocation of each.
type messageSlot struct {
	m                                                        raftpb.Message
	to, from, term, logTerm, index, commit, vote, rejectHint uint64
	kind                                                     raftpb.MessageType
	reject                                                   bool
}

type entrySlot struct {
	e           raftpb.Entry
	term, index uint64
	kind        raftpb.EntryType
}

// batchDecoder walks over the fields of a batch. The first thing that is wrong
// makes it fail, and everything it returns from then on is zero.
type batchDecoder struct {
	in      []byte // fields not yet read
	data    []byte // bytes not yet handed out
	entries []entrySlot
	err     error
}

func (d *batchDecoder) fail(what string) {
	if d.err == nil {
		d.err = violation("batch of messages: %s", what)
	}
	d.in, d.data, d.entries = nil, nil, nil
}

func (d *batchDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.in)
	if n <= 0 {
		d.fail("number cut off or too large")
		return 0
	}
	d.in = d.in[n:]
	return v
}

// count reads a number of things that take at least size bytes each of what
// remains.
func (d *batchDecoder) count(limit, size int) int {
	v := d.uvarint()
	if v > uint64(limit) || v > uint64(len(d.in)/size) {
		d.fail("more items than bytes")
		return 0
	}
	return int(v)
}

// bytes hands out the next n bytes of the data section.
func (d *batchDecoder) bytes(n uint64) []byte {
	if n > uint64(len(d.data)) {
		d.fail("data section too short")
		return nil
	}
	b := d.data[:n:n]
	d.data = d.data[n:]
	return b
}

// decodeBatch decodes what appendBatch encoded. The messages share no memory
// with payload. The error is a protocolError.
func decodeBatch(payload []byte) ([]*raftpb.Message, error) {
	d := &batchDecoder{in: payload}
	messages := d.count(maxBatchMessages, 1)
	entries := d.count(maxBatchEntries, 2)
	size := d.uvarint()
	if d.err == nil && size > uint64(len(d.in)) {
		d.fail("data section longer than the frame")
	}
	if d.err != nil {
		return nil, d.err
	}
	fields := len(d.in) - int(size)
	if fields < messages+2*entries {
		return nil, violation("batch of messages: more items than bytes")
	}
	// append, because it does not zero what it fills; to a slice that is not nil,
	// because what is cut from it must not be.
	d.data = append([]byte{}, d.in[fields:]...)
	d.in = d.in[:fields]
	d.entries = make([]entrySlot, entries)
	slots := make([]messageSlot, messages)
	msgs := make([]*raftpb.Message, messages)
	pointers := make([]*raftpb.Entry, entries)
	for i := range slots {
		pointers = d.message(&slots[i], pointers)
		msgs[i] = &slots[i].m
	}
	if d.err == nil && (len(d.in) != 0 || len(d.data) != 0 || len(d.entries) != 0) {
		d.fail("bytes left over")
	}
	if d.err != nil {
		return nil, d.err
	}
	return msgs, nil
}

// message decodes one message into s and takes room for its entries from
// pointers; it returns what is left of that.
func (d *batchDecoder) message(s *messageSlot, pointers []*raftpb.Entry) []*raftpb.Entry {
	mask := d.uvarint()
	if mask >= messageFields || (mask&isReject != 0 && mask&hasReject == 0) {
		d.fail("unknown fields")
		return nil
	}
	m := &s.m
	if mask&hasType != 0 {
		s.kind = raftpb.MessageType(d.enum())
		m.Type = &s.kind
	}
	for _, f := range [...]struct {
		bit uint64
		at  *uint64
		to  **uint64
	}{
		{hasTo, &s.to, &m.To},
		{hasFrom, &s.from, &m.From},
		{hasTerm, &s.term, &m.Term},
		{hasLogTerm, &s.logTerm, &m.LogTerm},
		{hasIndex, &s.index, &m.Index},
		{hasCommit, &s.commit, &m.Commit},
		{hasVote, &s.vote, &m.Vote},
		{hasRejectHint, &s.rejectHint, &m.RejectHint},
	} {
		if mask&f.bit != 0 {
			*f.at = d.uvarint()
			*f.to = f.at
		}
	}
	if mask&hasReject != 0 {
		s.reject = mask&isReject != 0
		m.Reject = &s.reject
	}
	if mask&hasContext != 0 {
		m.Context = d.bytes(d.uvarint())
	}
	if mask&hasSnapshot != 0 {
		m.Snapshot = new(raftpb.Snapshot)
		if err := proto.Unmarshal(d.bytes(d.uvarint()), m.Snapshot); err != nil {
			d.fail("snapshot metadata: " + err.Error())
		}
	}
	if mask&hasEntries == 0 {
		return pointers
	}
	n := d.count(maxBatchEntries, 2)
	if n == 0 || n > len(pointers) || n > len(d.entries) {
		d.fail("number of entries")
		return nil
	}
	slots := d.entries[:n]
	d.entries = d.entries[n:]
	term, index := s.term, s.index
	for i := range slots {
		e := &slots[i]
		pointers[i] = &e.e
		if len(d.in) == 0 {
			d.fail("entry cut off")
			return nil
		}
		flags := d.in[0]
		d.in = d.in[1:]
		if flags >= entryFields ||
			(flags&entryTypeWritten != 0 && flags&entryHasType == 0) ||
			(flags&entryTermWritten != 0 && flags&entryHasTerm == 0) ||
			(flags&entryIndexWritten != 0 && flags&entryHasIndex == 0) {
			d.fail("unknown fields of an entry")
			return nil
		}
		if flags&entryHasType != 0 {
			e.e.Type = &e.kind
			if flags&entryTypeWritten != 0 {
				e.kind = raftpb.EntryType(d.enum())
			}
		}
		if flags&entryHasTerm != 0 {
			if flags&entryTermWritten != 0 {
				term = d.uvarint()
			}
			e.term = term
			e.e.Term = &e.term
		}
		index++
		if flags&entryHasIndex != 0 {
			if flags&entryIndexWritten != 0 {
				index = d.uvarint()
			}
			e.index = index
			e.e.Index = &e.index
		}
		if size := d.uvarint(); size > 0 {
			e.e.Data = d.bytes(size - 1)
		}
	}
	m.Entries = pointers[:n:n]
	return pointers[n:]
}

func (d *batchDecoder) enum() int32 {
	v := d.uvarint()
	if v > 1<<31-1 {
		d.fail("enumerated value")
		return 0
	}
	return int32(v)
}
