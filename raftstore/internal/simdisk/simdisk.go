// Package simdisk is a disk that can lose power, lie, stall and fail. It wraps a
// real folder: what was written and not synced may be lost at a power cut, page
// by page, and so may names that were changed since their folder was synced.
package simdisk

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// ErrPowerCut is what everything answers from a power cut until Restart.
var ErrPowerCut = errors.New("simdisk: the power is cut")

// FS is a simulated disk. Its methods are safe for concurrent use.
type FS struct {
	// Before, if it is not nil, is called before each operation that makes
	// something durable, with its name and how many there were before; it may
	// wait, and its error is that of the operation.
	Before func(op string, n int) error

	root string
	seed uint64

	mu      sync.Mutex
	lives   uint64
	rng     *rand.Rand
	lies    func(name string) bool
	dead    bool
	steps   int
	now     map[string]*inode // by path
	durable map[string]*inode // after a power cut at this moment, at the least
	pending []change          // of names, in order, since the last SyncDir
}

// inode is a file. Its content now is that of the real file.
type inode struct {
	synced []byte // what is surely there after a power cut
	dirty  []span // written since
	whole  bool   // written by others too: every page may be dirty
}

type span struct{ from, to int64 }

type change struct{ from, to string } // from "": made; to "": removed

const page = 512

// New returns a disk over the folder root, which must be empty or what an
// earlier disk left. Faults are drawn from seed.
func New(root string, seed uint64) *FS {
	return &FS{root: root, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x5d)), now: map[string]*inode{}, durable: map[string]*inode{}}
}

// SetBefore sets Before while the disk is in use.
func (d *FS) SetBefore(before func(op string, n int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Before = before
}

// Lie makes a sync of the files of which it is true answer at once, and do
// nothing. Nil ends that.
func (d *FS) Lie(of func(name string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = of
}

// honest says whether a sync is one; mu is held.
func (d *FS) honest(name string) bool { return d.lies == nil || !d.lies(name) }

// Steps is how many operations made something durable so far.
func (d *FS) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// Cut cuts the power: from now on everything fails.
func (d *FS) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

func (d *FS) step(op string) error {
	d.mu.Lock()
	n := d.steps
	d.steps++
	before := d.Before
	d.mu.Unlock()
	if before != nil {
		if err := before(op, n); err != nil {
			return err
		}
	}
	return d.alive()
}

func (d *FS) alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return ErrPowerCut
	}
	return nil
}

// Restart brings the power back: the real files become what a power cut left of
// them. No file may be open.
func (d *FS) Restart() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	contents := map[*inode][]byte{}
	for _, path := range slices.Sorted(maps.Keys(d.now)) {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		contents[d.now[path]] = data
	}
	// A journal keeps the order of names: some first part of the changes stays.
	keep := 0
	if len(d.pending) > 0 {
		keep = d.rng.IntN(len(d.pending) + 1)
	}
	names := maps.Clone(d.durable)
	made := map[string]*inode{}
	for _, c := range d.pending[:keep] {
		switch {
		case c.from == "":
			made[c.to] = d.made(c.to)
			names[c.to] = made[c.to]
		case c.to == "":
			delete(names, c.from)
		default:
			names[c.to] = names[c.from]
			delete(names, c.from)
		}
	}
	for path := range d.now {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	d.now, d.durable, d.pending = map[string]*inode{}, map[string]*inode{}, nil
	for _, path := range slices.Sorted(maps.Keys(names)) {
		n := names[path]
		data := d.mix(path, n, contents[n])
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
		fresh := &inode{synced: data}
		d.now[path], d.durable[path] = fresh, fresh
	}
	d.dead = false
	d.lives++
	return nil
}

// made finds the inode that was made under a name that may have changed since.
func (d *FS) made(name string) *inode {
	at := name
	for _, c := range d.pending {
		if c.from == at && c.to != "" {
			at = c.to
		}
	}
	if n := d.now[at]; n != nil {
		return n
	}
	return &inode{}
}

