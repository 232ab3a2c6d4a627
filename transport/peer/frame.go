package peer

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"time"
)

// A frame is a header of twelve bytes and a payload:
//
//	0  2  magic
//	2  1  protocol version; 0 in the handshake, whose form never changes
//	3  1  kind
//	4  4  length of the payload, little endian
//	8  4  CRC32C of the eight bytes before and of the payload
const (
	frameHeader = 12
	frameMagic0 = 0xf1
	frameMagic1 = 0x9b

	// frameSlack is what a payload may have beyond the message that it carries.
	frameSlack = 256
	// readStep bounds the memory that is taken before the bytes for it arrived.
	readStep = 1 << 20
	// keepBuffer is the largest buffer kept between two frames.
	keepBuffer = 4 << 20
)

type frameKind uint8

const (
	frameHello    frameKind = 1 + iota // handshake: the caller presents itself
	frameWelcome                       // handshake: accepted, or refused with the reason
	frameMessages                      // a batch of raft messages
	framePing                          // empty; answered by a pong
	framePong                          // empty
	frameSnapshot                      // a snapshot begins: its size and its message
	frameChunk                         // bytes of the snapshot
	frameEnd                           // all bytes are sent: their number and CRC32C
	frameResult                        // the receiver's outcome
	frameKinds                         // not a kind: the end of the list
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// beginFrame reserves a header at the end of buf; the payload is appended after
// it, and sealFrame completes the frame that began at start.
func beginFrame(buf []byte) (_ []byte, start int) {
	return append(buf, make([]byte, frameHeader)...), len(buf)
}

func sealFrame(buf []byte, start int, version uint8, kind frameKind) {
	h := buf[start : start+frameHeader]
	payload := buf[start+frameHeader:]
	h[0], h[1], h[2], h[3] = frameMagic0, frameMagic1, version, byte(kind)
	binary.LittleEndian.PutUint32(h[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[8:], checksum(h[:8], payload))
}

func appendFrame(buf []byte, version uint8, kind frameKind, payload []byte) []byte {
	buf, start := beginFrame(buf)
	buf = append(buf, payload...)
	sealFrame(buf, start, version, kind)
	return buf
}

func checksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header, castagnoli), castagnoli, payload)
}

// frameReader reads frames of one protocol version with payloads of at most max
// bytes.
type frameReader struct {
	r       io.Reader
	version uint8
	max     int
	header  [frameHeader]byte
	buf     []byte
}

// next returns the next frame. The payload is valid until the following call.
// The error is io.EOF if the stream ends between two frames.
func (f *frameReader) next() (frameKind, []byte, error) {
	if _, err := io.ReadFull(f.r, f.header[:]); err != nil {
		return 0, nil, err
	}
	h := f.header[:]
	if h[0] != frameMagic0 || h[1] != frameMagic1 {
		return 0, nil, violation("a frame begins with % x", h[:4])
	}
	if h[2] != f.version {
		return 0, nil, violation("a frame of version %d on a connection of version %d", h[2], f.version)
	}
	kind := frameKind(h[3])
	if kind == 0 || kind >= frameKinds {
		return 0, nil, violation("unknown frame kind %d", h[3])
	}
	n := binary.LittleEndian.Uint32(h[4:])
	if uint64(n) > uint64(f.max) {
		return 0, nil, violation("a frame of %d bytes, at most %d are allowed", n, f.max)
	}
	payload, err := f.read(int(n))
	if err != nil {
		return 0, nil, err
	}
	if got, want := checksum(h[:8], payload), binary.LittleEndian.Uint32(h[8:]); got != want {
		return 0, nil, violation("checksum of a frame is %08x, its bytes give %08x", want, got)
	}
	return kind, payload, nil
}

func (f *frameReader) read(n int) ([]byte, error) {
	if cap(f.buf) > keepBuffer {
		f.buf = nil
	}
	buf := f.buf[:0]
	for len(buf) < n {
		step := min(n-len(buf), readStep)
		buf = slices.Grow(buf, step)
		part := buf[len(buf) : len(buf)+step]
		if _, err := io.ReadFull(f.r, part); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		buf = buf[:len(buf)+step]
	}
	f.buf = buf
	return buf, nil
}

// patientReader reads from a connection and fails when nothing arrives for
// timeout. The deadline is moved only now and then: it is a system's timer.
type patientReader struct {
	conn    net.Conn
	timeout time.Duration
	set     time.Time
}

func (p *patientReader) Read(b []byte) (int, error) {
	if now := time.Now(); now.Sub(p.set) > p.timeout/4 {
		p.set = now
		if err := p.conn.SetReadDeadline(now.Add(p.timeout)); err != nil {
			return 0, err
		}
	}
	return p.conn.Read(b)
}
