package formation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/raftstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a set of hosts with disks, processes and a network between them. Its
// clusters work as raft lets them: one that has a majority of its members up has
// a leader, and a leader adds members.
type world struct {
	t   testing.TB
	rng *rand.Rand // guarded by mu
	cfg Config     // of every process: List, Without, times

	faults  faults
	breakIt func(*Node) // done to every Node before it runs

	mu       sync.Mutex
	hosts    map[string]*host // by HTTP address
	clusters map[uint64][]raftstore.Member
	accepted raftstore.Versions // by all clusters
	next     uint64             // incarnations and members, in order
}

// faults are what the network does to a message; guarded by world.mu.
type faults struct {
	drop, duplicate, delay float64 // probabilities
	maxDelay               time.Duration
	cut                    map[string]bool // hosts that reach no one
}

type host struct {
	w       *world
	address string
	name    string
	list    []string // nil: the world's
	without []string

	disk *disk
	node *Node // of the process that runs, or nil
	stop context.CancelFunc
	done chan error
	last *Node // of the last process
}

func newWorld(t testing.TB, seed uint64, n int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), hosts: map[string]*host{},
		clusters: map[uint64][]raftstore.Member{}, next: 1,
	}
	for i := range n {
		w.cfg.List = append(w.cfg.List, fmt.Sprintf("10.0.0.%d:8010", i+1))
	}
	for i, a := range w.cfg.List {
		w.add(a, fmt.Sprintf("n%d", i+1))
	}
	return w
}

func (w *world) add(address, name string) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &host{w: w, address: address, name: name}
	h.disk = w.newDisk(h)
	w.hosts[address] = h
	return h
}

func (w *world) all() []*host {
	var out []*host
	for _, h := range w.hosts {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b *host) int { return strings.Compare(a.address, b.address) })
	return out
}

// delay draws a time below limit.
func (w *world) delay(limit time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(limit)))
}

func (w *world) members(cluster uint64) []raftstore.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.clusters[cluster])
}

func (w *world) id() uint64 {
	w.next++
	return w.next
}

// disk is a data directory. It keeps the promises of a Store.
type disk struct {
	w *world
	h *host
	// Guarded by w.mu.
	id       raftstore.Identity
	founding *raftstore.Founding
	// onFound runs before a record is durable and after.
	onFound func(durable bool) error
}

func (w *world) newDisk(h *host) *disk {
	return &disk{w: w, h: h, id: raftstore.Identity{
		Incarnation: w.id(), Name: h.name, HTTPAddr: h.address, RaftAddr: strings.Replace(h.address, ":8010", ":8110", 1),
	}}
}

func (d *disk) Identity() raftstore.Identity {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.id
}

func (d *disk) Founding() (raftstore.Founding, bool) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.founding == nil {
		return raftstore.Founding{}, false
	}
	return *d.founding, true
}

func (d *disk) Found(f raftstore.Founding) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.crash(false); err != nil {
		return err
	}
	if d.id.Cluster != 0 {
		if d.id.Cluster == f.Cluster && d.founding != nil {
			return nil
		}
		return raftstore.ErrFounded
	}
	m, ok := founder(f, d.id.Incarnation)
	if !ok {
		d.w.t.Errorf("%s accepts a record that does not name its incarnation %d: %+v", d.id.HTTPAddr, d.id.Incarnation, f)
	}
	d.id.Cluster, d.id.Member, d.founding = f.Cluster, m.Member, &f
	if d.w.clusters[f.Cluster] == nil {
		for _, m := range f.Founders {
			d.w.clusters[f.Cluster] = append(d.w.clusters[f.Cluster], raftstore.Member{
				ID: m.Member, Incarnation: m.Incarnation, Name: m.Name, RaftAddr: m.RaftAddr, HTTPAddr: m.HTTPAddr, Versions: m.Versions,
			})
		}
	}
	return d.crash(true)
}

var errPowerCut = errors.New("power cut")

// crash asks onFound what happens here. After errPowerCut no one hears of the
// process again.
func (d *disk) crash(durable bool) error {
	if d.onFound == nil {
		return nil
	}
	err := d.onFound(durable)
	if errors.Is(err, errPowerCut) && d.h.disk == d {
		d.h.node = nil
		d.h.stop()
	}
	return err
}

func (d *disk) Join(m raftstore.Membership) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.id.Cluster != 0 {
		return raftstore.ErrFounded
	}
	d.id.Cluster, d.id.Member = m.Cluster, m.Member
	return nil
}

func (d *disk) Members() []raftstore.Member {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return slices.Clone(d.w.clusters[d.id.Cluster])
}

func (d *disk) Status() raftstore.Status {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return raftstore.Status{Leader: d.w.leader(d.id.Cluster), Accepted: d.w.accepted}
}

func (d *disk) AddMember(_ context.Context, m raftstore.Member) (raftstore.Membership, error) {
	w := d.w
	w.mu.Lock()
	defer w.mu.Unlock()
	cluster := d.id.Cluster
	if err := w.accepted.Admits(m.Versions); err != nil {
		return raftstore.Membership{}, err
	}
	if w.leader(cluster) != d.id.Member {
		return raftstore.Membership{}, raftstore.ErrNotLeader
	}
	members := w.clusters[cluster]
	for i, old := range members {
		switch {
		case old.Incarnation == m.Incarnation:
			return raftstore.Membership{Cluster: cluster, Member: old.ID, Members: slices.Clone(members)}, nil
		case old.Name == m.Name && w.live(cluster, old):
			return raftstore.Membership{}, fmt.Errorf("name %q is in use by %s", m.Name, old.HTTPAddr)
		case old.Name == m.Name:
			members = slices.Delete(slices.Clone(members), i, i+1)
		}
		if old.Name == m.Name {
			break
		}
	}
	m.ID = w.id()
	members = append(slices.Clone(members), m)
	w.clusters[cluster] = members
	return raftstore.Membership{Cluster: cluster, Member: m.ID, Members: slices.Clone(members)}, nil
}

