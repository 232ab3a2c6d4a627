package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"
)

func TestMessagesArriveInOrder(t *testing.T) {
	a, b := pair(t, testConfig(t), testConfig(t))
	const n = 2000
	for i := range uint64(n) {
		a.Send([]*raftpb.Message{
			message(raftpb.MsgApp, 1, 2, i, fmt.Appendf(nil, "entry %d", i)),
			message(raftpb.MsgHeartbeat, 1, 2, i),
		})
		b.Send([]*raftpb.Message{message(raftpb.MsgProp, 2, 1, i, []byte("back"))})
	}
	check := func(n *node, typ raftpb.MessageType, count int) {
		t.Helper()
		var msgs []*raftpb.Message
		n.until(typ.String(), func() bool {
			msgs = msgs[:0]
			for _, m := range n.got {
				if m.GetType() == typ {
					msgs = append(msgs, m)
				}
			}
			return len(msgs) == count
		})
		for i, m := range msgs {
			if m.GetIndex() != uint64(i) {
				t.Fatalf("%v number %d has index %d", typ, i, m.GetIndex())
			}
		}
	}
	check(b, raftpb.MsgApp, n)
	check(b, raftpb.MsgHeartbeat, n)
	check(a, raftpb.MsgProp, n)
	a.healthy()
	b.healthy()
}

func TestHeartbeatsPassWhileDataIsHeldBack(t *testing.T) {
	a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, testConfig(t))
	release := make(chan struct{})
	b.onReceive = func(_ uint64, msgs []*raftpb.Message) {
		if msgs[0].GetType() == raftpb.MsgApp {
			<-release
		}
	}
	a.knows(b)
	b.knows(a)
	a.run()
	b.run()
	defer close(release)
	a.connected(2)
	big := make([]byte, 1<<20)
	for range 20 {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 0, big)})
	}
	for i := range 10 {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, uint64(i))})
		b.until("heartbeat", func() bool { return len(b.got) == i+1 })
	}
}

func TestOverflowIsDroppedAndReported(t *testing.T) {
	cfg := testConfig(t)
	cfg.QueueMessages = 10
	a, b := newNode(t, 1, cfg), newNode(t, 2, testConfig(t))
	release := make(chan struct{})
	b.onReceive = func(uint64, []*raftpb.Message) { <-release }
	a.knows(b)
	b.knows(a)
	a.run()
	b.run()
	defer close(release)
	a.connected(2)
	big := make([]byte, 1<<20)
	full := func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 0, big)})
		_, errs := a.seen()
		return slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, ErrQueueFull) })
	}
	eventually(t, "a full queue", full)
	for _, p := range a.Peers() {
		if p.Messages > 2*cfg.QueueMessages {
			t.Errorf("%d messages wait, %d are allowed", p.Messages, cfg.QueueMessages)
		}
	}
}

func TestDeadPeerIsNoticedAndFoundAgain(t *testing.T) {
	a, b := pair(t, testConfig(t), testConfig(t))
	addr := b.Addr().String()
	b.end()
	reported(a, "a reset", func(e *LostError) bool { return e.Member == 2 && e.Reset() })

	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1)})
	a.until("a report of what was dropped", func() bool { return len(a.errs) > 1 })

	cfg := testConfig(t)
	cfg.ListenAddr = addr
	b = newNode(t, 2, cfg)
	b.knows(a)
	b.run()
	a.connected(2)
	b.connected(1)
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 2)})
	b.until("a message after the restart", func() bool { return len(b.got) > 0 && b.got[len(b.got)-1].GetIndex() == 2 })
}

// A member that comes back calls, and is called back although the pause between
// two attempts has grown long.
func TestCallerIsCalledBackAtOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.BackoffMin, cfg.BackoffMax = time.Hour, time.Hour
	a := newNode(t, 1, cfg)
	l := listen(t)
	addr := l.Addr().String()
	_ = l.Close()
	a.SetPeer(2, incarnationOf(2), addr)
	a.run()
	a.until("a failed attempt", func() bool { return len(a.errs) > 0 })
	back := testConfig(t)
	back.ListenAddr = addr
	b := newNode(t, 2, back)
	b.knows(a)
	b.run()
	a.connected(2)
}

