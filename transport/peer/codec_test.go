package peer

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// optional draws nil, zero, a small or any number.
func optional(t *rapid.T, label string) *uint64 {
	return rapid.OneOf(rapid.Just[*uint64](nil), rapid.Ptr(rapid.OneOf(rapid.Uint64Range(0, 9), rapid.Uint64()), false)).Draw(t, label)
}

func optionalBytes(t *rapid.T, label string) []byte {
	return rapid.OneOf(rapid.Just[[]byte](nil), rapid.SliceOfN(rapid.Byte(), 0, 40)).Draw(t, label)
}

func drawMessage(t *rapid.T) *raftpb.Message {
	m := &raftpb.Message{
		To: optional(t, "to"), From: optional(t, "from"), Term: optional(t, "term"),
		LogTerm: optional(t, "logTerm"), Index: optional(t, "index"), Commit: optional(t, "commit"),
		Vote: optional(t, "vote"), RejectHint: optional(t, "rejectHint"), Context: optionalBytes(t, "context"),
	}
	if rapid.Bool().Draw(t, "typed") {
		m.Type = raftpb.MessageType(rapid.Int32Range(0, math.MaxInt32).Draw(t, "type")).Enum()
	}
	if rapid.Bool().Draw(t, "rejects") {
		m.Reject = proto.Bool(rapid.Bool().Draw(t, "reject"))
	}
	if rapid.Bool().Draw(t, "snapshot") {
		m.Snapshot = &raftpb.Snapshot{Data: optionalBytes(t, "snapshotData"), Metadata: &raftpb.SnapshotMetadata{
			Index: optional(t, "snapshotIndex"), Term: optional(t, "snapshotTerm"),
			ConfState: &raftpb.ConfState{Voters: rapid.SliceOfN(rapid.Uint64(), 0, 5).Draw(t, "voters")},
		}}
	}
	for range rapid.IntRange(0, 6).Draw(t, "entries") {
		e := &raftpb.Entry{Data: optionalBytes(t, "data"), Term: optional(t, "entryTerm"), Index: optional(t, "entryIndex")}
		if rapid.Bool().Draw(t, "entryTyped") {
			e.Type = raftpb.EntryType(rapid.Int32Range(0, 3).Draw(t, "entryType")).Enum()
		}
		m.Entries = append(m.Entries, e)
	}
	return m
}

func TestBatchSurvivesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		msgs := rapid.SliceOfN(rapid.Custom(drawMessage), 0, 5).Draw(t, "msgs")
		before := make([]proto.Message, len(msgs))
		bound := 32
		for i, m := range msgs {
			before[i] = proto.Clone(m)
			bound += messageSize(m)
		}
		wire, err := appendBatch([]byte("kept"), msgs)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(wire, []byte("kept")) {
			t.Fatal("what stood in the buffer was changed")
		}
		wire = wire[4:]
		if len(wire) > bound {
			t.Fatalf("%d bytes on the wire, messageSize promised at most %d", len(wire), bound)
		}
		got, err := decodeBatch(wire)
		if err != nil {
			t.Fatal(err)
		}
		for i := range wire {
			wire[i] = 0xff // the messages must not share memory with the payload
		}
		if len(got) != len(msgs) {
			t.Fatalf("%d messages arrived of %d", len(got), len(msgs))
		}
		for i, m := range got {
			if !proto.Equal(before[i], m) {
				t.Fatalf("message %d\nsent    %v\narrived %v", i, before[i], m)
			}
			if !proto.Equal(before[i], msgs[i]) {
				t.Fatalf("message %d was changed by encoding it", i)
			}
			for j, e := range m.Entries {
				if (e.Data == nil) != (msgs[i].Entries[j].Data == nil) {
					t.Fatalf("message %d entry %d: nil data became empty, or the reverse", i, j)
				}
				_ = append(e.Data, 'x') // must not reach into the next entry's data
			}
			if !proto.Equal(before[i], m) {
				t.Fatalf("message %d: its entries' data can be appended into each other", i)
			}
		}
	})
}

