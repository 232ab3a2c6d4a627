package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/raftstore"
)

// counter counts commands, and keeps each under its text.
type counter struct{}

var bucket = []byte("counter")

func (counter) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, c := range cmds {
		n, _ := b.NextSequence()
		if err := b.Put(c, fmt.Append(nil, n)); err != nil {
			return nil, err
		}
		results[i] = string(c)
	}
	return results, nil
}
func (counter) Committed(uint64)         {}
func (counter) Restored(*bbolt.Tx) error { return nil }

// wire connects the nodes of one test in memory.
type wire struct {
	mu      sync.Mutex // guards the fields below
	at      map[uint64]*port
	cut     map[uint64]bool
	held    func()        // nil, or called when a snapshot is to be sent, which waits
	release chan struct{} // until this is closed
}

type port struct {
	w        *wire
	self     uint64
	queue    chan []*raftpb.Message
	receive  func(uint64, []*raftpb.Message)
	snapshot func(*raftpb.Message, io.Reader) error
}

func (p *port) Run(ctx context.Context, _, self, _ uint64, receive func(uint64, []*raftpb.Message), snapshot func(*raftpb.Message, io.Reader) error, _ func(uint64, error)) error {
	p.receive, p.snapshot = receive, snapshot
	p.w.mu.Lock()
	p.self = self
	p.w.at[self] = p
	p.w.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			p.w.mu.Lock()
			if p.w.at[self] == p {
				delete(p.w.at, self)
			}
			p.w.mu.Unlock()
			return nil
		case msgs := <-p.queue:
			receive(msgs[0].GetFrom(), msgs)
		}
	}
}

func (p *port) to(m *raftpb.Message) *port {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.w.cut[p.self] || p.w.cut[m.GetTo()] {
		return nil
	}
	return p.w.at[m.GetTo()]
}

func (p *port) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		if other := p.to(m); other != nil {
			select {
			case other.queue <- []*raftpb.Message{proto.CloneOf(m)}:
			default:
			}
		}
	}
}

func (p *port) SendSnapshot(m *raftpb.Message, _ int64, body io.ReadCloser, done func(error)) {
	defer body.Close()
	p.w.mu.Lock()
	held, release := p.w.held, p.w.release
	p.w.mu.Unlock()
	if held != nil {
		held()
		<-release
	}
	other := p.to(m)
	if other == nil {
		done(errors.New("cut off"))
		return
	}
	data, err := io.ReadAll(body)
	if err == nil {
		err = other.snapshot(proto.CloneOf(m), bytes.NewReader(data))
	}
	done(err)
}
func (p *port) SetPeer(uint64, uint64, string) {}
func (p *port) RemovePeer(uint64)              {}

type node struct {
	*raftstore.Store
	stop func()
}

func start(t *testing.T, w *wire, dir, name string) node {
	t.Helper()
	return startWith(t, w, dir, name, counter{})
}

func config(w *wire, dir, name string, machine raftstore.StateMachine) raftstore.Config {
	cfg := raftstore.Config{
		Dir: dir, Name: name, RaftAddr: name + ":1", StateMachines: map[string]raftstore.StateMachine{"counter": machine},
		TickInterval: 10 * time.Millisecond, SnapshotEntries: 50, TrailingEntries: 5,
	}
	if w != nil {
		cfg.Transport = &port{w: w, queue: make(chan []*raftpb.Message, 4096)}
	}
	return cfg
}

func startWith(t *testing.T, w *wire, dir, name string, machine raftstore.StateMachine) node {
	t.Helper()
	return run(t, config(w, dir, name, machine))
}