func TestAddressChangesWhileRunning(t *testing.T) {
	a, b := pair(t, testConfig(t), testConfig(t))
	c := newNode(t, 2, testConfig(t)) // the same member at another address
	c.knows(a)
	c.run()
	a.SetPeer(2, incarnationOf(2), c.Addr().String())
	b.end()
	eventually(t, "a message at the new address", func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 7)})
		got, _ := c.seen()
		return len(got) > 0
	})
}

func TestHandshakeIsRefused(t *testing.T) {
	tests := []struct {
		name   string
		reason Refusal
		setup  func(a, b *node) // b is the one that is called
	}{
		{name: "wrong cluster", reason: WrongCluster, setup: func(a, b *node) {
			b.runAs(0xdead, 2, incarnationOf(2))
			a.knows(b)
			a.run()
		}},
		{name: "wrong member", reason: WrongMember, setup: func(a, b *node) {
			b.runAs(testCluster, 3, incarnationOf(3))
			a.knows(b)
			a.run()
		}},
		{name: "the called one lost its disk", reason: WrongIncarnation, setup: func(a, b *node) {
			b.runAs(testCluster, 2, 0xbad)
			a.knows(b)
			a.run()
		}},
		{name: "the caller lost its disk", reason: WrongIncarnation, setup: func(a, b *node) {
			b.SetPeer(1, incarnationOf(1), "127.0.0.1:1")
			b.run()
			a.knows(b)
			a.runAs(testCluster, 1, 0xbad)
		}},
		{name: "removed before it calls", reason: RemovedMember, setup: func(a, b *node) {
			b.RemovePeer(1)
			b.run()
			a.knows(b)
			a.run()
		}},
		{name: "removed while connected", reason: RemovedMember, setup: func(a, b *node) {
			b.run()
			a.knows(b)
			a.run()
			a.connected(2)
			b.RemovePeer(1)
			b.SetPeer(1, 0, a.Addr().String()) // does not bring it back
		}},
		{name: "itself", reason: WrongMember, setup: func(a, b *node) {
			b.runAs(testCluster, 1, incarnationOf(1))
			a.knows(b)
			a.run()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zap.DebugLevel)
			cfg := testConfig(t)
			cfg.Logger = zap.New(core)
			a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, cfg)
			tt.setup(a, b)
			reported(a, "refusal", func(e *RefusedError) bool {
				return e.Reason == tt.reason && !e.Here && e.Detail != "" && e.Removed() == (tt.reason == RemovedMember)
			})
			eventually(t, "the one that refuses says so, too", func() bool {
				return slices.ContainsFunc(logs.FilterMessage("connection refused").All(), func(e observer.LoggedEntry) bool {
					return slices.ContainsFunc(e.Context, func(f zap.Field) bool {
						err, _ := f.Interface.(error)
						var refused *RefusedError
						return errors.As(err, &refused) && refused.Here && refused.Reason == tt.reason
					})
				})
			})
			if got, _ := b.seen(); len(got) != 0 {
				t.Errorf("%d messages arrived", len(got))
			}
		})
	}
}

