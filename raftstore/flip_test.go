package raftstore

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// INV-5: a page of the state that makes no sense is an error, not a panic.
func TestFlippedPages(t *testing.T) {
	dir := t.TempDir()
	s, err := openStateDB(disk.OS{}, dir, true)
	must(t, err)
	rng := rand.New(rand.NewPCG(4, 4))
	for i := uint64(1); i < 60; i++ {
		must(t, putEntry(s, i, rng))
	}
	_, err = s.checkpoint()
	must(t, err)
	must(t, s.close())
	path := filepath.Join(dir, s.name)
	whole, err := os.ReadFile(path)
	must(t, err)
	noticed := 0
	for range 250 {
		data := bytes.Clone(whole)
		page := rng.IntN(len(data) / 4096)
		// Headers and what follows them are where a page can mislead.
		at := page*4096 + rng.IntN(80)
		data[at] ^= 1 << rng.IntN(8)
		overwrite(t, path, data)
		s, err := openStateDB(disk.OS{}, dir, false)
		if err == nil {
			if _, _, err = contents(s); err == nil {
				err = putEntry(s, 61, rng)
			}
			if e := s.close(); e != nil {
				t.Fatal(e)
			}
		}
		if err != nil {
			noticed++
			if strings.Contains(err.Error(), "timeout") {
				t.Fatal(err)
			}
		}
	}
	if noticed == 0 {
		t.Error("no flipped byte was noticed")
	}
	t.Logf("%d of 250 were noticed", noticed)
}

// overwrite puts data in a file without truncating it first, for which file
// systems flush.
func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(data, 0)
	must(t, err)
	must(t, f.Truncate(int64(len(data))))
	must(t, f.Close())
}
