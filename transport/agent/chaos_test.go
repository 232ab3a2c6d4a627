package agent_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
	"github.com/ipvskit/ipvskit/transport/peer"
)

// proxy carries connections to an address that may change. Cut off, it carries
// nothing and closes nothing, as a network that is partitioned.
type proxy struct {
	l       net.Listener
	running sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	moved  *sync.Cond
	target string
	cut    bool
	closed bool
	conns  map[net.Conn]struct{}
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, conns: map[net.Conn]struct{}{}}
	p.moved = sync.NewCond(&p.mu)
	p.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.carry(c) })
		}
	})
	t.Cleanup(p.close)
	return p
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.l.Close()
	for c := range p.conns {
		c.Close()
	}
	p.moved.Broadcast()
	p.mu.Unlock()
	p.running.Wait()
}

// pass waits until something may be carried, and says whether it ever will.
func (p *proxy) pass() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cut && !p.closed {
		p.moved.Wait()
	}
	return !p.closed
}

func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	p.moved.Broadcast()
}

func (p *proxy) to(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

func (p *proxy) own(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) carry(in net.Conn) {
	defer in.Close()
	if !p.own(in) || !p.pass() {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	if !p.own(out) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			defer way[1].Close()
			buf := make([]byte, 16<<10)
			for {
				n, err := way[0].Read(buf)
				if !p.pass() || err != nil {
					return
				}
				if _, err := way[1].Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, in)
	delete(p.conns, out)
}

// world is three servers and their agents, with a proxy between any two.
type world struct {
	t      *testing.T
	dir    string
	source *identity.Source
	nodes  [3]*server
	// peers[i][j] is the way from server i to server j, agents[j] that of all
	// agents to server j.
	peers  [3][3]*proxy
	agents [3]*proxy
	refs   []*director
}

// server is one that may be killed.
type server struct {
	w      *world
	i      int
	lb     *lbstate.Store // nil while it is dead
	store  *raftstore.Store
	agents *agent.Server
	grpc   *grpc.Server
	done   chan error
	away   bool // cut off
}

func (w *world) start(i int) {
	w.t.Helper()
	fail := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	s := w.nodes[i]
	transport, err := peer.New(peer.Config{
		ListenAddr: "127.0.0.1:0", Advertise: fmt.Sprintf("n%d:1", i),
		ServerTLS: w.source.ServerTLS(identity.RoleServer), ClientTLS: w.source.ClientTLS(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			j, err := strconv.Atoi(addr[1:2])
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, "tcp", w.peers[i][j].l.Addr().String())
		},
	})
	fail(err)
	for j := range 3 {
		w.peers[j][i].to(transport.Addr().String())
	}
	state := lbstate.New(lbstate.Config{})
	s.store, err = raftstore.Open(raftstore.Config{
		Dir: filepath.Join(w.dir, fmt.Sprint("server", i)), Name: fmt.Sprint("n", i), RaftAddr: fmt.Sprintf("n%d:1", i),
		StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state}, Transport: transport,
	})
	fail(err)
	store, lb := s.store, lbstate.NewStore(state, s.store.Machine(lbstate.Bucket))
	s.lb = lb
	s.agents, err = agent.NewServer(agent.ServerConfig{
		Store: lb, ServerName: fmt.Sprint("n", i), Cluster: func() uint64 { return store.Identity().Cluster }, Authenticator: w.source,
		Ready: func(ctx context.Context) error {
			_, err := lb.Revision(ctx, lbstate.ReadOptions{})
			return err
		},
		HeartbeatInterval: 100 * time.Millisecond, SilenceTimeout: time.Second, ReadyTimeout: time.Second, SendTimeout: time.Second,
	})
	fail(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	w.agents[i].to(l.Addr().String())
	s.grpc = grpc.NewServer(append(agent.ServerOptions(), grpc.Creds(agent.ServerCredentials(w.source.ServerTLS(identity.RoleAgent), nil)))...)
	s.agents.Register(s.grpc)
	g := s.grpc
	go func() { _ = g.Serve(l) }()
	s.done = make(chan error, 1)
}

func (w *world) run(i int) {
	s := w.nodes[i]
	store, done := s.store, s.done
	go func() { done <- store.Run(context.Background()) }()
}

func (w *world) kill(i int) {
	w.t.Helper()
	s := w.nodes[i]
	s.grpc.Stop()
	s.agents.Close()
	if err := errors.Join(s.store.Close(), <-s.done); err != nil {
		w.t.Errorf("server %d: %v", i, err)
	}
	s.lb = nil
}

func (w *world) cut(i int, cut bool) {
	for j := range 3 {
		w.peers[i][j].set(cut)
		w.peers[j][i].set(cut)
	}
	w.agents[i].set(cut)
	w.nodes[i].away = cut
}

// director is an agent on a kernel in memory. It remembers what it was given.
type director struct {
	name   string
	dir    string
	who    *identity.Source
	kernel *fakekernel.Kernel
	stop   func()

	*reconcile.Reconciler // the present one

	mu    sync.Mutex // guards views
	views []given
}

type given struct{ revision, digest uint64 }

func (d *director) Apply(ctx context.Context, v lbstate.View) (lbstate.Applied, error) {
	d.mu.Lock()
	d.views = append(d.views, given{v.Revision, lbstate.Digest(v)})
	d.mu.Unlock()
	return d.Reconciler.Apply(ctx, v)
}

func (d *director) last() given {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.views) == 0 {
		return given{}
	}
	return d.views[len(d.views)-1]
}