func TestHandshakeVersions(t *testing.T) {
	b := newNode(t, 2, testConfig(t)).run()
	call := func(oldest, newest uint16) welcome {
		t.Helper()
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		h := hello{oldest: oldest, newest: newest, lane: Data, cluster: testCluster, from: 9, to: 2, incarnation: 1, address: "127.0.0.1:1"}
		if _, err := conn.Write(h.encode()); err != nil {
			t.Fatal(err)
		}
		w, err := readWelcome(conn)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	if w := call(1, 9); w.refusal != 0 || w.version != versionNewest {
		t.Errorf("a newer one that still speaks version 1: %+v", w)
	}
	if w := call(2, 9); w.refusal != WrongVersion || !strings.Contains(w.detail, "versions 2 to 9") {
		t.Errorf("one that no longer speaks version 1: %+v", w)
	}
}

// The one that calls checks who answers, even if that one let it in.
func TestWelcomeIsChecked(t *testing.T) {
	h := hello{oldest: 1, newest: 1, cluster: 1, from: 2, to: 3, expects: 4}
	good := welcome{version: 1, cluster: 1, member: 3, incarnation: 4}
	if err := judge(h, good); err != nil {
		t.Errorf("a good welcome: %v", err)
	}
	for reason, change := range map[Refusal]func(*welcome){
		WrongVersion:     func(w *welcome) { w.version = 2 },
		WrongCluster:     func(w *welcome) { w.cluster = 2 },
		WrongMember:      func(w *welcome) { w.member = 2 },
		WrongIncarnation: func(w *welcome) { w.incarnation = 2 },
	} {
		w := good
		change(&w)
		var refused *RefusedError
		if err := judge(h, w); !errors.As(err, &refused) || refused.Reason != reason || !refused.Here {
			t.Errorf("%v: %v", reason, err)
		}
	}
}

// A node that was away hears a leader that it has never been told of, and can
// answer it.
func TestStrangerIsAnswered(t *testing.T) {
	a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, testConfig(t))
	b.onReceive = func(from uint64, msgs []*raftpb.Message) {
		b.Send([]*raftpb.Message{message(raftpb.MsgAppResp, 2, from, msgs[0].GetIndex())})
	}
	b.run()
	a.knows(b)
	a.run()
	a.connected(2)
	eventually(t, "an answer", func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 5)})
		got, _ := a.seen()
		return len(got) > 0
	})
	a.end()
	eventually(t, "the stranger to be forgotten", func() bool { return len(b.Peers()) == 0 })
}

// Bytes that make no sense end their own connection; the others go on.
func TestHostileBytes(t *testing.T) {
	a, b := pair(t, testConfig(t), testConfig(t))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := hello{oldest: 1, newest: 1, lane: Data, cluster: testCluster, from: 9, to: 2, incarnation: 1, address: "127.0.0.1:1"}
	wrap := func(payload []byte) []byte { return appendFrame(h.encode(), 1, frameMessages, payload) }
	batch := func(m *raftpb.Message) []byte {
		p, err := appendBatch(nil, []*raftpb.Message{m})
		if err != nil {
			t.Fatal(err)
		}
		return wrap(p)
	}
	snapshot := h
	snapshot.lane = Snapshots
	attacks := map[string][]byte{
		"http":                  []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls":                   {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc},
		"half a hello":          h.encode()[:20],
		"huge frame":            append(h.encode(), frameMagic0, frameMagic1, 1, byte(frameMessages), 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0),
		"more items than bytes": wrap([]byte{0xff, 0xff, 3, 0xff, 0xff, 0x3f, 0}),
		"local message":         batch(message(raftpb.MsgHup, 9, 2, 0)),
		"other's message":       batch(message(raftpb.MsgApp, 8, 2, 0)),
		"message for another":   batch(message(raftpb.MsgApp, 9, 3, 0)),
		"heartbeat among data":  batch(message(raftpb.MsgHeartbeat, 9, 2, 0)),
		"unknown type":          batch(message(99, 9, 2, 0)),
		"frame out of place":    appendFrame(h.encode(), 1, frameResult, nil),
		"snapshot out of shape": appendFrame(snapshot.encode(), 1, frameSnapshot, []byte("12345678")),
	}
	for i := range 30 {
		junk := make([]byte, rng.IntN(300))
		for j := range junk {
			junk[j] = byte(rng.Uint32())
		}
		attacks[fmt.Sprintf("junk %d", i)] = junk
		attacks[fmt.Sprintf("junk %d after a hello", i)] = append(h.encode(), junk...)
	}
	var all sync.WaitGroup
	for name, attack := range attacks {
		all.Go(func() {
			conn, err := net.Dial("tcp", b.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = conn.Write(attack)
			_ = conn.(*net.TCPConn).CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil && !isReset(err) {
				t.Errorf("%s: the connection stays open: %v", name, err)
			}
		})
	}
	all.Wait()
	if got, _ := b.seen(); len(got) != 0 {
		t.Errorf("a hostile message was handed over: %v", got)
	}
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1)})
	b.until("a good message", func() bool { return len(b.got) == 1 })
	a.healthy()
}

