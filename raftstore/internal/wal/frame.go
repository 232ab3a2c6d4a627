package wal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

const (
	headerSize = 32
	magic      = "rsl1"
	magicStem  = "rsl" // of every version
	align      = 8
)

type kind uint32

const (
	kindHead kind = 1 + iota
	kindBatch
	kindReset
	kindClosed
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// place is where a frame stands and what stands before it.
type place struct {
	segment uint64
	offset  uint32
	before  uint32 // checksum of the frame before
}

// beginFrame appends room for a header; sealFrame fills it and pads the frame.
func beginFrame(buf []byte) []byte { return append(buf, make([]byte, headerSize)...) }

// sealFrame completes the frame that is all of buf and returns it with its
// checksum.
func sealFrame(buf []byte, k kind, at place) ([]byte, uint32) {
	n := len(buf) - headerSize
	copy(buf[4:], magic)
	binary.LittleEndian.PutUint32(buf[8:], uint32(n))
	binary.LittleEndian.PutUint32(buf[12:], uint32(k))
	binary.LittleEndian.PutUint64(buf[16:], at.segment)
	binary.LittleEndian.PutUint32(buf[24:], at.offset)
	binary.LittleEndian.PutUint32(buf[28:], at.before)
	sum := crc32.Checksum(buf[4:], castagnoli)
	binary.LittleEndian.PutUint32(buf, sum)
	for len(buf)%align != 0 {
		buf = append(buf, 0)
	}
	return buf, sum
}

// frame is a frame that checks: its checksum and its own place are right.
type frame struct {
	kind    kind
	sum     uint32
	before  uint32
	payload []byte // shares the segment's memory
	size    int    // in the segment, padding included
}

// frameAt reads the frame at an offset of a segment; ok is false where there is
// none that checks.
func frameAt(data []byte, segment uint64, offset int) (f frame, ok bool) {
	if offset < 0 || len(data)-offset < headerSize {
		return f, false
	}
	h := data[offset:]
	n := binary.LittleEndian.Uint32(h[8:])
	if string(h[4:8]) != magic || binary.LittleEndian.Uint64(h[16:]) != segment ||
		int64(binary.LittleEndian.Uint32(h[24:])) != int64(offset) || int64(n) > int64(len(h)-headerSize) {
		return f, false
	}
	f.sum = binary.LittleEndian.Uint32(h)
	if crc32.Checksum(h[4:headerSize+int(n)], castagnoli) != f.sum {
		return f, false
	}
	f.kind = kind(binary.LittleEndian.Uint32(h[12:]))
	f.before = binary.LittleEndian.Uint32(h[28:])
	f.payload = h[headerSize : headerSize+int(n)]
	f.size = (headerSize + int(n) + align - 1) / align * align
	return f, true
}

// frameAfter says whether a frame that checks stands behind an offset, and
// where the first one is.
func frameAfter(data []byte, segment uint64, offset int) (int, bool) {
	for at := offset; ; {
		i := bytes.Index(data[min(at, len(data)):], []byte(magic))
		if i < 0 {
			return 0, false
		}
		at += i
		if start := at - 4; start > offset && start%align == 0 {
			if _, ok := frameAt(data, segment, start); ok {
				return start, true
			}
		}
		at++
	}
}

// newer says whether a frame of another version of the format stands at an
// offset.
func newer(data []byte, segment uint64, offset int) (version string, is bool) {
	if len(data)-offset < headerSize {
		return "", false
	}
	h := data[offset:]
	if string(h[4:7]) != magicStem || h[7] == magic[3] || binary.LittleEndian.Uint64(h[16:]) != segment {
		return "", false
	}
	n := binary.LittleEndian.Uint32(h[8:])
	if int64(n) > int64(len(h)-headerSize) || crc32.Checksum(h[4:headerSize+int(n)], castagnoli) != binary.LittleEndian.Uint32(h) {
		return "", false
	}
	return string(h[7:8]), true
}