// start begins the agent anew, on the kernel and the journals that it has.
func (w *world) startDirector(d *director) {
	w.t.Helper()
	var err error
	d.Reconciler, err = reconcile.New(reconcile.Config{Kernel: d.kernel, Journal: reconcile.FileJournal(filepath.Join(d.dir, "scope"))})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := agent.NewClient(agent.ClientConfig{
		Servers: []string{w.agents[0].l.Addr().String(), w.agents[1].l.Addr().String(), w.agents[2].l.Addr().String()},
		Name:    d.name, Dir: d.dir, Applier: d, Credentials: credentials.NewTLS(d.who.ClientTLS()),
		ConnectTimeout: time.Second, MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, RebalanceInterval: time.Second,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	reconciler := d.Reconciler
	running.Go(func() {
		if err := reconciler.Run(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("%s: %v", d.name, err)
		}
	})
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			w.t.Errorf("%s: %v", d.name, err)
		}
	})
	d.stop = func() { cancel(); running.Wait() }
}

func newWorld(t *testing.T, agents int) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	b, err := identity.NewBundle("chaos", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keep := func(e interface{ Encode() ([]byte, error) }, name string) string {
		data, err := e.Encode()
		if err == nil {
			err = identity.Create(filepath.Join(w.dir, name), data)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(w.dir, name)
	}
	if w.source, err = identity.Open(identity.Config{KeyFile: keep(b, "key"), Role: identity.RoleServer, Name: "server"}); err != nil {
		t.Fatal(err)
	}
	founding := raftstore.Founding{Cluster: 7}
	for i := range 3 {
		w.nodes[i] = &server{w: w, i: i}
		w.agents[i] = newProxy(t)
		for j := range 3 {
			w.peers[i][j] = newProxy(t)
		}
	}
	for i, s := range w.nodes {
		w.start(i)
		founding.Founders = append(founding.Founders, raftstore.Founder{
			Member: uint64(i + 1), Incarnation: s.store.Identity().Incarnation, Name: fmt.Sprint("n", i), RaftAddr: fmt.Sprintf("n%d:1", i),
		})
	}
	for i, s := range w.nodes {
		if err := s.store.Found(founding); err != nil {
			t.Fatal(err)
		}
		w.run(i)
	}
	t.Cleanup(func() {
		for i, s := range w.nodes {
			if s.lb != nil {
				w.kill(i)
			}
		}
	})
	for i := range agents {
		d := &director{name: fmt.Sprint("agent-", i), dir: filepath.Join(w.dir, fmt.Sprint("agent", i)), kernel: fakekernel.New()}
		c, err := b.Issue(identity.ID{Role: identity.RoleAgent, Name: d.name}, nil, 24*time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if d.who, err = identity.Open(identity.Config{KeyFile: keep(c, d.name+".key"), Role: identity.RoleAgent}); err != nil {
			t.Fatal(err)
		}
		w.refs = append(w.refs, d)
		w.startDirector(d)
	}
	t.Cleanup(func() {
		for _, d := range w.refs {
			d.stop()
		}
	})
	return w
}

// writer makes one change after the other, and so knows each state that the
// store ever had.
type writer struct {
	w        *world
	rnd      *rand.Rand
	revision uint64
	versions map[string]uint64 // of the present state
	states   map[uint64]uint64 // digests, by revision
	unknown  int
}

func digestOf(revision uint64, versions map[string]uint64) uint64 {
	v := lbstate.View{Cluster: 7, Revision: revision}
	for name, version := range versions {
		v.Services = append(v.Services, lbstate.DesiredService{Name: name, Version: version})
	}
	return lbstate.Digest(v)
}

// change tries one change until it is known to be made. Its precondition sees to
// it that an attempt whose outcome is unknown, and which is made late, changes
// nothing after the one that follows it.
func (wr *writer) change() {
	name := fmt.Sprint("service-", wr.rnd.IntN(12))
	before, exists := wr.versions[name]
	remove := exists && wr.rnd.IntN(4) == 0
	o := lbstate.WriteOptions{IfRevision: &before}
	weight := wr.rnd.IntN(60000)
	next := wr.revision + 1
	for {
		s := wr.w.nodes[wr.rnd.IntN(3)]
		if s.lb == nil || s.away && wr.rnd.IntN(8) > 0 { // mostly one that can be answered
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		r, err := wr.try(ctx, s.lb, name, remove, weight, o)
		cancel()
		if err == nil && r.Revision != next {
			wr.w.t.Fatalf("a change became revision %d, %d was expected", r.Revision, next)
		}
		if err == nil {
			break
		}
		if !lbstate.NotApplied(err) {
			wr.unknown++
		}
		if wr.made(next) {
			break
		}
	}
	wr.revision = next
	if remove {
		delete(wr.versions, name)
	} else {
		wr.versions[name] = next
	}
	wr.states[next] = digestOf(next, wr.versions)
}

// made asks the servers until one knows for sure whether there is a revision.
func (wr *writer) made(revision uint64) bool {
	for {
		s := wr.w.nodes[wr.rnd.IntN(3)]
		if s.lb == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		at, err := s.lb.Revision(ctx, lbstate.ReadOptions{})
		cancel()
		if err == nil {
			return at >= revision
		}
	}
}

func (wr *writer) try(ctx context.Context, lb *lbstate.Store, name string, remove bool, weight int, o lbstate.WriteOptions) (lbstate.WriteResult, error) {
	if remove {
		return lb.DeleteService(ctx, name, o)
	}
	port, err := strconv.Atoi(name[len("service-"):])
	if err != nil {
		return lbstate.WriteResult{}, err
	}
	return lb.PutService(ctx, lbstate.Service{
		Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Port: 1000 + port,
		Backends: []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1"), Weight: &weight}, {Address: netip.MustParseAddr("10.1.0.2")}},
	}, o)
}

func (wr *writer) changes(n int) {
	for range n {
		wr.change()
	}
}

// INV-10, INV-13, INV-14: servers die and are cut off, agents restart; every
// agent ends equal to the store, none ever held a state that the store never
// had, and none went back. CHAOS is how long it lasts, as in 10m, CHAOS_SEED what
// it begins with.
func TestChaos(t *testing.T) {
	agents, length := 8, 5*time.Second
	if text := os.Getenv("CHAOS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		agents = 50
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, agents)
	wr := &writer{w: w, rnd: rnd, versions: map[string]uint64{}, states: map[uint64]uint64{0: digestOf(0, nil)}}
	kills, cuts, restarts := 0, 0, 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		i := rnd.IntN(3)
		switch rnd.IntN(5) {
		case 0:
			kills++
			w.kill(i)
			wr.changes(rnd.IntN(5))
			w.start(i)
			w.run(i)
		case 1:
			cuts++
			w.cut(i, true)
			wr.changes(rnd.IntN(5))
			w.cut(i, false)
		case 2:
			restarts++
			d := w.refs[rnd.IntN(len(w.refs))]
			d.stop()
			wr.changes(rnd.IntN(3))
			w.startDirector(d)
		default:
			wr.changes(1 + rnd.IntN(10))
		}
	}
	wr.changes(1)
	want := given{wr.revision, digestOf(wr.revision, wr.versions)}
	for _, d := range w.refs {
		wait(t, d.name+" has the last state", func() bool { return d.last() == want })
	}
	t.Logf("%d changes, %d of unknown outcome, %d kills, %d partitions, %d restarts of agents", wr.revision, wr.unknown, kills, cuts, restarts)
	for _, d := range w.refs {
		var before uint64
		for _, v := range d.views {
			if v.revision < before {
				t.Errorf("%s went back from revision %d to %d", d.name, before, v.revision)
			}
			before = v.revision
			if digest, ok := wr.states[v.revision]; !ok || digest != v.digest {
				t.Errorf("%s was given a state at revision %d that the store never had", d.name, v.revision)
			}
		}
	}
	first := ""
	for _, d := range w.refs {
		wait(t, d.name+"'s kernel is that of the others", func() bool {
			dump := d.kernel.Dump()
			if first == "" && dump != "" {
				first = dump
			}
			return dump == first
		})
	}
}