// mix is what a power cut leaves of a file: of each page that was written since
// the last sync the old one or the new one.
func (d *FS) mix(path string, n *inode, now []byte) []byte {
	// Of its own for each file: where bbolt puts its pages differs from run to run.
	h := fnv.New64a()
	h.Write([]byte(filepath.Base(path)))
	rng := rand.New(rand.NewPCG(d.seed^h.Sum64(), d.lives))
	out := slices.Clone(n.synced)
	dirty := n.dirty
	if n.whole {
		dirty = []span{{0, int64(max(len(now), len(out)))}}
	}
	for _, s := range dirty {
		for at := s.from / page * page; at < s.to; at += page {
			end := min(at+page, int64(len(now)))
			if at >= end || rng.IntN(2) == 0 {
				continue
			}
			if int64(len(out)) < end {
				out = append(out, make([]byte, end-int64(len(out)))...)
			}
			copy(out[at:end], now[at:end])
		}
	}
	return out
}

// inodeAt returns the inode of a path, of a file that others have made too.
func (d *FS) inodeAt(path string) *inode {
	n := d.now[path]
	if n == nil {
		n = &inode{}
		d.now[path] = n
		d.pending = append(d.pending, change{to: path})
	}
	return n
}

// Open opens a file.
func (d *FS) Open(name string, create bool) (disk.File, error) {
	if err := d.alive(); err != nil {
		return nil, err
	}
	f, err := disk.OS{}.Open(name, create)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &file{File: f, d: d, name: name, n: d.inodeAt(name)}, nil
}

// List lists a folder.
func (d *FS) List(dir string) ([]string, error) {
	if err := d.alive(); err != nil {
		return nil, err
	}
	return disk.OS{}.List(dir)
}

// MkdirAll makes a folder, which is durable at once.
func (d *FS) MkdirAll(dir string) error {
	if err := d.alive(); err != nil {
		return err
	}
	return disk.OS{}.MkdirAll(dir)
}

// Rename renames a file; SyncDir makes that durable.
func (d *FS) Rename(from, to string) error {
	if err := d.step("rename " + filepath.Base(to)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.inodeAt(from)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	delete(d.now, from)
	d.now[to] = n
	d.pending = append(d.pending, change{from, to})
	return nil
}

// Remove removes a file; SyncDir makes that durable.
func (d *FS) Remove(name string) error {
	if err := d.step("remove " + filepath.Base(name)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inodeAt(name)
	if err := os.Remove(name); err != nil {
		return err
	}
	delete(d.now, name)
	d.pending = append(d.pending, change{from: name})
	return nil
}

// SyncDir makes the names in a folder durable; the disk has one journal, so
// those of other folders too.
func (d *FS) SyncDir(dir string) error {
	if err := d.step("syncdir " + filepath.Base(dir)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !strings.HasPrefix(dir, d.root) {
		return fmt.Errorf("simdisk: %s is outside of %s", dir, d.root)
	}
	if d.honest(dir) {
		d.durable, d.pending = maps.Clone(d.now), nil
	}
	return nil
}

// WriteBack does nothing: Cut takes any page that was not synced for written or not.
func (*FS) WriteBack(string, <-chan struct{}) error { return nil }

// SyncDB makes a bbolt file durable.
func (d *FS) SyncDB(path string, _ func() error) error {
	if err := d.step("syncdb " + filepath.Base(path)); err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.inodeAt(path)
	n.whole = true
	if d.honest(path) {
		n.synced = data
	}
	return nil
}

type file struct {
	disk.File
	d    *FS
	name string
	n    *inode
}

func (f *file) ReadAt(p []byte, at int64) (int, error) {
	if err := f.d.alive(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, at)
}

func (f *file) WriteAt(p []byte, at int64) (int, error) {
	if err := f.d.step("write " + filepath.Base(f.name)); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	f.n.dirty = append(f.n.dirty, span{at, at + int64(len(p))})
	f.d.mu.Unlock()
	return f.File.WriteAt(p, at)
}

func (f *file) Truncate(size int64) error {
	if err := f.d.step("truncate " + filepath.Base(f.name)); err != nil {
		return err
	}
	f.d.mu.Lock()
	f.n.synced = f.n.synced[:min(int64(len(f.n.synced)), size)]
	f.d.mu.Unlock()
	return f.File.Truncate(size)
}

func (f *file) Sync() error {
	if err := f.d.step("sync " + filepath.Base(f.name)); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if !f.d.honest(f.name) {
		return nil
	}
	n := f.n
	for _, s := range n.dirty {
		if grow := s.to - int64(len(n.synced)); grow > 0 {
			n.synced = append(n.synced, make([]byte, grow)...)
		}
		if _, err := f.File.ReadAt(n.synced[s.from:s.to], s.from); err != nil {
			return err
		}
	}
	n.dirty = nil
	return nil
}
