package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Transport carries messages and snapshots between this member and the others.
// All methods may be called from any goroutine, before, during and after Run.
type Transport struct {
	cfg      Config
	listener net.Listener
	reports  *reporter
	limit    *rateLimit
	warn     *sparing
	closed   chan struct{}
	snapshot chan struct{} // a token for the snapshot that is being received
	shaking  chan struct{} // a token for each handshake on the way in
	tasks    sync.WaitGroup
	closing  sync.Once

	// Set by Run before anything else runs, constant from then on.
	cluster, self, incarnation uint64
	receive                    func(uint64, []*raftpb.Message)
	install                    func(*raftpb.Message, io.Reader) error

	mu      sync.RWMutex // guards the fields below and the fields of each member that say so
	state   runState
	ctx     context.Context // of Run
	members map[uint64]*member
	removed map[uint64]struct{}
	conns   map[net.Conn]struct{} // open connections that members have made
}

type runState uint8

const (
	idle runState = iota
	running
	ended
)

const (
	// maxStrangers bounds the members known by their own word alone.
	maxStrangers = 64
	// maxHandshakes bounds the connections that have not shown who they are.
	maxHandshakes = 128
)

// member is another member of the cluster.
type member struct {
	id            uint64
	control, data *lane
	cancel        context.CancelFunc // ends both lanes; nil until they run

	// Guarded by Transport.mu.
	incarnation uint64 // that it must show; 0: any
	address     string
	stranger    bool // known by its own word alone
	sending     bool // a snapshot is on its way to it
	inbound     map[Lane]*inbound
}

// New makes a Transport that listens, and does nothing else until Run.
func New(cfg Config) (*Transport, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := cfg.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", cfg.ListenAddr); err != nil {
			return nil, fmt.Errorf("peer: listen for other members: %w", err)
		}
	}
	if cfg.Advertise == "" {
		cfg.Advertise = l.Addr().String()
	}
	return &Transport{
		cfg: cfg, listener: l,
		reports:  newReporter(),
		limit:    newRateLimit(cfg.SnapshotRate),
		warn:     newSparing(),
		closed:   make(chan struct{}),
		snapshot: make(chan struct{}, 1),
		shaking:  make(chan struct{}, maxHandshakes),
		members:  map[uint64]*member{},
		removed:  map[uint64]struct{}{},
		conns:    map[net.Conn]struct{}{},
	}, nil
}

// Addr is the address that the Transport listens on.
func (t *Transport) Addr() net.Addr { return t.listener.Addr() }

// Run serves until ctx ends or Close is called and returns nil then, otherwise
// the reason. It may be called once. When it returns, all goroutines and
// connections have ended and the listener is closed.
//
// receive takes messages that arrived, in order for each sender and lane; the
// callee owns them, and they share memory with each other. It is called
// concurrently for different connections. snapshot, never called concurrently, takes a MsgSnap and the
// snapshot's bytes; body ends with io.EOF only after all of it was checked, and
// a callee that has not seen that must install nothing. unreachable reports a
// member whose connection was lost (a *[LostError]), refused (a *[RefusedError])
// or cannot be made, or whose messages were dropped; it is never called from
// within Send. The callbacks must return once ctx has ended.
func (t *Transport) Run(ctx context.Context, cluster, self, incarnation uint64,
	receive func(from uint64, msgs []*raftpb.Message),
	snapshot func(msg *raftpb.Message, body io.Reader) error,
	unreachable func(peer uint64, err error),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.mu.Lock()
	select {
	case <-t.closed:
		t.mu.Unlock()
		return ErrClosed
	default:
	}
	if t.state != idle {
		t.mu.Unlock()
		return errors.New("peer: Run is called a second time")
	}
	t.cluster, t.self, t.incarnation = cluster, self, incarnation
	t.receive, t.install = receive, snapshot
	t.state, t.ctx = running, ctx
	delete(t.members, self)
	for _, m := range t.members {
		t.startLanes(m)
	}
	t.goLocked(func() { t.reports.run(ctx, unreachable) })
	// Whoever is blocked in a connection or in Accept wakes up by its end.
	t.goLocked(func() {
		select {
		case <-ctx.Done():
		case <-t.closed:
			cancel()
		}
		t.shutdown()
	})
	t.mu.Unlock()

	t.cfg.Logger.Info("serving other members", zap.String("address", t.Addr().String()),
		zap.String("advertised", t.cfg.Advertise), hexField("cluster", cluster), hexField("member", self))
	err := t.accept(ctx)
	cancel()
	t.tasks.Wait()
	return err
}

// Close ends Run, which waits for everything to end; Close does not. Without a
// Run it closes the listener. It always returns nil.
func (t *Transport) Close() error {
	t.closing.Do(func() { close(t.closed) })
	t.mu.RLock()
	state := t.state
	t.mu.RUnlock()
	if state == idle {
		t.shutdown()
	}
	return nil
}