// live, leader and quorum are called with w.mu held.

// live reports whether a member's process runs on the disk that it had.
func (w *world) live(cluster uint64, m raftstore.Member) bool {
	return w.holds(cluster, m) && w.hosts[m.HTTPAddr].node != nil
}

// holds reports whether the disk with which a member has its place still exists.
func (w *world) holds(cluster uint64, m raftstore.Member) bool {
	h := w.hosts[m.HTTPAddr]
	return h != nil && h.disk.id.Incarnation == m.Incarnation && h.disk.id.Cluster == cluster
}

func (w *world) leader(cluster uint64) uint64 {
	members, up, leader := w.clusters[cluster], 0, uint64(0)
	for _, m := range members {
		if w.live(cluster, m) {
			up++
			if leader == 0 || m.ID < leader {
				leader = m.ID
			}
		}
	}
	if 2*up <= len(members) {
		return 0
	}
	return leader
}

// quorate returns the clusters of which a majority of members still has its
// disk, whether or not they run.
func (w *world) quorate() []uint64 {
	var out []uint64
	for c, members := range w.clusters {
		n := 0
		for _, m := range members {
			if w.holds(c, m) {
				n++
			}
		}
		if 2*n > len(members) {
			out = append(out, c)
		}
	}
	return out
}

// start starts a process on a host's disk.
func (h *host) start() *host {
	h.w.mu.Lock()
	cfg, disk := h.w.cfg, h.disk
	h.w.mu.Unlock()
	cfg.Store = disk
	if h.list != nil {
		cfg.List = h.list
	}
	if h.without != nil {
		cfg.Without = h.without
	}
	cfg.Client = &http.Client{Transport: &network{w: h.w, from: h.address}}
	n, err := New(cfg)
	if err != nil {
		h.w.t.Fatal(err)
	}
	if h.w.breakIt != nil {
		h.w.breakIt(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.w.mu.Lock()
	h.node, h.last, h.stop, h.done = n, n, cancel, make(chan error, 1)
	h.w.mu.Unlock()
	go func() { h.done <- n.Run(ctx) }()
	return h
}

// kill ends a process and returns what Run returned.
func (h *host) kill() error {
	h.w.mu.Lock()
	stop := h.stop
	h.node, h.stop = nil, nil
	h.w.mu.Unlock()
	if stop == nil {
		return nil
	}
	stop()
	return <-h.done
}

// crashes sets what happens when a record is accepted on the host's disk.
func (h *host) crashes(f func(durable bool) error) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.disk.onFound = f
}

// dies waits until the process has ended by itself, by a power cut say.
func (h *host) dies() {
	h.w.t.Helper()
	for h.up() {
		time.Sleep(time.Millisecond)
	}
	_ = h.kill()
}

func (h *host) up() bool {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return h.node != nil
}

// wipe ends the process and gives the host an empty disk.
func (h *host) wipe() {
	_ = h.kill()
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.disk = h.w.newDisk(h)
}

func (w *world) killAll() {
	for _, h := range w.all() {
		_ = h.kill()
	}
}

// cluster is the cluster of a host's disk.
func (h *host) cluster() uint64 { return h.disk.Identity().Cluster }

// network carries requests from one host to the others.
type network struct {
	w    *world
	from string
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
	}
	w := n.w
	w.mu.Lock()
	f := w.faults
	chance := func(p float64) bool { return w.rng.Float64() < p }
	late := func() time.Duration {
		if f.maxDelay > 0 && chance(f.delay) {
			return time.Duration(w.rng.Int64N(int64(f.maxDelay)))
		}
		return time.Millisecond + time.Duration(w.rng.Int64N(int64(5*time.Millisecond)))
	}
	there, back, again := late(), late(), late()
	lost, answerLost, twice := chance(f.drop), chance(f.drop), chance(f.duplicate)
	w.mu.Unlock()

	// What was sent arrives, or not, whether or not its sender still waits.
	answer := make(chan *http.Response, 1)
	deliver := func(delay time.Duration) {
		time.Sleep(delay)
		w.mu.Lock()
		h := w.hosts[r.URL.Host]
		var node *Node
		if h != nil && !w.faults.cut[n.from] && !w.faults.cut[r.URL.Host] {
			node = h.node
		}
		w.mu.Unlock()
		if node == nil {
			return
		}
		req := httptest.NewRequest(r.Method, r.URL.String(), bytes.NewReader(body))
		rec := httptest.NewRecorder()
		node.Handler().ServeHTTP(rec, req)
		if !answerLost {
			time.Sleep(back)
			select {
			case answer <- rec.Result():
			default:
			}
		}
	}
	if !lost {
		go deliver(there)
	}
	if twice {
		go deliver(there + again)
	}
	select {
	case res := <-answer:
		return res, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-time.After(time.Second):
		return nil, errors.New("connection timed out")
	}
}
