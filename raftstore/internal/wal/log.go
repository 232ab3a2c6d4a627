package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

const (
	// SegmentBytes is the size of a segment; a batch that is larger gets one of
	// its own size.
	SegmentBytes = 16 << 20

	// growBytes is how far a new file grows ahead of what is written: one sync in
	// so many bytes pays for the file system's journal.
	growBytes = 1 << 20

	// maxSpares bounds the segments that are kept to be used again.
	maxSpares = 2

	spareSuffix = ".spare"

	// keepBuffer bounds the memory kept between two batches.
	keepBuffer = 2 << 20
)

// Log is an open log. Append, Reset and Close belong to one goroutine; Cut may
// be called from another.
type Log struct {
	fs      disk.FS
	dir     string
	segment int64 // size of a segment

	mu       sync.Mutex // guards the fields below, and every write
	segments []segment  // the last one is written to
	spares   []string   // names of files that may be used again
	file     disk.File  // of the last segment
	offset   int64      // where the next frame goes
	before   uint32     // checksum of the frame before
	hard     HardState
	last     Mark
	buf      []byte
	total    atomic.Int64 // bytes of segments
	failed   error        // after it nothing is written: what the file holds is not known
}

// ErrClosed is the outcome of what was asked of a closed log.
var ErrClosed = errors.New("the log is closed")

// Open reads the log in a folder, which is made if it is missing, and leaves it
// ready to be appended to. What it returns is durable.
func Open(fs disk.FS, dir string) (*Log, Contents, error) { return open(fs, dir, SegmentBytes) }

func open(fs disk.FS, dir string, size int64) (*Log, Contents, error) {
	l := &Log{fs: fs, dir: dir, segment: size}
	c, err := l.open()
	if err != nil {
		if l.file != nil {
			l.file.Close()
		}
		return nil, Contents{}, err
	}
	return l, c, nil
}

func (l *Log) open() (Contents, error) {
	if err := l.fs.MkdirAll(l.dir); err != nil {
		return Contents{}, err
	}
	r, err := l.read()
	if err != nil {
		return Contents{}, err
	}
	c := r.contents
	l.segments, l.before, l.hard, l.last = r.segments, r.before, c.Hard, c.Last()
	l.offset = int64(r.end)
	for _, s := range l.segments {
		l.total.Add(s.size)
	}
	if len(l.segments) == 0 {
		l.segments = []segment{{number: 1}}
	}
	if l.offset == 0 {
		last := l.segments[len(l.segments)-1]
		number := last.number
		l.segments = l.segments[:len(l.segments)-1]
		l.total.Add(-last.size)
		return c, l.begin(number, 0)
	}
	if l.file, err = l.fs.Open(l.path(l.tail().number), false); err != nil {
		return c, err
	}
	// What was read may be in memory alone, from before a process was killed.
	return c, l.file.Sync()
}

// read reads the folder.
func (l *Log) read() (*reader, error) {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := parseSegment(name); ok {
			numbers = append(numbers, n)
		} else if strings.HasSuffix(name, spareSuffix) {
			l.spares = append(l.spares, name)
		}
	}
	slices.Sort(numbers)
	r := &reader{fs: l.fs, dir: l.dir}
	return r, r.read(numbers)
}

// Check reads a log without changing it.
func Check(fs disk.FS, dir string) (Contents, error) {
	r, err := (&Log{fs: fs, dir: dir}).read()
	if err != nil {
		return Contents{}, err
	}
	return r.contents, nil
}

func (l *Log) path(number uint64) string { return filepath.Join(l.dir, segmentName(number)) }

func (l *Log) tail() *segment { return &l.segments[len(l.segments)-1] }

// begin starts a segment: in a file that was used before, if there is one. The
// caller holds mu, or is alone.
func (l *Log) begin(number uint64, end int64) error {
	path := l.path(number)
	if n := len(l.spares); n > 0 {
		if err := l.fs.Rename(filepath.Join(l.dir, l.spares[n-1]), path); err != nil {
			return err
		}
		l.spares = l.spares[:n-1]
	}
	f, err := l.fs.Open(path, true)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		f.Close()
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.offset = f, 0
	l.segments = append(l.segments, segment{number: number, size: size})
	l.total.Add(size)
	h := head{end: uint64(end), last: l.last, hard: l.hard}
	return l.write(kindHead, h.append(beginFrame(l.buf[:0])))
}

