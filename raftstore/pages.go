package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// bbolt believes its pages: one that is damaged makes it read beyond the file,
// which ends the process, in a goroutine of its own if need be. So every page
// that can be reached is looked at before bbolt does: that it is what it says,
// that what it points to lies within it, that keys are in order, and that no page
// is reached twice. What is in the values is their owners' to check.
//
// The format is bbolt's version 2, little endian as on every system that bbolt's
// files are exchanged between.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	pageElement = 16 // of a branch: pos 4, key size 4, id 8; of a leaf: flags 4, pos 4, key size 4, value size 4
	bucketHead  = 16 // root 8, sequence 8

	branchPage  = 0x01
	leafPage    = 0x02
	bucketValue = 0x01

	metaPageSize = pageHeader + 8            // magic 4, version 4
	metaRoot     = pageHeader + 16           // page size 4, flags 4
	metaPages    = metaRoot + bucketHead + 8 // free list 8

	maxPageDepth = 64
)

type pageChecker struct {
	f        io.ReaderAt
	fileSize int64
	pageSize uint64
	pages    uint64 // the number of pages; none beyond is in use
	seen     []uint64
}

// checkPages checks the tree below the meta page at the beginning of head.
func checkPages(files disk.FS, path string, head []byte) error {
	f, err := files.Open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if len(head) < metaPages+8 {
		return fmt.Errorf("%s has a head of %d bytes", path, len(head))
	}
	c := &pageChecker{
		f: f, fileSize: size, pageSize: uint64(binary.LittleEndian.Uint32(head[metaPageSize:])),
		pages: binary.LittleEndian.Uint64(head[metaPages:]),
	}
	if c.pageSize < 512 || c.pageSize > 1<<16 || c.pages < 4 || c.pages > uint64(size)/c.pageSize {
		return fmt.Errorf("%s is damaged: it has %d bytes, its head says %d pages of %d", path, size, c.pages, c.pageSize)
	}
	c.seen = make([]uint64, c.pages/64+1)
	if err := c.page(binary.LittleEndian.Uint64(head[metaRoot:]), keyRange{}, 0); err != nil {
		return fmt.Errorf("%s is damaged: %w; start with an empty directory, and the node comes back as a new member", path, err)
	}
	return nil
}

// keyRange is where the keys of a page must lie: from, and before to if it is
// not nil.
type keyRange struct{ from, to []byte }

func (c *pageChecker) page(id uint64, keys keyRange, depth int) error {
	if id < 2 || id >= c.pages {
		return fmt.Errorf("page %d is pointed to, of %d", id, c.pages)
	}
	if depth > maxPageDepth {
		return fmt.Errorf("page %d is %d levels deep", id, depth)
	}
	buf := make([]byte, c.pageSize)
	if _, err := c.f.ReadAt(buf, int64(id*c.pageSize)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(binary.LittleEndian.Uint32(buf[12:]))
	if binary.LittleEndian.Uint64(buf) != id || overflow >= c.pages-id {
		return fmt.Errorf("page %d (offset %d) is not what it should be", id, id*c.pageSize)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i/64]&(1<<(i%64)) != 0 {
			return fmt.Errorf("page %d (offset %d) is used twice", i, i*c.pageSize)
		}
		c.seen[i/64] |= 1 << (i % 64)
	}
	if overflow > 0 {
		buf = make([]byte, (overflow+1)*c.pageSize)
		if _, err := c.f.ReadAt(buf, int64(id*c.pageSize)); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
	}
	if err := c.elements(buf, keys, depth); err != nil {
		return fmt.Errorf("page %d (offset %d): %w", id, id*c.pageSize, err)
	}
	return nil
}

var errPageBounds = errors.New("an element lies outside of its page")

// elements checks what a page holds, and what it points to. An inline bucket is
// a page within a value.
func (c *pageChecker) elements(b []byte, keys keyRange, depth int) error {
	if len(b) < pageHeader {
		return errPageBounds
	}
	flags, count := binary.LittleEndian.Uint16(b[8:]), int(binary.LittleEndian.Uint16(b[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 {
		return fmt.Errorf("it has flags %#x and %d elements", flags, count)
	}
	if pageHeader+count*pageElement > len(b) {
		return errPageBounds
	}
	var before []byte
	for i := range count {
		e, key, value, err := element(b, flags, count, i)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(before, key) >= 0 {
			return errors.New("its keys are not in order")
		}
		if bytes.Compare(key, keys.from) < 0 || keys.to != nil && bytes.Compare(key, keys.to) >= 0 {
			return errors.New("a key of it belongs to another page")
		}
		before = key
		switch {
		case flags == branchPage:
			within := keyRange{from: key, to: keys.to}
			if i+1 < count {
				if _, within.to, _, err = element(b, flags, count, i+1); err != nil {
					return err
				}
			}
			if err := c.page(binary.LittleEndian.Uint64(e[8:]), within, depth+1); err != nil {
				return err
			}
		case binary.LittleEndian.Uint32(e) == bucketValue:
			if err := c.bucket(value, depth); err != nil {
				return err
			}
		case binary.LittleEndian.Uint32(e) != 0:
			return fmt.Errorf("an element has flags %#x", binary.LittleEndian.Uint32(e))
		}
	}
	return nil
}

// element is one of the count that a page has; a branch's has no value.
func element(b []byte, flags uint16, count, i int) (e, key, value []byte, err error) {
	at := pageHeader + i*pageElement
	e = b[at : at+pageElement]
	word := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(e[i:])) }
	pos, keySize, valueSize := word(0), word(4), uint64(0)
	if flags == leafPage {
		pos, keySize, valueSize = word(4), word(8), word(12)
	}
	start := uint64(at) + pos
	if start < uint64(pageHeader+count*pageElement) || start+keySize+valueSize > uint64(len(b)) {
		return nil, nil, nil, errPageBounds
	}
	end := start + keySize
	return e, b[start:end:end], b[end : end+valueSize], nil
}

func (c *pageChecker) bucket(v []byte, depth int) error {
	if len(v) < bucketHead {
		return errPageBounds
	}
	root := binary.LittleEndian.Uint64(v)
	if root != 0 {
		return c.page(root, keyRange{}, depth+1)
	}
	if len(v) < bucketHead+pageHeader || binary.LittleEndian.Uint16(v[bucketHead+8:]) != leafPage {
		return errPageBounds
	}
	return c.elements(v[bucketHead:], keyRange{}, depth+1)
}