func isReset(err error) bool { return (&LostError{Err: err}).Reset() }

// A connection that says nothing at all is closed.
func TestSilentCallerIsClosed(t *testing.T) {
	cfg := testConfig(t)
	cfg.HandshakeTimeout = 50 * time.Millisecond
	b := newNode(t, 2, cfg).run()
	conn, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read from a port that was told nothing: %v", err)
	}
}

// fakeMember welcomes every caller and then leaves the connection to serve.
func fakeMember(t *testing.T, id uint64, serve func(h hello, conn net.Conn, r *bufio.Reader)) net.Addr {
	t.Helper()
	l := listen(t)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				h, err := readHello(r)
				if err != nil {
					return
				}
				w := welcome{version: 1, cluster: h.cluster, member: id, incarnation: incarnationOf(id)}
				if _, err := conn.Write(w.encode()); err == nil {
					serve(h, conn, r)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr()
}

func TestPeerThatNeverReadsIsGivenUp(t *testing.T) {
	cfg := testConfig(t)
	cfg.WriteTimeout = 100 * time.Millisecond
	stop := make(chan struct{})
	addr := fakeMember(t, 2, func(hello, net.Conn, *bufio.Reader) { <-stop })
	defer close(stop)
	a := newNode(t, 1, cfg)
	a.SetPeer(2, incarnationOf(2), addr.String())
	a.run()
	a.connected(2)
	big := make([]byte, 8<<20)
	for range 4 {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 0, big)})
	}
	reported(a, "a write that timed out", func(e *LostError) bool {
		var timeout net.Error
		return errors.As(e, &timeout) && timeout.Timeout() && !e.Reset()
	})
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	cfg := testConfig(t)
	cfg.PingInterval, cfg.IdleTimeout = 20*time.Millisecond, 200*time.Millisecond
	addr := fakeMember(t, 2, func(_ hello, _ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	a := newNode(t, 1, cfg)
	a.SetPeer(2, incarnationOf(2), addr.String())
	a.run()
	reported(a, "a silence", func(e *LostError) bool { return !e.Reset() })
}

func TestPingsKeepIdleConnections(t *testing.T) {
	cfg := testConfig(t)
	cfg.PingInterval, cfg.IdleTimeout = 10*time.Millisecond, 2*time.Second
	a, b := pair(t, cfg, cfg)
	began := time.Now()
	eventually(t, "pings on both sides", func() bool {
		for _, n := range []*node{a, b} {
			for _, p := range n.Peers() {
				if p.Heard.Sub(began) < 100*time.Millisecond {
					return false
				}
			}
		}
		return true
	})
	a.healthy()
	b.healthy()
}

func TestTooLargeMessageIsReportedNotSent(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxMessage = 64 << 10
	a, b := pair(t, cfg, cfg)
	a.Send([]*raftpb.Message{
		message(raftpb.MsgApp, 1, 2, 1, make([]byte, 70<<10)),
		message(raftpb.MsgApp, 1, 2, 2, make([]byte, 60<<10)),
	})
	b.until("the message that fits", func() bool { return len(b.got) == 1 && b.got[0].GetIndex() == 2 })
	a.until("a report", func() bool { return len(a.errs) > 0 })
	if _, errs := a.seen(); !errors.Is(errs[0], ErrTooLarge) {
		t.Errorf("report %v, want ErrTooLarge", errs[0])
	}
}

func TestAcknowledgementsAreMerged(t *testing.T) {
	q := newQueue(100, 1<<20)
	q.start()
	ack := func(index uint64) *raftpb.Message { return message(raftpb.MsgAppResp, 2, 1, index) }
	rejected := ack(9)
	rejected.Reject = proto.Bool(true)
	for _, m := range []*raftpb.Message{ack(1), ack(5), ack(5), rejected, ack(7), ack(3), message(raftpb.MsgProp, 2, 1, 0), ack(8)} {
		if err := q.push(m); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, m := range q.take(nil) {
		got = append(got, fmt.Sprint(m.GetType(), m.GetIndex(), m.GetReject()))
	}
	want := "MsgAppResp 5 false, MsgAppResp 9 true, MsgAppResp 7 false, MsgAppResp 3 false, MsgProp 0 false, MsgAppResp 8 false"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("left in the queue\n%s, want\n%s", s, want)
	}
}

func TestLifecycle(t *testing.T) {
	t.Run("close without run", func(t *testing.T) {
		n := newNode(t, 1, testConfig(t))
		for range 2 {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := net.Dial("tcp", n.Addr().String()); err == nil {
			t.Error("the port still listens")
		}
		if err := n.Run(t.Context(), 1, 1, 1, nil, nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Run after Close: %v", err)
		}
		n.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1)})
		n.SetPeer(3, 0, "127.0.0.1:1")
	})
	t.Run("close ends run", func(t *testing.T) {
		n := newNode(t, 1, testConfig(t)).run()
		_ = n.Close()
		if err := <-n.done; err != nil {
			t.Error(err)
		}
		n.stop = nil
		if err := n.Run(context.Background(), 1, 1, 1, nil, nil, nil); err == nil {
			t.Error("a second Run succeeded")
		}
	})
	t.Run("port taken", func(t *testing.T) {
		cfg := testConfig(t)
		cfg.ListenAddr = listen(t).Addr().String()
		if _, err := New(cfg); err == nil {
			t.Error("New on a port that is taken succeeded")
		}
	})
	t.Run("listener fails", func(t *testing.T) {
		cfg := testConfig(t)
		cfg.Listener = listen(t)
		n := newNode(t, 1, cfg)
		_ = cfg.Listener.Close()
		if err := n.Run(t.Context(), 1, 1, 1, nil, nil, nil); err == nil {
			t.Error("Run on a closed listener returned nil")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"half a TLS":        {ServerTLS: testTLS(t)},
		"negative queue":    {QueueBytes: -1},
		"negative time":     {WriteTimeout: -1},
		"negative rate":     {SnapshotRate: -1},
		"tiny messages":     {MaxMessage: 5},
		"impatient":         {PingInterval: time.Second, IdleTimeout: time.Second},
		"backwards pauses":  {BackoffMin: time.Minute},
		"address too long":  {Advertise: strings.Repeat("x", 300)},
		"unusable address":  {ListenAddr: "nowhere"},
		"unusable address2": {ListenAddr: "127.0.0.1:port"},
	} {
		if n, err := New(cfg); err == nil {
			_ = n.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// Peers come, go and change while messages fly: nothing blocks, nothing leaks.
func TestChurn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const n = 4
	nodes := make([]*node, n+1)
	for i := 1; i <= n; i++ {
		nodes[i] = newNode(t, uint64(i), testConfig(t))
	}
	for i := 1; i <= n; i++ {
		nodes[i].run()
	}
	var all sync.WaitGroup
	for i := 1; i <= n; i++ {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			me := nodes[i]
			for range 300 {
				o := nodes[1+rng.IntN(n)]
				switch rng.IntN(6) {
				case 0:
					me.SetPeer(o.id, incarnationOf(o.id), "127.0.0.1:1")
				case 1, 2:
					me.SetPeer(o.id, incarnationOf(o.id)*uint64(rng.IntN(2)), o.Addr().String())
				case 3:
					me.SendSnapshot(message(raftpb.MsgSnap, me.id, o.id, 1), 3, io.NopCloser(bytes.NewReader([]byte("abc"))), func(error) {})
				default:
					me.Send([]*raftpb.Message{
						message(raftpb.MsgApp, me.id, o.id, 1, make([]byte, rng.IntN(5000))),
						message(raftpb.MsgHeartbeat, me.id, o.id, 1),
					})
				}
			}
		})
	}
	all.Wait()
	for i := 1; i <= n; i++ {
		for j := 1; j <= n; j++ {
			nodes[i].knows(nodes[j])
		}
	}
	for i := 1; i <= n; i++ {
		for j := 1; j <= n; j++ {
			if i != j {
				nodes[i].connected(uint64(j))
			}
		}
	}
}
