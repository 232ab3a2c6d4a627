package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"
)

// inbound is a connection that another member has made to this one.
type inbound struct {
	conn        net.Conn
	raw         net.Conn // what conn runs on; closing it never blocks, as closing TLS may
	member      *member
	lane        Lane
	version     uint8
	incarnation uint64 // that the caller has shown
	used        bool   // a frame has arrived
	heard       moment
}

// accept takes connections until the listener is closed.
func (t *Transport) accept(ctx context.Context) error {
	pause := backoff{min: 5 * time.Millisecond, max: time.Second}
	for {
		conn, err := t.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("peer: listener for other members: %w", err)
		}
		if err != nil {
			// Out of files or memory, say: those that are connected go on.
			t.warn.log(t.cfg.Logger, "accept "+err.Error(), zap.WarnLevel, "cannot accept a connection", zap.Error(err))
			timer := time.NewTimer(pause.pause())
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		pause.reset()
		select {
		case t.shaking <- struct{}{}:
		default:
			_ = conn.Close()
			t.warn.log(t.cfg.Logger, "handshakes", zap.WarnLevel, "connection closed: too many handshakes at once",
				zap.Stringer("remote", conn.RemoteAddr()), zap.Int("limit", maxHandshakes))
			continue
		}
		t.mu.Lock()
		ok := t.goLocked(func() { t.serve(ctx, conn) })
		if ok {
			t.conns[conn] = struct{}{}
		}
		t.mu.Unlock()
		if !ok {
			<-t.shaking
			_ = conn.Close()
		}
	}
}

// serve handles one connection from its first byte to its end.
func (t *Transport) serve(ctx context.Context, raw net.Conn) {
	defer func() {
		_ = raw.Close()
		t.mu.Lock()
		delete(t.conns, raw)
		t.mu.Unlock()
	}()
	in, r, err := t.shake(ctx, raw)
	<-t.shaking
	if err != nil {
		var refused *RefusedError
		level := zap.WarnLevel
		kind := "handshake " + err.Error()
		if !errors.As(err, &refused) {
			kind = "handshake " + raw.RemoteAddr().Network() // anyone may connect and send nothing
			level = zap.InfoLevel
		}
		if ctx.Err() == nil {
			t.warn.log(t.cfg.Logger, kind, level, "connection refused", zap.Stringer("remote", raw.RemoteAddr()), zap.Error(err))
		}
		return
	}
	if in.lane == Snapshots {
		t.receiveSnapshot(ctx, in, r)
		t.leave(in)
		return
	}
	err = t.receiveMessages(in, r)
	if !t.leave(in) || ctx.Err() != nil || !in.used {
		// Replaced, removed, this end is closing; or nothing ever came: its caller
		// has given up while it waited for Run, and has called again since.
		return
	}
	t.reports.report(in.member.id, &LostError{Member: in.member.id, Lane: in.lane, Err: err})
	if !closedQuietly(err) {
		t.warn.log(t.cfg.Logger, fmt.Sprintf("in %x %v", in.member.id, in.lane), zap.WarnLevel, "connection closed",
			hexField("from", in.member.id), zap.Stringer("lane", in.lane), zap.Error(err))
	}
}

// shake does the handshake of a connection on the way in.
func (t *Transport) shake(ctx context.Context, raw net.Conn) (*inbound, *bufio.Reader, error) {
	if err := raw.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return nil, nil, err
	}
	conn := raw
	if t.cfg.ServerTLS != nil {
		secure := tls.Server(raw, t.cfg.ServerTLS)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, nil, fmt.Errorf("peer: TLS: %w", err)
		}
		conn = secure
	}
	patient := &patientReader{conn: conn, timeout: t.cfg.IdleTimeout, set: time.Now()}
	r := bufio.NewReaderSize(patient, 64<<10)
	h, err := readHello(r)
	if err != nil {
		return nil, nil, fmt.Errorf("peer: handshake: %w", err)
	}
	in, refused := t.admit(conn, raw, h)
	answer := welcome{cluster: t.cluster, member: t.self, incarnation: t.incarnation}
	if refused != nil {
		t.cfg.Metrics.Refused(refused.Reason)
		answer.refusal, answer.detail = refused.Reason, refused.Detail
		_, _ = conn.Write(answer.encode())
		return nil, nil, refused
	}
	answer.version = uint16(in.version)
	if _, err = conn.Write(answer.encode()); err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		t.leave(in)
		return nil, nil, fmt.Errorf("peer: handshake: %w", err)
	}
	patient.set = time.Time{}
	if in.lane == Snapshots {
		patient.timeout = t.cfg.SnapshotTimeout
	}
	return in, r, nil
}

