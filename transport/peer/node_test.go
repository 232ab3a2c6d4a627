package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = 0xc1

// node is a Transport that runs, with what it was told.
type node struct {
	*Transport
	t    testing.TB
	id   uint64
	stop context.CancelFunc
	done chan error

	// Called from receive and install where set; set before run.
	onReceive func(from uint64, msgs []*raftpb.Message)
	onInstall func(msg *raftpb.Message, body io.Reader) error
	discard   bool // what is received is not kept

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something below changes
	got     []*raftpb.Message
	errs    []error
}

func testConfig(t testing.TB) Config {
	cfg := Config{ListenAddr: "127.0.0.1:0", BackoffMax: 100 * time.Millisecond}
	if os.Getenv("PEER_LOG") != "" {
		cfg.Logger = zaptest.NewLogger(t, zaptest.Level(zap.DebugLevel))
	}
	return cfg
}

func newNode(t testing.TB, id uint64, cfg Config) *node {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Transport: tr, t: t, id: id, changed: make(chan struct{}), done: make(chan error, 1)}
	t.Cleanup(func() { _ = tr.Close() })
	return n
}

func incarnationOf(id uint64) uint64 { return 0x1000 + id }

func (n *node) run() *node { return n.runAs(testCluster, n.id, incarnationOf(n.id)) }

func (n *node) runAs(cluster, id, incarnation uint64) *node {
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		n.done <- n.Run(ctx, cluster, id, incarnation,
			func(from uint64, msgs []*raftpb.Message) {
				if n.onReceive != nil {
					n.onReceive(from, msgs)
				}
				if !n.discard {
					n.note(func() { n.got = append(n.got, msgs...) })
				}
			},
			func(msg *raftpb.Message, body io.Reader) error {
				n.mu.Lock()
				install := n.onInstall
				n.mu.Unlock()
				if install != nil {
					return install(msg, body)
				}
				return errors.New("no snapshot was expected")
			},
			func(_ uint64, err error) { n.note(func() { n.errs = append(n.errs, err) }) })
	}()
	n.t.Cleanup(n.end)
	eventually(n.t, "Run", func() bool {
		n.Transport.mu.RLock()
		defer n.Transport.mu.RUnlock()
		return n.state == running
	})
	return n
}

func (n *node) end() {
	n.t.Helper()
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	if err := <-n.done; err != nil {
		n.t.Errorf("Run of node %d: %v", n.id, err)
	}
}

func (n *node) note(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// seen returns what was received and reported so far.
func (n *node) seen() ([]*raftpb.Message, []error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got), slices.Clone(n.errs)
}

// healthy fails the test if anything was reported.
func (n *node) healthy() {
	n.t.Helper()
	if _, errs := n.seen(); len(errs) > 0 {
		n.t.Errorf("node %d heard of trouble: %v", n.id, errs)
	}
}

// until waits for a condition over got and errs.
func (n *node) until(what string, cond func() bool) {
	n.t.Helper()
	limit := time.After(15 * time.Second)
	for {
		n.mu.Lock()
		ok, changed := cond(), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("node %d: waited in vain for %s; %d messages, errors %v", n.id, what, len(n.got), n.errs)
		}
	}
}

// reported waits for an error of type E that matches.
func reported[E error](n *node, what string, match func(E) bool) {
	n.t.Helper()
	n.until(what, func() bool {
		for _, err := range n.errs {
			var e E
			if errors.As(err, &e) && match(e) {
				return true
			}
		}
		return false
	})
}

func (n *node) knows(others ...*node) {
	for _, o := range others {
		n.SetPeer(o.id, incarnationOf(o.id), o.Addr().String())
	}
}

// connected waits until both lanes to a member are up.
func (n *node) connected(id uint64) {
	n.t.Helper()
	eventually(n.t, "connection", func() bool {
		for _, p := range n.Peers() {
			if p.Member == id && p.Control && p.Data {
				return true
			}
		}
		return false
	})
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.Now().Add(15 * time.Second)
	for !cond() {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// pair is two nodes that know each other and are connected.
func pair(t testing.TB, a, b Config) (*node, *node) {
	t.Helper()
	x, y := newNode(t, 1, a), newNode(t, 2, b)
	x.knows(y)
	y.knows(x)
	x.run()
	y.run()
	x.connected(2)
	y.connected(1)
	return x, y
}

func message(typ raftpb.MessageType, from, to, index uint64, data ...[]byte) *raftpb.Message {
	m := &raftpb.Message{
		Type: typ.Enum(), From: proto.Uint64(from), To: proto.Uint64(to),
		Term: proto.Uint64(1), Index: proto.Uint64(index),
	}
	for i, d := range data {
		m.Entries = append(m.Entries, &raftpb.Entry{Term: proto.Uint64(1), Index: proto.Uint64(index + 1 + uint64(i)), Data: d})
	}
	return m
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
