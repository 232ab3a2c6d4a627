package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

func entry(index, term uint64, data string) *raftpb.Entry {
	kind := raftpb.EntryNormal
	return &raftpb.Entry{Index: &index, Term: &term, Type: &kind, Data: []byte(data)}
}

func text(e *raftpb.Entry) string {
	return fmt.Sprintf("%d.%d %s", e.GetIndex(), e.GetTerm(), e.GetData())
}

func texts(c Contents) []string {
	var out []string
	for _, e := range c.Entries {
		out = append(out, text(e))
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, dir string, size int64) (*Log, Contents) {
	t.Helper()
	l, c, err := open(disk.OS{}, dir, size)
	must(t, err)
	return l, c
}

func TestAppendReplaceCutReset(t *testing.T) {
	dir := t.TempDir()
	l, c := reopen(t, dir, 2048)
	if len(c.Entries) != 0 || c.Hard != (HardState{}) {
		t.Fatalf("a new log holds %+v", c)
	}
	for i := uint64(1); i <= 100; i++ {
		must(t, l.Append(Batch{Hard: &HardState{Term: 1, Vote: 2, Commit: i - 1}, Entries: []*raftpb.Entry{entry(i, 1, fmt.Sprint("value ", i))}}))
	}
	must(t, l.Append(Batch{Hard: &HardState{Term: 2, Vote: 3, Commit: 90}, Entries: []*raftpb.Entry{entry(95, 2, "new 95"), entry(96, 2, "new 96")}}))
	must(t, l.Cut(60))
	must(t, l.Close())

	l, c = reopen(t, dir, 2048)
	if !c.Closed || c.Torn != nil {
		t.Errorf("a closed log: closed %v, torn %+v", c.Closed, c.Torn)
	}
	if got := c.Last(); got != (Mark{96, 2}) {
		t.Errorf("the last entry is %v", got)
	}
	if c.Base.Index > 60 || c.Base.Index < 30 {
		t.Errorf("after a cut at 60 the log begins after %d", c.Base.Index)
	}
	if c.Hard != (HardState{2, 3, 90}) {
		t.Errorf("hard state %+v", c.Hard)
	}
	for i, e := range c.Entries {
		want := fmt.Sprint("value ", c.Base.Index+1+uint64(i))
		if i := e.GetIndex(); i >= 95 {
			want = fmt.Sprint("new ", i)
		}
		if string(e.GetData()) != want {
			t.Fatalf("entry %s, want %s", text(e), want)
		}
	}
	must(t, l.Reset(Mark{500, 7}, HardState{7, 1, 500}))
	must(t, l.Append(Batch{Entries: []*raftpb.Entry{entry(501, 7, "after")}}))
	must(t, l.Close())
	l, c = reopen(t, dir, 2048)
	defer l.Close()
	if c.Base != (Mark{500, 7}) || !slices.Equal(texts(c), []string{"501.7 after"}) || c.Hard != (HardState{7, 1, 500}) {
		t.Errorf("after a reset: base %v, %v, %+v", c.Base, texts(c), c.Hard)
	}
}

// A batch that is larger than a segment, and one that goes into several frames.
func TestLargeBatches(t *testing.T) {
	dir := t.TempDir()
	l, _ := reopen(t, dir, 4096)
	big := string(make([]byte, 10_000))
	must(t, l.Append(Batch{Entries: []*raftpb.Entry{entry(1, 1, big)}}))
	var many []*raftpb.Entry
	for i := range uint64(50) {
		many = append(many, entry(2+i, 1, string(make([]byte, 300))))
	}
	must(t, l.Append(Batch{Hard: &HardState{1, 1, 40}, Entries: many}))
	must(t, l.Close())
	l, c := reopen(t, dir, 4096)
	defer l.Close()
	if len(c.Entries) != 51 || len(c.Entries[0].GetData()) != 10_000 || c.Hard.Commit != 40 {
		t.Errorf("%d entries, the first of %d bytes, commit %d", len(c.Entries), len(c.Entries[0].GetData()), c.Hard.Commit)
	}
}

// INV-1: what a sync has answered survives a power cut at any later step, and a
// cut never leaves a log that does not open.
func TestPowerCuts(t *testing.T) {
	for seed := range uint64(100) {
		dir := t.TempDir()
		rng := rand.New(rand.NewPCG(seed, 1))
		fs := simdisk.New(dir, seed)
		logDir := filepath.Join(dir, "log")
		cutAt := 0
		fs.Before = func(_ string, n int) error {
			if n == cutAt {
				fs.Cut()
			}
			return nil
		}
		acked := map[uint64]string{} // index → entry
		var first, last uint64 = 1, 0
		term, cut := uint64(1), uint64(0)
		var pending []*raftpb.Entry
		for life := range 6 {
			cutAt = fs.Steps() + 1 + rng.IntN(60)
			l, c, err := open(fs, logDir, 1500)
			for i := 0; err == nil && i < 200; i++ {
				if i == 0 { // what was read is what was acknowledged, or that and the last batch
					for j := max(first, c.Base.Index+1); j <= last; j++ {
						k := j - c.Base.Index - 1
						if c.Base.Index >= j {
							continue
						}
						if k >= uint64(len(c.Entries)) {
							t.Fatalf("seed %d, life %d: entry %d was synced and is lost", seed, life, j)
						}
						got := text(c.Entries[k])
						replaced := slices.ContainsFunc(pending, func(e *raftpb.Entry) bool { return text(e) == got })
						if got != acked[j] && !replaced {
							t.Fatalf("seed %d, life %d: entry %d is %q, want %q", seed, life, j, got, acked[j])
						}
					}
					if c.Base.Index > cut {
						t.Fatalf("seed %d: the log begins after %d, but was cut at %d", seed, c.Base.Index, cut)
					}
					clear(acked)
					for _, e := range c.Entries {
						acked[e.GetIndex()] = text(e)
					}
					last, first = c.Last().Index, c.Base.Index+1
					pending = nil
				}
				switch rng.IntN(12) {
				case 0:
					if n := cut + uint64(rng.IntN(20)); n <= last {
						cut = n
						err = l.Cut(cut)
					}
				case 1:
					term++
					if back := uint64(rng.IntN(3)); last > back && last-back > cut {
						last -= back
					}
					fallthrough
				default:
					pending = nil
					for range 1 + rng.IntN(4) {
						pending = append(pending, entry(last+1+uint64(len(pending)), term, string(make([]byte, rng.IntN(300)))))
					}
					if err = l.Append(Batch{Entries: pending}); err == nil {
						for _, e := range pending {
							acked[e.GetIndex()], last = text(e), e.GetIndex()
						}
					} else {
						last = pending[0].GetIndex() - 1
					}
				}
			}
			if err == nil {
				err = l.Close()
			}
			if err != nil && !errors.Is(err, simdisk.ErrPowerCut) {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			if l != nil {
				l.file.Close()
			}
			must(t, fs.Restart())
		}
	}
}

// INV-5: a flipped byte anywhere is an error that names the place, or loses
// nothing but what follows the last batch.
func TestFlippedBytes(t *testing.T) {
	dir := t.TempDir()
	l, _ := reopen(t, dir, 1024)
	for i := uint64(1); i <= 40; i++ {
		must(t, l.Append(Batch{Hard: &HardState{1, 1, i - 1}, Entries: []*raftpb.Entry{entry(i, 1, fmt.Sprint("value ", i))}}))
	}
	must(t, l.Cut(20))
	must(t, l.Close())
	clean, err := Check(disk.OS{}, dir)
	must(t, err)
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	must(t, err)
	found := 0
	for _, name := range names {
		data, err := os.ReadFile(name)
		must(t, err)
		for i := range data {
			data[i] ^= 1 << (i % 8)
			must(t, os.WriteFile(name, data, 0o600))
			c, err := Check(disk.OS{}, dir)
			var damage *DamageError
			switch {
			case errors.As(err, &damage):
				found++
				if damage.File != name || damage.Offset > int64(i) {
					t.Fatalf("byte %d of %s is flipped, the error says %v", i, name, err)
				}
			case err != nil:
				found++
			case !slices.Equal(texts(c), texts(clean)) || c.Hard != clean.Hard:
				t.Fatalf("byte %d of %s is flipped: %v, want an error or %v", i, name, texts(c), texts(clean))
			}
			data[i] ^= 1 << (i % 8)
		}
		must(t, os.WriteFile(name, data, 0o600))
	}
	if found == 0 {
		t.Error("no flipped byte was noticed")
	}
}

// A segment that is missing, and one of a newer format.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	l, _ := reopen(t, dir, 1024)
	for i := uint64(1); i <= 80; i++ {
		must(t, l.Append(Batch{Entries: []*raftpb.Entry{entry(i, 1, "x")}}))
	}
	must(t, l.Close())
	middle := filepath.Join(dir, segmentName(2))
	data, err := os.ReadFile(middle)
	must(t, err)
	must(t, os.Remove(middle))
	if _, err := Check(disk.OS{}, dir); err == nil {
		t.Error("a missing segment is not noticed")
	}
	f := append([]byte(nil), data...)
	copy(f[4:], "rsl9")
	fr, _ := frameAt(data, 2, 0)
	newerSum(f[:headerSize+len(fr.payload)])
	must(t, os.WriteFile(middle, f, 0o600))
	if _, err := Check(disk.OS{}, dir); err == nil {
		t.Error("a newer format is not noticed")
	} else if errors.As(err, new(*DamageError)) {
		t.Errorf("a newer format is taken for damage: %v", err)
	}
}
