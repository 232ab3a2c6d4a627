package wal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// newerSum makes the checksum of a frame fit.
func newerSum(f []byte) { binary.LittleEndian.PutUint32(f, crc32.Checksum(f[4:], castagnoli)) }

// memory is a file system that promises nothing and is fast: a fuzzer loses no
// power.
type memory map[string]*bytesFile

type bytesFile struct{ data []byte }

func (m memory) Open(name string, create bool) (disk.File, error) {
	f := m[name]
	if f == nil {
		if !create {
			return nil, fs.ErrNotExist
		}
		f = &bytesFile{}
		m[name] = f
	}
	return f, nil
}

func (m memory) List(string) ([]string, error) {
	var names []string
	for name := range m {
		names = append(names, filepath.Base(name))
	}
	return names, nil
}

func (m memory) Rename(from, to string) error          { m[to] = m[from]; delete(m, from); return nil }
func (m memory) Remove(name string) error              { delete(m, name); return nil }
func (memory) MkdirAll(string) error                   { return nil }
func (memory) SyncDir(string) error                    { return nil }
func (memory) WriteBack(string, <-chan struct{}) error { return nil }

func (memory) SyncDB(string, func() error) error { return nil }
func (f *bytesFile) Size() (int64, error)        { return int64(len(f.data)), nil }
func (f *bytesFile) Sync() error                 { return nil }
func (f *bytesFile) Close() error                { return nil }
func (f *bytesFile) Truncate(n int64) error      { f.data = f.data[:n]; return nil }
func (f *bytesFile) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(f.data).ReadAt(p, at)
}

func (f *bytesFile) WriteAt(p []byte, at int64) (int, error) {
	if grow := at + int64(len(p)) - int64(len(f.data)); grow > 0 {
		f.data = append(f.data, make([]byte, grow)...)
	}
	return copy(f.data[at:], p), nil
}

func FuzzBatch(f *testing.F) {
	f.Add(appendBatch(nil, Batch{Hard: &HardState{1, 2, 3}, Entries: []*raftpb.Entry{entry(7, 1, "a"), entry(8, 2, "")}}))
	f.Add(appendBatch(nil, Batch{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBatch(data)
		if err != nil {
			return
		}
		again, err := decodeBatch(appendBatch(nil, b))
		if err != nil || len(again.Entries) != len(b.Entries) {
			t.Fatalf("%+v came back as %+v, %v", b, again, err)
		}
		for i := range b.Entries {
			if text(b.Entries[i]) != text(again.Entries[i]) {
				t.Fatalf("entry %s came back as %s", text(b.Entries[i]), text(again.Entries[i]))
			}
		}
	})
}

// FuzzSegment reads any bytes as the only segment of a log: an error or a log,
// never a panic, and what it reads it reads again.
func FuzzSegment(f *testing.F) {
	m := memory{}
	l, _, err := open(m, "", 4096)
	if err != nil {
		f.Fatal(err)
	}
	for i := range uint64(5) {
		if err := l.Append(Batch{Hard: &HardState{1, 1, i}, Entries: []*raftpb.Entry{entry(i+1, 1, "value")}}); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	whole := bytes.TrimRight(m[segmentName(1)].data, "\x00")
	f.Add(whole)
	f.Add(whole[:200])
	f.Fuzz(func(t *testing.T, data []byte) {
		// Mutations of checksummed frames are found at once: make one that fits, too.
		fixed := append([]byte(nil), data...)
		if len(fixed) >= headerSize {
			if n := int(binary.LittleEndian.Uint32(fixed[8:])); n >= 0 && n <= len(fixed)-headerSize {
				newerSum(fixed[:headerSize+n])
			}
		}
		for _, d := range [][]byte{data, fixed} {
			m := memory{segmentName(1): {data: append([]byte(nil), d...)}}
			before, err := Check(m, "")
			if err != nil {
				continue
			}
			l, c, err := open(m, "", 4096)
			if err != nil {
				t.Fatalf("a log that checks does not open: %v", err)
			}
			if len(c.Entries) != len(before.Entries) {
				t.Fatalf("%d entries, then %d", len(before.Entries), len(c.Entries))
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
