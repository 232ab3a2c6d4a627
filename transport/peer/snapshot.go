package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// A snapshot's connection carries, after the handshake: a frameSnapshot with the
// size (8 bytes) and a batch of the one message; frameChunks; a frameEnd with
// the number of bytes and their CRC32C. On the way back: framePongs while the
// receiver lives, then a frameResult with 0, or 1 and the reason.
const (
	chunkBytes       = 256 << 10
	snapshotEndBytes = 8 + 4
	maxSnapshotError = 1024
)

// SnapshotError says that the receiver of a snapshot did not install it.
type SnapshotError struct {
	Member uint64
	Reason string
}

func (e *SnapshotError) Error() string {
	return fmt.Sprintf("peer: member %x did not install the snapshot: %s", e.Member, e.Reason)
}

// SendSnapshot streams size bytes from body to msg.To over a connection of its
// own, closes body, and calls done exactly once, from another goroutine: with
// nil when the receiver has installed the snapshot, otherwise with the reason.
// Each member is sent one snapshot at a time; another one meanwhile ends with
// ErrSnapshotBusy.
func (t *Transport) SendSnapshot(msg *raftpb.Message, size int64, body io.ReadCloser, done func(error)) {
	finish := func(err error) {
		if cerr := body.Close(); err == nil && cerr != nil {
			t.cfg.Logger.Warn("snapshot was sent, its source did not close", zap.Error(cerr))
		}
		t.cfg.Metrics.SnapshotSent(msg.GetTo(), size, err)
		done(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.members[msg.GetTo()]
	err := ErrClosed
	switch {
	case t.state != running:
	case m == nil:
		err = ErrUnknownPeer
	case m.sending:
		err = ErrSnapshotBusy
	case msg.GetType() != raftpb.MsgSnap || size < 0:
		err = fmt.Errorf("peer: %v of %d bytes is not a snapshot", msg.GetType(), size)
	default:
		m.sending = true
		ctx := t.ctx
		t.goLocked(func() {
			err := t.sendSnapshot(ctx, m, msg, size, body)
			t.mu.Lock()
			m.sending = false
			t.mu.Unlock()
			finish(err)
		})
		return
	}
	if !t.goLocked(func() { finish(err) }) {
		go finish(err) // there is no Run that could wait for it
	}
}

func (t *Transport) sendSnapshot(ctx context.Context, m *member, msg *raftpb.Message, size int64, body io.Reader) (err error) {
	began := time.Now()
	log := t.cfg.Logger.With(hexField("to", m.id), zap.Uint64("index", msg.GetSnapshot().GetMetadata().GetIndex()), zap.Int64("bytes", size))
	defer func() {
		if err != nil {
			log.Warn("snapshot not sent", zap.Error(err))
		} else {
			log.Info("snapshot sent and installed", zap.Duration("took", time.Since(began)))
		}
	}()
	conn, _, err := t.dial(ctx, m, Snapshots)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.timeout = t.cfg.SnapshotTimeout
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	result := make(chan error, 1)
	go func() { result <- readResult(conn, m.id) }()
	sent := t.stream(ctx, conn, msg, size, body, result)
	if sent != nil {
		// A receiver that refuses says why before it closes.
		stopped := time.AfterFunc(t.cfg.HandshakeTimeout, func() { _ = conn.Close() })
		defer stopped.Stop()
		var source *sourceError
		if errors.As(sent, &source) {
			_ = conn.Close()
		}
	}
	err = <-result
	var refused *SnapshotError
	switch {
	case ctx.Err() != nil:
		return ErrClosed
	case errors.As(err, &refused), sent == nil:
		return err
	}
	return sent
}

// sourceError says that a snapshot could not be read where it is sent from.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "peer: read the snapshot: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// stream writes the snapshot to conn. It stops with nil when there is a result
// before the end.
func (t *Transport) stream(ctx context.Context, conn *outgoing, msg *raftpb.Message, size int64, body io.Reader, result chan error) error {
	buf, start := beginFrame(make([]byte, 0, chunkBytes+frameHeader))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(size))
	buf, err := appendBatch(buf, []*raftpb.Message{msg})
	if err != nil {
		return err
	}
	sealFrame(buf, start, conn.version, frameSnapshot)
	if err := conn.write(buf); err != nil {
		return err
	}
	var sum uint32
	for left := size; left > 0; {
		select {
		case err := <-result:
			result <- err
			return nil
		default:
		}
		n := min(left, int64(t.limit.chunk(chunkBytes)))
		if err := t.limit.take(ctx, int(n)); err != nil {
			return err
		}
		buf, start = beginFrame(buf[:0])
		buf = append(buf, make([]byte, n)...)
		part := buf[start+frameHeader:]
		if _, err := io.ReadFull(body, part); err != nil {
			return &sourceError{fmt.Errorf("%d bytes before its end: %w", left, err)}
		}
		sum = crc32.Update(sum, castagnoli, part)
		sealFrame(buf, start, conn.version, frameChunk)
		if err := conn.write(buf); err != nil {
			return err
		}
		left -= n
	}
	var end [snapshotEndBytes]byte
	binary.LittleEndian.PutUint64(end[:], uint64(size))
	binary.LittleEndian.PutUint32(end[8:], sum)
	return conn.write(appendFrame(buf[:0], conn.version, frameEnd, end[:]))
}

// readResult waits for the receiver's outcome, for as long as it gives a sign of
// life.
func readResult(conn *outgoing, member uint64) error {
	frames := frameReader{r: conn.r, version: conn.version, max: 1 + maxSnapshotError}
	for {
		kind, payload, err := frames.next()
		if err != nil {
			return &LostError{Member: member, Lane: Snapshots, Err: err}
		}
		switch {
		case kind == framePong:
		case kind == frameResult && len(payload) == 1 && payload[0] == 0:
			return nil
		case kind == frameResult && len(payload) >= 1 && payload[0] == 1:
			return &SnapshotError{Member: member, Reason: string(payload[1:])}
		default:
			return violation("frame of kind %d on the way back of a snapshot", kind)
		}
	}
}

// receiveSnapshot takes a snapshot from its connection, hands it over, and sends
// the outcome back.
func (t *Transport) receiveSnapshot(ctx context.Context, in *inbound, r *bufio.Reader) {
	out := &outgoing{Conn: in.conn, raw: in.raw, version: in.version, timeout: t.cfg.WriteTimeout}
	log := t.cfg.Logger.With(hexField("from", in.member.id))
	pulse := make(chan struct{})
	pulsed := make(chan struct{})
	go func() {
		defer close(pulsed)
		t.pulse(out, pulse)
	}()
	body := &snapshotBody{frames: frameReader{r: r, version: in.version, max: t.cfg.MaxMessage + frameSlack}}
	err := t.takeSnapshot(ctx, in, body, log)
	close(pulse)
	<-pulsed
	if ctx.Err() == nil {
		t.answerSnapshot(out, r, err)
	}
}

func (t *Transport) takeSnapshot(ctx context.Context, in *inbound, body *snapshotBody, log *zap.Logger) error {
	turn := time.NewTimer(t.cfg.SnapshotTimeout / 2)
	defer turn.Stop()
	select {
	case t.snapshot <- struct{}{}:
		defer func() { <-t.snapshot }()
	case <-turn.C:
		return errors.New("another snapshot is being received")
	case <-ctx.Done():
		return ctx.Err()
	}
	msg, err := body.begin(in.member.id, t.self)
	if err != nil {
		log.Warn("snapshot not received", zap.Error(err))
		return err
	}
	began := time.Now()
	if err = t.install(msg, body); err == nil {
		err = body.finished()
	}
	log = log.With(zap.Uint64("index", msg.GetSnapshot().GetMetadata().GetIndex()), zap.Int64("bytes", body.size))
	if err != nil {
		log.Warn("snapshot not installed", zap.Error(err))
		return err
	}
	log.Info("snapshot received and installed", zap.Duration("took", time.Since(began)))
	return nil
}

// pulse tells the sender that this end lives, however long an installation or
// the throttle of the sender takes.
func (t *Transport) pulse(out *outgoing, stop <-chan struct{}) {
	ticker := time.NewTicker(t.cfg.PingInterval)
	defer ticker.Stop()
	pong := appendFrame(nil, out.version, framePong, nil)
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			if err := out.write(pong); err != nil {
				_ = out.Close() // the body's reader sees it
				return
			}
		}
	}
}

