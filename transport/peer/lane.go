package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// flushBytes is how much is encoded before it is written; what a queue holds is
// usually far less and goes out in one write.
const flushBytes = 1 << 20

// lane keeps one connection to a member and writes to it what its queue takes.
// Send leaves the writing to it: small writes from within Send, as long as they
// need not wait, were tried and made a round trip no faster (BenchmarkRoundTrip).
type lane struct {
	t      *Transport
	member *member
	name   Lane
	queue  *queue
	kick   chan struct{} // ends a pause between two attempts
	heard  moment

	mu   sync.Mutex // guards the fields below
	conn net.Conn   // nil while not connected
	err  error      // why the last connection failed
}

func newLane(t *Transport, m *member, name Lane) *lane {
	return &lane{
		t: t, member: m, name: name, kick: make(chan struct{}, 1),
		queue: newQueue(t.cfg.QueueMessages, t.cfg.QueueBytes),
	}
}

// run connects again and again until ctx ends.
func (l *lane) run(ctx context.Context) {
	log := l.t.cfg.Logger.With(hexField("to", l.member.id), zap.Stringer("lane", l.name))
	pause := backoff{min: l.t.cfg.BackoffMin, max: l.t.cfg.BackoffMax}
	for ctx.Err() == nil {
		l.queue.start()
		conn, address, err := l.t.dial(ctx, l.member, l.name)
		if err == nil {
			log.Info("connected", zap.String("address", address))
			began := time.Now()
			err = l.hold(ctx, conn)
			if time.Since(began) > l.t.cfg.BackoffMax {
				pause.reset()
			}
		}
		dropped := l.queue.stop()
		if dropped > 0 {
			l.t.cfg.Metrics.Dropped(l.member.id, dropped)
		}
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		l.t.reports.report(l.member.id, err)
		l.t.warn.log(log, fmt.Sprintf("%x %v %v", l.member.id, l.name, err), zap.WarnLevel,
			"no connection", zap.String("address", address), zap.Error(err))
		l.wait(ctx, pause.pause())
	}
}

func (l *lane) wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.kick:
	}
}

// retry ends the pause between two attempts, now or the next one: one that has
// failed meanwhile may have come too early.
func (l *lane) retry() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// redial ends the connection, if there is one, and makes another.
func (l *lane) redial() {
	l.mu.Lock()
	if l.conn != nil {
		_ = l.conn.Close() // of the socket: it does not block
	}
	l.mu.Unlock()
	l.retry()
}

func (l *lane) status() (up bool, heard time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil, l.heard.time(), l.err
}

// hold writes to conn until it ends; the error says why, as a *LostError.
func (l *lane) hold(ctx context.Context, conn *outgoing) error {
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
	l.t.cfg.Metrics.Connected(l.member.id, l.name, true)
	l.heard.set(time.Now())

	watched := make(chan error, 1)
	go func() { watched <- l.watch(conn) }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })

	err := l.write(ctx, conn, watched)
	_ = conn.Close()
	stop()
	if err == nil {
		err = <-watched
	} else if seen := <-watched; errors.Is(err, net.ErrClosed) {
		err = seen
	}
	l.mu.Lock()
	l.conn = nil
	l.mu.Unlock()
	l.t.cfg.Metrics.Connected(l.member.id, l.name, false)
	return &LostError{Member: l.member.id, Lane: l.name, Err: err}
}

// watch reads pongs. It returns when the connection ends, which it notices even
// while nothing is written. It closes the connection, to wake a blocked write.
func (l *lane) watch(conn *outgoing) error {
	defer conn.Close()
	frames := frameReader{r: conn.r, version: conn.version, max: 0}
	for {
		kind, _, err := frames.next()
		if err != nil {
			return err
		}
		if kind != framePong {
			return violation("frame of kind %d on the way back of a lane", kind)
		}
		l.heard.set(time.Now())
	}
}

// write drains the queue into conn until the connection ends. It returns nil
// when watched knows the reason; it puts back what it took from there.
func (l *lane) write(ctx context.Context, conn *outgoing, watched chan error) error {
	var (
		buf  []byte
		msgs []*raftpb.Message
		ping = time.NewTicker(l.t.cfg.PingInterval)
	)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-watched:
			watched <- err
			return nil
		case <-ping.C:
			if err := conn.write(appendFrame(buf[:0], conn.version, framePing, nil)); err != nil {
				return err
			}
		case <-l.queue.ready:
			msgs = l.queue.take(msgs)
			var err error
			if buf, err = l.writeAll(conn, buf, msgs); err != nil {
				return err
			}
			if cap(msgs) > 1<<12 {
				msgs = nil
			}
		}
	}
}