// admit judges a hello and, if it is good, enters its connection in place of an
// older one of the same lane: the caller knows best that the older is dead.
func (t *Transport) admit(conn, raw net.Conn, h hello) (*inbound, *RefusedError) {
	refuse := func(r Refusal, format string, args ...any) (*inbound, *RefusedError) {
		return nil, &RefusedError{Member: h.from, Reason: r, Detail: fmt.Sprintf(format, args...), Here: true}
	}
	if h.oldest > versionNewest || h.newest < versionOldest {
		return refuse(WrongVersion, "member %x speaks protocol versions %d to %d, member %x speaks %d to %d",
			h.from, h.oldest, h.newest, t.self, versionOldest, versionNewest)
	}
	if h.cluster != t.cluster {
		return refuse(WrongCluster, "member %x belongs to cluster %x, member %x to %x", h.from, h.cluster, t.self, t.cluster)
	}
	if h.to != t.self || h.from == t.self {
		return refuse(WrongMember, "member %x was called as member %x by member %x", t.self, h.to, h.from)
	}
	if h.expects != 0 && h.expects != t.incarnation {
		return refuse(WrongIncarnation, "member %x has incarnation %x, member %x knows it as %x", t.self, t.incarnation, h.from, h.expects)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, gone := t.removed[h.from]; gone {
		return refuse(RemovedMember, "member %x has been removed from cluster %x; to join again it needs an empty data directory", h.from, t.cluster)
	}
	if t.state != running {
		return refuse(Busy, "member %x is stopping", t.self)
	}
	m := t.members[h.from]
	if m == nil {
		strangers := 0
		for _, m := range t.members {
			if m.stranger {
				strangers++
			}
		}
		if strangers >= maxStrangers {
			return refuse(Busy, "%d members unknown to member %x are connected already", strangers, t.self)
		}
		m = t.addMember(h.from, h.incarnation, h.address, true)
	}
	if m.incarnation != 0 && m.incarnation != h.incarnation {
		return refuse(WrongIncarnation, "member %x shows incarnation %x, member %x knows it as %x: it has lost its disk, or runs from a copy",
			h.from, h.incarnation, t.self, m.incarnation)
	}
	switch h.lane {
	case Control, Data, Snapshots:
	default:
		return refuse(WrongVersion, "lane %d is not known to member %x", h.lane, t.self)
	}
	in := &inbound{conn: conn, raw: raw, member: m, lane: h.lane, version: uint8(min(h.newest, versionNewest)), incarnation: h.incarnation}
	in.heard.set(time.Now())
	if old := m.inbound[h.lane]; old != nil {
		_ = old.raw.Close()
	}
	m.inbound[h.lane] = in
	// It is up, so it can be reached.
	m.control.retry()
	m.data.retry()
	return in, nil
}

// leave takes a connection off the books and reports whether it was on them: if
// not, it was replaced or its member removed. A stranger that has no connection
// left is forgotten.
func (t *Transport) leave(in *inbound) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := in.member
	if m.inbound[in.lane] != in {
		return false
	}
	delete(m.inbound, in.lane)
	if t.members[m.id] != m {
		return false
	}
	if m.stranger && len(m.inbound) == 0 {
		t.forget(m.id)
	}
	return true
}

// receiveMessages hands over what arrives until the connection ends.
func (t *Transport) receiveMessages(in *inbound, r *bufio.Reader) error {
	frames := frameReader{r: r, version: in.version, max: t.cfg.MaxMessage}
	out := outgoing{Conn: in.conn, raw: in.raw, version: in.version, timeout: t.cfg.WriteTimeout}
	pong := appendFrame(nil, in.version, framePong, nil)
	for {
		kind, payload, err := frames.next()
		if err != nil {
			return err
		}
		in.heard.set(time.Now())
		in.used = true
		switch kind {
		case framePing:
			if err := out.write(pong); err != nil {
				return err
			}
		case frameMessages:
			msgs, err := decodeBatch(payload)
			if err != nil {
				return err
			}
			for _, m := range msgs {
				if l, ok := route(m.GetType()); !ok || l != in.lane {
					return violation("%v on the %v lane", m.GetType(), in.lane)
				}
				if err := checkOrigin(m, in.member.id, t.self); err != nil {
					return err
				}
			}
			t.cfg.Metrics.Received(in.member.id, len(msgs), frameHeader+len(payload))
			if len(msgs) > 0 {
				t.receive(in.member.id, msgs)
			}
		default:
			return violation("frame of kind %d on the %v lane", kind, in.lane)
		}
	}
}