func (t *Transport) shutdown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = ended
	_ = t.listener.Close()
	for c := range t.conns {
		_ = c.Close()
	}
}

// goLocked runs f as part of Run and reports whether it does; t.mu is held.
func (t *Transport) goLocked(f func()) bool {
	if t.state != running {
		return false
	}
	t.tasks.Go(f)
	return true
}

// Send queues messages to their To. Those that cannot be queued are dropped and
// reported to unreachable. The Transport owns msgs' elements from then on, not
// the slice. Snapshots and messages that never leave a node are dropped.
func (t *Transport) Send(msgs []*raftpb.Message) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, msg := range msgs {
		to := msg.GetTo()
		l, ok := route(msg.GetType())
		if !ok {
			t.warn.log(t.cfg.Logger, "unsendable", zap.ErrorLevel, "message of this type is not sent by Send", zap.Stringer("type", msg.GetType()))
			continue
		}
		err := ErrNotConnected
		if m := t.members[to]; m != nil {
			err = m.lane(l).queue.push(msg)
		}
		if err != nil {
			t.cfg.Metrics.Dropped(to, 1)
			t.reports.report(to, err)
		}
	}
}

// SetPeer tells where a member is reached and which incarnation it must show (0:
// any). It takes effect at once: connections to another address or from another
// incarnation are closed. It does not bring a removed member back, and for this
// member itself it does nothing.
func (t *Transport) SetPeer(id, incarnation uint64, address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, gone := t.removed[id]; gone || id == 0 || t.state == ended || (t.state == running && id == t.self) {
		return
	}
	m := t.members[id]
	if m == nil {
		t.addMember(id, incarnation, address, false)
		return
	}
	if incarnation != 0 && m.incarnation != incarnation {
		for _, in := range m.inbound {
			if in.incarnation != incarnation {
				_ = in.raw.Close()
			}
		}
	}
	moved := m.address != address || (incarnation != 0 && m.incarnation != incarnation)
	m.incarnation, m.address, m.stranger = incarnation, address, false
	if moved {
		m.control.redial()
		m.data.redial()
	}
}

// RemovePeer forgets a member, closes its connections, and refuses it from then
// on for the life of the Transport, saying that it was removed.
func (t *Transport) RemovePeer(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == 0 || (t.state == running && id == t.self) {
		return
	}
	t.removed[id] = struct{}{}
	t.forget(id)
}

// addMember and forget are called with t.mu held.
func (t *Transport) addMember(id, incarnation uint64, address string, stranger bool) *member {
	m := &member{id: id, incarnation: incarnation, address: address, stranger: stranger, inbound: map[Lane]*inbound{}}
	m.control = newLane(t, m, Control)
	m.data = newLane(t, m, Data)
	t.members[id] = m
	if t.state == running {
		t.startLanes(m)
	}
	return m
}

func (t *Transport) startLanes(m *member) {
	ctx, cancel := context.WithCancel(t.ctx)
	m.cancel = cancel
	t.goLocked(func() { m.control.run(ctx) })
	t.goLocked(func() { m.data.run(ctx) })
}

func (t *Transport) forget(id uint64) {
	m := t.members[id]
	if m == nil {
		return
	}
	delete(t.members, id)
	if m.cancel != nil {
		m.cancel()
	}
	for _, in := range m.inbound {
		_ = in.raw.Close()
	}
}

func (m *member) lane(l Lane) *lane {
	if l == Control {
		return m.control
	}
	return m.data
}

// Status is what a Transport knows of one member.
type Status struct {
	Member   uint64 `json:"member"`
	Address  string `json:"address"`
	Control  bool   `json:"control"` // the lane to it is up
	Data     bool   `json:"data"`
	Messages int    `json:"messages"` // that wait, on both lanes
	Bytes    int    `json:"bytes"`
	// Heard is when something last arrived on a connection with it; zero if
	// nothing has. A living member is heard at least once a ping interval.
	Heard time.Time `json:"heard,omitzero"`
	// Error is why the last connection to it failed; empty while both are up.
	Error string `json:"error,omitempty"`
}

// Peers returns what is known of each member, in no order.
func (t *Transport) Peers() []Status {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]Status, 0, len(t.members))
	for _, m := range t.members {
		s := Status{Member: m.id, Address: m.address}
		for _, l := range [...]*lane{m.control, m.data} {
			n, b := l.queue.len()
			s.Messages += n
			s.Bytes += b
			up, heard, err := l.status()
			if l.name == Control {
				s.Control = up
			} else {
				s.Data = up
			}
			if heard.After(s.Heard) {
				s.Heard = heard
			}
			if !up && err != nil {
				s.Error = err.Error()
			}
		}
		for _, in := range m.inbound {
			if heard := in.heard.time(); heard.After(s.Heard) {
				s.Heard = heard
			}
		}
		out = append(out, s)
	}
	return out
}

// hexField logs an ID as raft prints it.
func hexField(key string, v uint64) zap.Field { return zap.String(key, fmt.Sprintf("%x", v)) }