// answerSnapshot sends the outcome. Closing a connection with bytes that were
// not read resets it, and the reset may overtake the outcome: read on for a
// while, until the sender has closed.
func (t *Transport) answerSnapshot(out *outgoing, r io.Reader, err error) {
	payload := []byte{0}
	if err != nil {
		reason := err.Error()
		payload = append([]byte{1}, reason[:min(len(reason), maxSnapshotError)]...)
	}
	if werr := out.write(appendFrame(nil, out.version, frameResult, payload)); werr != nil {
		return
	}
	limit := time.AfterFunc(t.cfg.HandshakeTimeout, func() { _ = out.Close() })
	defer limit.Stop()
	_, _ = io.Copy(io.Discard, r)
}

// snapshotBody is a snapshot's bytes as they arrive. Read returns io.EOF only
// when number and checksum are those that the sender has sent.
type snapshotBody struct {
	frames frameReader
	size   int64  // bytes that it will have
	got    int64  // bytes that have arrived
	part   []byte // of those, what Read has not returned yet
	sum    uint32
	err    error // what Read returns from now on
}

func (b *snapshotBody) begin(from, self uint64) (*raftpb.Message, error) {
	kind, payload, err := b.frames.next()
	if err != nil {
		return nil, err
	}
	if kind != frameSnapshot || len(payload) < 8 {
		return nil, violation("frame of kind %d instead of a snapshot's first", kind)
	}
	b.size = int64(binary.LittleEndian.Uint64(payload))
	msgs, err := decodeBatch(payload[8:])
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 || msgs[0].GetType() != raftpb.MsgSnap || msgs[0].Snapshot.GetMetadata().GetIndex() == 0 || b.size < 0 {
		return nil, violation("a snapshot begins without a MsgSnap")
	}
	b.frames.max = chunkBytes
	b.frames.buf = nil
	return msgs[0], checkOrigin(msgs[0], from, self)
}