func TestBatchRefusesMoreThanFits(t *testing.T) {
	messages := make([]*raftpb.Message, maxBatchMessages+1)
	for i := range messages {
		messages[i] = &raftpb.Message{}
	}
	if _, err := appendBatch(nil, messages); err == nil {
		t.Error("too many messages were encoded")
	}
	many := &raftpb.Message{Entries: make([]*raftpb.Entry, maxBatchEntries+1)}
	for i := range many.Entries {
		many.Entries[i] = &raftpb.Entry{}
	}
	if _, err := appendBatch(nil, []*raftpb.Message{many}); err == nil {
		t.Error("too many entries were encoded")
	}
}

// appendEntries is a MsgApp as a loaded leader sends it.
func appendEntries(n, size int) *raftpb.Message {
	rng := rand.New(rand.NewPCG(1, 2))
	m := &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), To: proto.Uint64(0x1234567890abcdef), From: proto.Uint64(0xfedcba0987654321),
		Term: proto.Uint64(7), LogTerm: proto.Uint64(7), Index: proto.Uint64(1 << 20), Commit: proto.Uint64(1<<20 - 9),
	}
	for i := range n {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		m.Entries = append(m.Entries, &raftpb.Entry{
			Type: raftpb.EntryNormal.Enum(), Term: proto.Uint64(7), Index: proto.Uint64(1<<20 + 1 + uint64(i)), Data: data,
		})
	}
	return m
}

func TestEntriesAreCheap(t *testing.T) {
	const n, size = 128, 256
	m := appendEntries(n, size)
	wire, err := appendBatch(nil, []*raftpb.Message{m})
	if err != nil {
		t.Fatal(err)
	}
	if over := len(wire) - n*size; over > 3*n+messageOverhead {
		t.Errorf("%d bytes beyond the data of %d entries", over, n)
	}
	if got := testing.AllocsPerRun(10, func() {
		if _, err := decodeBatch(wire); err != nil {
			t.Error(err)
		}
	}); got > 6 {
		t.Errorf("decoding %d entries allocates %v times", n, got)
	}
	buf := make([]byte, 0, 2*len(wire))
	if got := testing.AllocsPerRun(10, func() {
		if _, err := appendBatch(buf, []*raftpb.Message{m}); err != nil {
			t.Error(err)
		}
	}); got > 1 {
		t.Errorf("encoding %d entries allocates %v times", n, got)
	}
}

func FuzzDecodeBatch(f *testing.F) {
	for _, m := range []*raftpb.Message{{}, appendEntries(3, 5), {Context: []byte("ctx"), Snapshot: &raftpb.Snapshot{}, Reject: proto.Bool(true)}} {
		wire, err := appendBatch(nil, []*raftpb.Message{m, m})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		msgs, err := decodeBatch(in)
		if err != nil {
			return
		}
		wire, err := appendBatch(nil, msgs)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeBatch(wire)
		if err != nil {
			t.Fatal(err)
		}
		for i := range msgs {
			if !proto.Equal(msgs[i], again[i]) {
				t.Fatalf("%v became %v", msgs[i], again[i])
			}
		}
	})
}

// BenchmarkCodec compares 256-byte entries, 128 in a message, encoded and
// decoded, with what protobuf needs for the same.
func BenchmarkCodec(b *testing.B) {
	const n, size = 128, 256
	m := appendEntries(n, size)
	perOp := map[string]float64{}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(n * size)
		var buf []byte
		for b.Loop() {
			var err error
			if buf, err = appendBatch(buf[:0], []*raftpb.Message{m}); err != nil {
				b.Fatal(err)
			}
			if _, err := decodeBatch(buf); err != nil {
				b.Fatal(err)
			}
		}
		perOp["ours"] = float64(b.Elapsed()) / float64(b.N)
	})
	b.Run("protobuf", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(n * size)
		var buf []byte
		for b.Loop() {
			var err error
			if buf, err = (proto.MarshalOptions{}).MarshalAppend(buf[:0], m); err != nil {
				b.Fatal(err)
			}
			var out raftpb.Message
			if err := proto.Unmarshal(buf, &out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/perOp["ours"], "ratio")
	})
}