// write makes one frame durable, of which buf has the payload.
func (l *Log) write(k kind, buf []byte) error {
	t := l.tail()
	buf, sum := sealFrame(buf, k, place{t.number, uint32(l.offset), l.before})
	end := l.offset + int64(len(buf))
	out := buf
	if end > t.size {
		grown := max(end, min(l.segment, (end+growBytes-1)/growBytes*growBytes))
		out = append(out, make([]byte, grown-end)...)
	}
	if _, err := l.file.WriteAt(out, l.offset); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	grown := max(t.size, l.offset+int64(len(out)))
	l.total.Add(grown - t.size)
	t.size = grown
	l.offset, l.before = end, sum
	if l.buf = buf[:0]; cap(buf) > keepBuffer {
		l.buf = nil
	}
	return nil
}

// put writes a frame, in a new segment if it does not fit into this one.
func (l *Log) put(k kind, buf []byte) error {
	if l.offset+int64(len(buf))+align > l.segment && l.offset > headerSize*4 {
		// The head of the next segment takes the log's own buffer.
		l.buf = nil
		if err := l.begin(l.tail().number+1, l.offset); err != nil {
			return err
		}
	}
	return l.write(k, buf)
}

func (l *Log) guard(do func() error) error {
	if l.failed != nil {
		return l.failed
	}
	if err := do(); err != nil {
		l.failed = fmt.Errorf("%s: %w", l.path(l.tail().number), err)
		return l.failed
	}
	return nil
}

// Append makes a batch durable. After an error nothing more is written: whether
// the batch is on the disk is not known.
func (l *Log) Append(b Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guard(func() error {
		for {
			n := l.fits(b.Entries)
			part := Batch{Hard: b.Hard, Entries: b.Entries[:n]}
			if n < len(b.Entries) {
				part.Hard = nil // it may speak of entries that follow
			}
			if part.Hard != nil {
				l.hard = *part.Hard
			}
			if err := l.put(kindBatch, appendBatch(beginFrame(l.buf[:0]), part)); err != nil {
				return err
			}
			if n > 0 {
				e := part.Entries[n-1]
				l.last = Mark{e.GetIndex(), e.GetTerm()}
				l.tail().last = max(l.tail().last, e.GetIndex())
			}
			if b.Entries = b.Entries[n:]; len(b.Entries) == 0 {
				return nil
			}
		}
	})
}

// fits is how many entries go into one frame, one at least.
func (l *Log) fits(entries []*raftpb.Entry) int {
	size := int64(0)
	for i, e := range entries {
		size += int64(len(e.GetData())) + entryOverhead
		if i > 0 && size > l.segment/2 {
			return i
		}
	}
	return len(entries)
}

// Reset makes the log empty: it begins after m, as when a snapshot has replaced
// the state.
func (l *Log) Reset(m Mark, hard HardState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guard(func() error {
		if err := l.put(kindReset, appendReset(beginFrame(l.buf[:0]), m, hard)); err != nil {
			return err
		}
		l.hard, l.last = hard, m
		for i := range l.segments {
			l.segments[i].last = 0
		}
		return l.drop(m.Index)
	})
}

// Cut gives up the segments in which no entry is beyond index.
func (l *Log) Cut(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guard(func() error { return l.drop(index) })
}

// drop takes segments off the front, each durably before the next: the log has
// no gap at any time.
func (l *Log) drop(index uint64) error {
	for len(l.segments) > 1 && l.segments[0].last <= index {
		old := l.segments[0]
		var err error
		if len(l.spares) < maxSpares && old.size <= l.segment {
			name := fmt.Sprintf("%016x%s", old.number, spareSuffix)
			if err = l.fs.Rename(l.path(old.number), filepath.Join(l.dir, name)); err == nil {
				l.spares = append(l.spares, name)
			}
		} else {
			err = l.fs.Remove(l.path(old.number))
		}
		if err == nil {
			err = l.fs.SyncDir(l.dir)
		}
		if err != nil {
			return err
		}
		l.segments = l.segments[1:]
		l.total.Add(-old.size)
	}
	return nil
}

// Size is how many bytes the segments take. It does not wait for a write.
func (l *Log) Size() int64 { return l.total.Load() }

// Close ends the log with a frame that says that all of it is there.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.failed, ErrClosed) {
		return nil
	}
	err := l.failed
	if err == nil {
		err = l.put(kindClosed, beginFrame(l.buf[:0]))
	}
	l.failed = ErrClosed
	if e := l.file.Close(); err == nil {
		err = e
	}
	return err
}