func run(t *testing.T, cfg raftstore.Config) node {
	t.Helper()
	s, err := raftstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	n := node{s, sync.OnceFunc(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil && !errors.Is(err, raftstore.ErrRemoved) && !errors.Is(err, raftstore.ErrOlder) {
			t.Errorf("%s: Run: %v", cfg.Name, err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func write(t *testing.T, n node, text string) {
	t.Helper()
	var err error
	until(t, "write "+text, func() bool {
		var got any
		got, _, err = n.Machine("counter").Propose(t.Context(), []byte(text))
		return err == nil && got == text
	})
}

func has(n node, text string) bool {
	found := false
	err := n.ReadStale(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		found = b != nil && b.Get([]byte(text)) != nil
		return nil
	})
	return err == nil && found
}

func TestOneNodeRestarts(t *testing.T) {
	dir := t.TempDir()
	n := start(t, nil, dir, "a")
	for i := range 200 { // beyond a cut of the log
		write(t, n, fmt.Sprint("w", i))
	}
	n.stop()
	n = start(t, nil, dir, "a")
	write(t, n, "after")
	if err := n.Read(t.Context(), func(tx *bbolt.Tx) error {
		if got := tx.Bucket(bucket).Sequence(); got != 201 {
			return fmt.Errorf("%d commands applied, want 201: each once", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// INV-1, INV-2, INV-3, INV-5
func TestThreeNodes(t *testing.T) {
	w := &wire{at: map[uint64]*port{}, cut: map[uint64]bool{}}
	dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir(), "c": t.TempDir()}
	nodes := map[string]node{}
	founding := raftstore.Founding{Cluster: 42}
	for i, name := range []string{"a", "b", "c"} {
		nodes[name] = start(t, w, dirs[name], name)
		founding.Founders = append(founding.Founders, raftstore.Founder{Member: uint64(i + 1), Incarnation: nodes[name].Identity().Incarnation, Name: name, RaftAddr: name + ":1"})
	}
	for _, n := range nodes {
		if err := n.Found(founding); err != nil {
			t.Fatal(err)
		}
	}
	other := founding
	other.Cluster = 43
	if err := nodes["a"].Found(other); !errors.Is(err, raftstore.ErrFounded) {
		t.Errorf("a second founding record: %v", err)
	}
	leader := func() string {
		name := ""
		until(t, "a leader", func() bool {
			for n, s := range nodes {
				if leading, _, _ := s.Leadership(); leading {
					name = n
					return true
				}
			}
			return false
		})
		return name
	}
	leader()
	for _, n := range nodes { // each gets its own results, the leader or not
		write(t, n, "by "+n.Identity().Name)
		for _, m := range nodes {
			if err := m.Read(t.Context(), func(tx *bbolt.Tx) error {
				if tx.Bucket(bucket).Get([]byte("by "+n.Identity().Name)) == nil {
					return errors.New("a linearizable read lacks an acknowledged write")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	}
	// One is away while the log is cut, and catches up by a snapshot.
	down := leader()
	nodes[down].stop()
	delete(nodes, down)
	up := leader()
	for i := range 120 {
		write(t, nodes[up], fmt.Sprint("w", i))
	}
	nodes[down] = start(t, w, dirs[down], down)
	until(t, "the one that was away has caught up", func() bool { return has(nodes[down], "w119") })
	write(t, nodes[down], "again")

	// A new node joins as a learner and is promoted; then it is removed.
	d := start(t, w, t.TempDir(), "d")
	m, err := nodes[leader()].AddMember(t.Context(), raftstore.Member{Name: "d", RaftAddr: "d:1", Incarnation: d.Identity().Incarnation})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Join(m); err != nil {
		t.Fatal(err)
	}
	until(t, "the learner is promoted", func() bool { return d.Status().Role == "follower" && has(d, "again") })
	if _, err := nodes[leader()].AddMember(t.Context(), raftstore.Member{Name: "d", RaftAddr: "d:1", Incarnation: 99}); !errors.Is(err, raftstore.ErrNameInUse) {
		t.Errorf("a name in use: %v", err)
	}
	if err := nodes[leader()].RemoveMember(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	until(t, "the member is gone", func() bool { return len(nodes[leader()].Members()) == 3 })
}

func TestNoClusterIsNotApplied(t *testing.T) {
	w := &wire{at: map[uint64]*port{}, cut: map[uint64]bool{}}
	n := start(t, w, t.TempDir(), "a")
	_, _, err := n.Machine("counter").Propose(t.Context(), []byte("x"))
	var known interface{ NotApplied() bool }
	if !errors.As(err, &known) || !known.NotApplied() || !errors.Is(err, raftstore.ErrNoLeader) {
		t.Errorf("a proposal without a cluster: %v", err)
	}
}