func (b *snapshotBody) Read(p []byte) (int, error) {
	for len(b.part) == 0 {
		if b.err == nil {
			b.err = b.fetch()
		}
		if b.err != nil {
			return 0, b.err
		}
	}
	n := copy(p, b.part)
	b.part = b.part[n:]
	return n, nil
}

// fetch takes the next frame. io.EOF is the good end.
func (b *snapshotBody) fetch() error {
	kind, payload, err := b.frames.next()
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("peer: snapshot cut off after %d of %d bytes: %w", b.got, b.size, io.ErrUnexpectedEOF)
	case err != nil:
		return err
	case kind == frameChunk && len(payload) > 0 && int64(len(payload)) <= b.size-b.got:
		b.got += int64(len(payload))
		b.sum = crc32.Update(b.sum, castagnoli, payload)
		b.part = payload
		return nil
	case kind == frameEnd && len(payload) == snapshotEndBytes:
		total, sum := binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint32(payload[8:])
		if total != uint64(b.size) || b.got != b.size || sum != b.sum {
			return violation("snapshot of %d bytes ends after %d with checksum %08x, they give %08x", b.size, b.got, sum, b.sum)
		}
		return io.EOF
	}
	return violation("frame of kind %d and %d bytes within a snapshot, after %d of %d bytes", kind, len(payload), b.got, b.size)
}

// finished says whether everything was read and checked, which a callee that
// installed the snapshot must have done.
func (b *snapshotBody) finished() error {
	if len(b.part) == 0 && b.err == nil && b.got == b.size {
		b.err = b.fetch() // the callee knew the size and did not ask for the end
	}
	if errors.Is(b.err, io.EOF) && len(b.part) == 0 {
		return nil
	}
	return fmt.Errorf("peer: snapshot was installed after %d of %d bytes, without its end", b.got-int64(len(b.part)), b.size)
}