// writeAll writes msgs in as few frames and writes as the bounds allow, using
// buf's memory.
func (l *lane) writeAll(conn *outgoing, buf []byte, msgs []*raftpb.Message) ([]byte, error) {
	for len(msgs) > 0 {
		n, size := 0, 0
		for n < len(msgs) && n < maxBatchMessages {
			s := messageSize(msgs[n])
			if n > 0 && size+s > min(flushBytes, l.t.cfg.MaxMessage) {
				break
			}
			size += s
			n++
		}
		batch := msgs[:n]
		msgs = msgs[n:]
		var start int
		var err error
		buf, start = beginFrame(buf[:0])
		buf, err = appendBatch(buf, batch)
		if payload := len(buf) - start - frameHeader; err == nil && payload > l.t.cfg.MaxMessage {
			err = fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, payload, l.t.cfg.MaxMessage)
		}
		if err != nil {
			// Only a message of its own can be too large. Sending it again will not
			// help, and its loss must be seen.
			l.t.warn.log(l.t.cfg.Logger, "encode", zap.ErrorLevel, "message dropped", hexField("to", l.member.id), zap.Error(err))
			l.t.cfg.Metrics.Dropped(l.member.id, n)
			l.t.reports.report(l.member.id, err)
			continue
		}
		sealFrame(buf, start, conn.version, frameMessages)
		if err := conn.write(buf); err != nil {
			return nil, err
		}
		l.t.cfg.Metrics.Sent(l.member.id, n, len(buf))
		if cap(buf) > keepBuffer {
			buf = nil
		}
	}
	return buf, nil
}

// outgoing is a connection that this member has made and that was welcomed.
type outgoing struct {
	net.Conn
	raw     net.Conn // what Conn runs on
	r       *bufio.Reader
	version uint8
	timeout time.Duration // of a write
}

// Close closes the socket: TLS would first write, and a peer that does not read
// would hold the caller.
func (c *outgoing) Close() error { return c.raw.Close() }

func (c *outgoing) write(b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// dial connects to m and presents this member there. The address is the one
// that was tried.
func (t *Transport) dial(ctx context.Context, m *member, l Lane) (_ *outgoing, address string, err error) {
	t.mu.RLock()
	h := hello{
		oldest: versionOldest, newest: versionNewest, lane: l,
		cluster: t.cluster, from: t.self, to: m.id,
		incarnation: t.incarnation, expects: m.incarnation, address: t.cfg.Advertise,
	}
	address = m.address
	t.mu.RUnlock()
	if address == "" {
		return nil, "", ErrUnknownPeer
	}
	conn, raw, err := t.open(ctx, address)
	if err != nil {
		return nil, address, fmt.Errorf("peer: connect to member %x at %s: %w", m.id, address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	version, r, err := t.present(conn, h)
	if err != nil {
		_ = raw.Close()
		return nil, address, err
	}
	return &outgoing{Conn: conn, raw: raw, r: r, version: version, timeout: t.cfg.WriteTimeout}, address, nil
}

func (t *Transport) open(ctx context.Context, address string) (conn, raw net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	raw, err = t.cfg.Dial(ctx, address)
	if err != nil || t.cfg.ClientTLS == nil {
		return raw, raw, err
	}
	cfg := t.cfg.ClientTLS
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		cfg = cfg.Clone()
		cfg.ServerName = host
	}
	secure := tls.Client(raw, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, nil, err
	}
	return secure, raw, nil
}

// present sends h and judges the answer. Reads from the returned reader fail
// after a silence of IdleTimeout.
func (t *Transport) present(conn net.Conn, h hello) (uint8, *bufio.Reader, error) {
	if err := conn.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return 0, nil, err
	}
	if _, err := conn.Write(h.encode()); err != nil {
		return 0, nil, fmt.Errorf("peer: handshake with member %x: %w", h.to, err)
	}
	patient := &patientReader{conn: conn, timeout: t.cfg.IdleTimeout, set: time.Now()}
	r := bufio.NewReaderSize(patient, 512)
	w, err := readWelcome(r)
	if err != nil {
		return 0, nil, fmt.Errorf("peer: handshake with member %x: %w", h.to, err)
	}
	if w.refusal != 0 {
		return 0, nil, &RefusedError{Member: h.to, Reason: w.refusal, Detail: w.detail}
	}
	if err := judge(h, w); err != nil {
		return 0, nil, err
	}
	patient.set = time.Time{}
	return uint8(w.version), r, conn.SetDeadline(time.Time{})
}

// judge checks that a welcome comes from the member that h was meant for. The
// other end has checked the same; whoever of the two is wrong, the connection
// must not be used.
func judge(h hello, w welcome) error {
	refuse := func(r Refusal, format string, args ...any) error {
		return &RefusedError{Member: h.to, Reason: r, Detail: fmt.Sprintf(format, args...), Here: true}
	}
	switch {
	case w.version < h.oldest || w.version > h.newest:
		return refuse(WrongVersion, "it answers in version %d, this member speaks %d to %d", w.version, h.oldest, h.newest)
	case w.cluster != h.cluster:
		return refuse(WrongCluster, "it belongs to cluster %x, this member to %x", w.cluster, h.cluster)
	case w.member != h.to:
		return refuse(WrongMember, "member %x answers at the address of member %x", w.member, h.to)
	case h.expects != 0 && w.incarnation != h.expects:
		return refuse(WrongIncarnation, "its incarnation is %x, the cluster knows it as %x: it has lost its disk, or runs from a copy", w.incarnation, h.expects)
	}
	return nil
}
