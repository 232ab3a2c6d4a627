package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func TestFramesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payloads := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 3000)).Draw(t, "payloads")
		var wire []byte
		for i, p := range payloads {
			wire = appendFrame(wire, 1, frameKind(1+i%int(frameKinds-1)), p)
		}
		in := io.Reader(bytes.NewReader(wire))
		if rapid.Bool().Draw(t, "drip") {
			in = iotest.OneByteReader(in)
		}
		frames := frameReader{r: in, version: 1, max: 3000}
		for i, p := range payloads {
			kind, got, err := frames.next()
			if err != nil || kind != frameKind(1+i%int(frameKinds-1)) || !bytes.Equal(got, p) {
				t.Fatalf("frame %d: kind %d, %d bytes of %d, error %v", i, kind, len(got), len(p), err)
			}
		}
		if _, _, err := frames.next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last frame: %v, want io.EOF", err)
		}
	})
}

// Whatever bit of a frame is flipped, it is noticed.
func TestFlippedBitsAreNoticed(t *testing.T) {
	wire := appendFrame(nil, 1, frameChunk, []byte("the bytes of a chunk"))
	for bit := range len(wire) * 8 {
		bad := bytes.Clone(wire)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, _, err := (&frameReader{r: bytes.NewReader(bad), version: 1, max: 1 << 20}).next(); err == nil {
			t.Errorf("bit %d flipped, and the frame was accepted", bit)
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	wire := appendFrame(nil, 1, frameChunk, make([]byte, 101))
	var v *protocolError
	if _, _, err := (&frameReader{r: bytes.NewReader(wire), version: 1, max: 100}).next(); !errors.As(err, &v) {
		t.Errorf("a frame above the limit: %v", err)
	}
	// A length that is allowed takes no memory before its bytes have come.
	binary.LittleEndian.PutUint32(wire[4:], 512<<20)
	f := &frameReader{r: bytes.NewReader(wire), version: 1, max: 1 << 30}
	if _, _, err := f.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a frame cut off: %v", err)
	}
	if cap(f.buf) > 4*readStep {
		t.Errorf("%d bytes were taken for a frame of 101", cap(f.buf))
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, 1, framePing, nil), 1, frameChunk, []byte("abc")))
	f.Fuzz(func(t *testing.T, in []byte) {
		frames := frameReader{r: bytes.NewReader(in), version: 1, max: 1 << 16}
		for {
			if _, _, err := frames.next(); err != nil {
				return
			}
		}
	})
}

func FuzzHandshake(f *testing.F) {
	h := hello{oldest: 1, newest: 2, lane: Data, cluster: 3, from: 4, to: 5, incarnation: 6, expects: 7, address: "[::1]:8110"}
	f.Add(h.encode())
	f.Add(welcome{refusal: WrongCluster, version: 1, detail: "no"}.encode())
	f.Fuzz(func(t *testing.T, in []byte) {
		if h, err := readHello(bytes.NewReader(in)); err == nil {
			again, err := readHello(bytes.NewReader(h.encode()))
			if err != nil || again != h {
				t.Fatalf("%+v became %+v, %v", h, again, err)
			}
		}
		if w, err := readWelcome(bytes.NewReader(in)); err == nil {
			again, err := readWelcome(bytes.NewReader(w.encode()))
			if err != nil || again != w {
				t.Fatalf("%+v became %+v, %v", w, again, err)
			}
		}
	})
}

func FuzzSnapshotBody(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, 1, frameChunk, []byte("abc")), 1, frameEnd, make([]byte, 12)))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := &snapshotBody{frames: frameReader{r: bytes.NewReader(in), version: 1, max: 1 << 20}}
		if _, err := b.begin(1, 2); err != nil {
			b = &snapshotBody{frames: frameReader{r: bytes.NewReader(in), version: 1, max: 1 << 20}, size: 3}
		}
		n, err := io.Copy(io.Discard, b)
		if err == nil && n != b.size {
			t.Fatalf("%d bytes of %d, and no error", n, b.size)
		}
	})
}
