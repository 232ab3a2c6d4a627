package wal

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// Contents is what a log held when it was opened.
type Contents struct {
	Base    Mark // entries follow this one
	Entries []*raftpb.Entry
	Hard    HardState
	Torn    *Torn // nil: the log ended as it should
	Closed  bool  // the log was closed, not cut off by a crash
	Fresh   bool  // there was no segment: the log is new, or was removed
}

// Last is the last entry, or the base where there is none.
func (c *Contents) Last() Mark {
	if n := len(c.Entries); n > 0 {
		return Mark{c.Entries[n-1].GetIndex(), c.Entries[n-1].GetTerm()}
	}
	return c.Base
}

// Torn is a tail that a crash left half written, never acknowledged.
type Torn struct {
	File   string
	Offset int64
}

// DamageError says that a file is not what was written to it.
type DamageError struct {
	File   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s; start with an empty directory, and the node comes back as a new member", e.File, e.Offset, e.Reason)
}

// segment is one file of the log.
type segment struct {
	number uint64
	last   uint64 // highest index that was ever in it
	size   int64  // of the file: blocks that were written before
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x.seg", number) }

func parseSegment(name string) (uint64, bool) {
	stem, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(stem) != 16 {
		return 0, false
	}
	b, err := hex.DecodeString(stem)
	if err != nil {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n, n > 0
}

// reader goes over the segments in order.
type reader struct {
	fs       disk.FS
	dir      string
	contents Contents
	sure     bool // Base is known to be the entry before the first
	before   uint32
	end      int // offset of the first frame that is not there
	segments []segment
}

// read reads all segments. The last may have no frame at all: a crash came
// before its first.
func (r *reader) read(numbers []uint64) error {
	r.contents.Fresh = len(numbers) == 0
	for i, n := range numbers {
		if i > 0 && n != numbers[i-1]+1 {
			return fmt.Errorf("%s is missing: the log goes from segment %x to %x", filepath.Join(r.dir, segmentName(numbers[i-1]+1)), numbers[i-1], n)
		}
	}
	var torn *Torn // of the segment before
	for i, n := range numbers {
		path := filepath.Join(r.dir, segmentName(n))
		data, err := disk.Read(r.fs, path)
		if err != nil {
			return err
		}
		began, err := r.head(path, data, n, i == 0, torn)
		if err != nil {
			return err
		}
		if !began {
			if i < len(numbers)-1 {
				return &DamageError{path, 0, "the first frame does not check, and there are later segments"}
			}
			if _, ok := frameAfter(data, n, 0); ok {
				return &DamageError{path, 0, "the first frame does not check, but a later one does"}
			}
			r.contents.Torn = torn
			if i == 0 {
				// Nothing was ever synced in the only segment.
				r.segments, r.end, r.before = []segment{{number: n, size: int64(len(data))}}, 0, 0
			}
			return nil
		}
		seg := segment{number: n, size: int64(len(data))}
		if torn, err = r.frames(path, data, &seg); err != nil {
			return err
		}
		r.segments = append(r.segments, seg)
	}
	r.contents.Torn = torn
	return nil
}

// head reads the first frame of a segment and fits it to the one before.
func (r *reader) head(path string, data []byte, n uint64, first bool, torn *Torn) (began bool, err error) {
	f, ok := frameAt(data, n, 0)
	if !ok {
		if v, is := newer(data, n, 0); is {
			return false, fmt.Errorf("%s has format %s, this program knows format %s alone: was the directory used by a newer one?", path, v, magic[3:])
		}
		return false, nil
	}
	h, err := decodeHead(f.payload)
	if f.kind != kindHead || err != nil {
		return false, &DamageError{path, 0, "it does not begin with the head of a segment"}
	}
	if first {
		r.contents.Base, r.sure, r.contents.Hard = h.last, h.end == 0, h.hard
	} else if h.end != uint64(r.end) || f.before != r.before {
		at := filepath.Join(r.dir, segmentName(n-1))
		if torn != nil {
			return false, &DamageError{at, torn.Offset, "the frame does not check, and there are later segments"}
		}
		return false, &DamageError{at, int64(r.end), fmt.Sprintf("it ends here, but the next segment says at %d", h.end)}
	}
	r.before, r.end = f.sum, f.size
	return true, nil
}

// frames reads what follows the head. It returns the torn tail, if the segment
// ends in one.
func (r *reader) frames(path string, data []byte, seg *segment) (*Torn, error) {
	for r.end < len(data) {
		f, ok := frameAt(data, seg.number, r.end)
		if !ok || f.before != r.before {
			if at, later := frameAfter(data, seg.number, r.end); later && !ok {
				return nil, &DamageError{path, int64(r.end), fmt.Sprintf("the frame does not check, but the one at %d does", at)}
			}
			if v, is := newer(data, seg.number, r.end); is {
				return nil, fmt.Errorf("%s has frames of format %s at offset %d, this program knows format %s alone", path, v, r.end, magic[3:])
			}
			// What an earlier life of the file left here looks torn as well; only a
			// header that names this place was meant for it.
			if !ok && names(data[r.end:], seg.number, r.end) {
				return &Torn{path, int64(r.end)}, nil
			}
			return nil, nil //nolint:nilnil // the segment ends here, whole
		}
		if err := r.take(f, seg); err != nil {
			return nil, &DamageError{path, int64(r.end), err.Error()}
		}
		r.before = f.sum
		r.end += f.size
	}
	return nil, nil //nolint:nilnil // the segment is full, and whole
}

// names says whether a header that does not check names its place.
func names(b []byte, number uint64, offset int) bool {
	return len(b) >= headerSize && binary.LittleEndian.Uint64(b[16:]) == number && binary.LittleEndian.Uint32(b[24:]) == uint32(offset)
}

// take carries out one frame.
func (r *reader) take(f frame, seg *segment) error {
	c := &r.contents
	c.Closed = f.kind == kindClosed
	switch f.kind {
	case kindBatch:
		b, err := decodeBatch(f.payload)
		if err != nil {
			return err
		}
		if b.Hard != nil {
			c.Hard = *b.Hard
		}
		if len(b.Entries) == 0 {
			return nil
		}
		seg.last = max(seg.last, b.Entries[len(b.Entries)-1].GetIndex())
		return r.append(b.Entries)
	case kindReset:
		m, h, err := decodeReset(f.payload)
		if err != nil {
			return err
		}
		c.Base, c.Entries, c.Hard, r.sure = m, nil, h, true
		return nil
	case kindClosed:
		return nil
	}
	return fmt.Errorf("a frame of kind %d", f.kind)
}

func (r *reader) append(entries []*raftpb.Entry) error {
	c := &r.contents
	first := entries[0].GetIndex()
	switch last := c.Last().Index; {
	case first == last+1:
		c.Entries = append(c.Entries, entries...)
	case first > last:
		return fmt.Errorf("entry %d stands where %d belongs", first, last+1)
	case first > c.Base.Index:
		c.Entries = append(c.Entries[:first-c.Base.Index-1], entries...)
	case r.sure:
		return fmt.Errorf("entry %d stands in a log that begins after %d", first, c.Base.Index)
	default:
		// The segments before are gone, so their entries are in the state, and the
		// first one here is as good a beginning as any.
		c.Base = Mark{first, entries[0].GetTerm()}
		c.Entries = append([]*raftpb.Entry(nil), entries[1:]...)
	}
	return nil
}
