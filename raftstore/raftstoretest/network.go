package raftstoretest

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Faults is what a Network does to messages, each independently. Zero is a
// network without faults.
type Faults struct {
	Drop      float64       // probability that a message is lost
	Duplicate float64       // probability that it comes twice
	Delay     time.Duration // each message is late by up to this; so they overtake each other
}

// Network connects the nodes of one Cluster in memory.
type Network struct {
	mu     sync.Mutex // guards the fields below
	rng    *rand.Rand
	faults Faults
	ends   map[uint64]*end // by member
	cut    map[string]int  // side of a partition by node name
	names  map[uint64]string
}

func newNetwork(seed uint64) *Network {
	return &Network{rng: rand.New(rand.NewPCG(seed, 0x6e)), ends: map[uint64]*end{}, cut: map[string]int{}, names: map[uint64]string{}}
}

// SetFaults says what happens to messages from now on.
func (n *Network) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// Partition cuts the named nodes off from all others; they reach each other.
// Partitions add up until Heal.
func (n *Network) Partition(nodes ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	side := 1
	for _, s := range n.cut {
		side = max(side, s+1)
	}
	for _, name := range nodes {
		n.cut[name] = side
	}
}

// Heal ends all partitions.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// connected says whether two members reach each other; mu is held.
func (n *Network) connected(a, b uint64) bool { return n.cut[n.names[a]] == n.cut[n.names[b]] }

// end is one node's end of the network: a raftstore.Transport.
type end struct {
	n    *Network
	name string
	wake chan struct{}

	mu       sync.Mutex // guards the fields below
	coming   deliveries
	self     uint64
	snapshot func(*raftpb.Message, io.Reader) error
	lost     func(uint64, error)
	running  context.Context // of Run; nil outside
	streams  sync.WaitGroup  // snapshots that this end sends
}

type delivery struct {
	due time.Time
	msg *raftpb.Message
}

type deliveries []delivery

func (d deliveries) Len() int           { return len(d) }
func (d deliveries) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d deliveries) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deliveries) Push(x any)        { *d = append(*d, x.(delivery)) }
func (d *deliveries) Pop() any {
	old := *d
	last := old[len(old)-1]
	*d = old[:len(old)-1]
	return last
}

// maxComing bounds what is on its way to one node; the rest is lost.
const maxComing = 1 << 14

// resetError is how a node hears that another has ended.
type resetError struct{ peer uint64 }

func (e resetError) Error() string {
	return fmt.Sprintf("member %x has closed its connections", e.peer)
}
func (resetError) Reset() bool { return true }

// Run delivers messages until ctx ends.
func (e *end) Run(ctx context.Context, _, self, _ uint64,
	receive func(uint64, []*raftpb.Message), snapshot func(*raftpb.Message, io.Reader) error, unreachable func(uint64, error),
) error {
	e.mu.Lock()
	e.self, e.snapshot, e.lost, e.running = self, snapshot, unreachable, ctx
	e.mu.Unlock()
	e.n.mu.Lock()
	e.n.ends[self], e.n.names[self] = e, e.name
	e.n.mu.Unlock()
	defer e.leave()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		msgs, next := e.due(time.Now())
		for _, m := range msgs {
			receive(m.GetFrom(), []*raftpb.Message{m})
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-e.wake:
		}
	}
}

// leave takes the end off the network; the others notice as of a process that
// has died.
func (e *end) leave() {
	e.mu.Lock()
	self := e.self
	e.running = nil
	e.coming = nil
	e.mu.Unlock()
	e.n.mu.Lock()
	if e.n.ends[self] == e {
		delete(e.n.ends, self)
	}
	var others []*end
	for id, other := range e.n.ends {
		if e.n.connected(self, id) {
			others = append(others, other)
		}
	}
	e.n.mu.Unlock()
	for _, other := range others {
		other.mu.Lock()
		lost, up := other.lost, other.running != nil
		other.mu.Unlock()
		if up {
			lost(self, resetError{self})
		}
	}
	e.streams.Wait()
}

// due takes what is to be delivered by now, and says when more will be.
func (e *end) due(now time.Time) (msgs []*raftpb.Message, next time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.coming) > 0 && !e.coming[0].due.After(now) {
		msgs = append(msgs, heap.Pop(&e.coming).(delivery).msg)
	}
	if len(e.coming) == 0 {
		return msgs, time.Hour
	}
	return msgs, e.coming[0].due.Sub(now)
}

// Send hands messages to the network.
func (e *end) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		e.n.send(m)
	}
}

func (n *Network) send(m *raftpb.Message) {
	n.mu.Lock()
	other := n.ends[m.GetTo()]
	var delays []time.Duration
	if other != nil && n.connected(m.GetFrom(), m.GetTo()) && n.rng.Float64() >= n.faults.Drop {
		copies := 1
		if n.rng.Float64() < n.faults.Duplicate {
			copies = 2
		}
		for range copies {
			d := time.Duration(0)
			if n.faults.Delay > 0 {
				d = time.Duration(n.rng.Int64N(int64(n.faults.Delay)))
			}
			delays = append(delays, d)
		}
	}
	n.mu.Unlock()
	for _, d := range delays {
		other.take(proto.CloneOf(m), d)
	}
}

func (e *end) take(m *raftpb.Message, delay time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running == nil || len(e.coming) >= maxComing {
		return
	}
	heap.Push(&e.coming, delivery{time.Now().Add(delay), m})
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// SendSnapshot hands a snapshot to its member, in a goroutine that Run joins.
func (e *end) SendSnapshot(m *raftpb.Message, _ int64, body io.ReadCloser, done func(error)) {
	e.n.mu.Lock()
	other := e.n.ends[m.GetTo()]
	if other != nil && !e.n.connected(m.GetFrom(), m.GetTo()) {
		other = nil
	}
	e.n.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if other == nil || e.running == nil {
		body.Close()
		done(errors.New("not connected"))
		return
	}
	e.streams.Go(func() {
		defer body.Close()
		data, err := io.ReadAll(body)
		if err == nil {
			err = other.install(proto.CloneOf(m), data)
		}
		done(err)
	})
}

func (e *end) install(m *raftpb.Message, data []byte) error {
	e.mu.Lock()
	install, up := e.snapshot, e.running != nil
	e.mu.Unlock()
	if !up {
		return errors.New("not connected")
	}
	return install(m, bytes.NewReader(data))
}

// SetPeer and RemovePeer have nothing to do: the network knows who is there, and
// raft drops what comes from others.
func (*end) SetPeer(uint64, uint64, string) {}

// RemovePeer does nothing.
func (*end) RemovePeer(uint64) {}
