package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
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

// places is how many servers there can be at a time. Three of them form the
// cluster; a fourth is there while one takes the place of another.
const places = 4

// world is the servers and their agents, with a proxy between any two.
type world struct {
	t      *testing.T
	dir    string
	source *identity.Source
	// peers[i][j] is the way from the server in place i to that in place j,
	// agents[j] that of all agents to place j.
	peers  [places][places]*proxy
	agents [places]*proxy
	refs   []*director
	made   int // directories

	mu      sync.Mutex      // guards the fields below
	nodes   [places]*server // nil: there is none, or it is dead
	dirs    [places]string  // of the server's data; empty: the place is free
	away    [places]bool    // cut off
	doing   string          // what the test does
	since   time.Time       // it does that
	refused error           // the last change of the membership that failed
}

// server is one that may be killed.
type server struct {
	place  int
	store  *raftstore.Store
	lb     *lbstate.Store
	agents *agent.Server
	grpc   *grpc.Server
	done   chan error
}

func nameOf(place int) string { return fmt.Sprint("n", place) }
func addrOf(place int) string { return nameOf(place) + ":1" }

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// node is the server in a place, or nil.
func (w *world) node(place int) *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[place]
}

// taken are the places with a server, and free is one without.
func (w *world) taken() (taken []int, free int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, dir := range w.dirs {
		if dir == "" {
			free = i
		} else {
			taken = append(taken, i)
		}
	}
	return taken, free
}

// open starts a server in a place, on the data that it has there, or none.
func (w *world) open(place int) *server {
	w.t.Helper()
	w.mu.Lock()
	if w.dirs[place] == "" {
		w.made++
		w.dirs[place] = filepath.Join(w.dir, fmt.Sprint("server", w.made))
	}
	dir := w.dirs[place]
	w.mu.Unlock()
	transport, err := peer.New(peer.Config{
		ListenAddr: "127.0.0.1:0", Advertise: addrOf(place),
		ServerTLS: w.source.ServerTLS(identity.RoleServer), ClientTLS: w.source.ClientTLS(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			j, err := strconv.Atoi(addr[1:2])
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, "tcp", w.peers[place][j].l.Addr().String())
		},
	})
	w.ok(err)
	for j := range places {
		w.peers[j][place].to(transport.Addr().String())
	}
	state := lbstate.New(lbstate.Config{})
	store, err := raftstore.Open(raftstore.Config{
		Dir: dir, Name: nameOf(place), RaftAddr: addrOf(place),
		StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state}, Transport: transport,
	})
	w.ok(err)
	lb := lbstate.NewStore(state, store.Machine(lbstate.Bucket))
	agents, err := agent.NewServer(agent.ServerConfig{
		Store: lb, ServerName: nameOf(place), Cluster: func() uint64 { return store.Identity().Cluster }, Authenticator: w.source,
		Ready: func(ctx context.Context) error {
			_, err := lb.Revision(ctx, lbstate.ReadOptions{})
			return err
		},
		HeartbeatInterval: 100 * time.Millisecond, SilenceTimeout: time.Second, ReadyTimeout: time.Second, SendTimeout: time.Second,
	})
	w.ok(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.ok(err)
	w.agents[place].to(l.Addr().String())
	g := grpc.NewServer(append(agent.ServerOptions(), grpc.Creds(agent.ServerCredentials(w.source.ServerTLS(identity.RoleAgent), nil)))...)
	agents.Register(g)
	go func() { _ = g.Serve(l) }()
	return &server{place: place, store: store, lb: lb, agents: agents, grpc: g, done: make(chan error, 1)}
}

func (w *world) run(s *server) {
	go func() { s.done <- s.store.Run(context.Background()) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[s.place] = s
}

func (w *world) start(place int) { w.t.Helper(); w.run(w.open(place)) }

func (w *world) kill(place int) {
	w.t.Helper()
	s := w.node(place)
	s.grpc.Stop()
	s.agents.Close()
	if err := errors.Join(s.store.Close(), <-s.done); err != nil && !errors.Is(err, raftstore.ErrRemoved) {
		w.t.Errorf("server %d: %v", place, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[place] = nil
}

// wipe ends a server whose data is lost.
func (w *world) wipe(place int) {
	w.t.Helper()
	w.kill(place)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ok(os.RemoveAll(w.dirs[place]))
	w.dirs[place] = ""
}

func (w *world) cut(place int, cut bool) {
	for j := range places {
		w.peers[place][j].set(cut)
		w.peers[j][place].set(cut)
	}
	w.agents[place].set(cut)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away[place] = cut
}

// leader is the server that leads, once there is one.
func (w *world) leader() *server {
	for {
		taken, _ := w.taken()
		for _, place := range taken {
			if s := w.node(place); s != nil {
				if leading, _, _ := s.store.Leadership(); leading {
					return s
				}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// change has the leader make a change of the membership, whichever that is by
// then. What an attempt of unknown outcome has done, does must see.
func (w *world) change(does func(context.Context, *server) error) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := does(ctx, w.leader())
		cancel()
		if err == nil {
			return
		}
		w.mu.Lock()
		w.refused = err
		w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func has(s *server, ok func(raftstore.Member) bool) bool {
	return slices.ContainsFunc(s.store.Members(), ok)
}

// join takes an opened server in, in the place of the member of that name, if
// one is given, and waits until it votes.
func (w *world) join(s *server, instead string) {
	id := s.store.Identity()
	me := raftstore.Member{Name: nameOf(s.place), RaftAddr: addrOf(s.place), Incarnation: id.Incarnation, Versions: id.Versions}
	var m raftstore.Membership
	w.change(func(ctx context.Context, leader *server) (err error) {
		if instead == "" || has(leader, func(m raftstore.Member) bool { return m.Incarnation == me.Incarnation }) {
			m, err = leader.store.AddMember(ctx, me)
			return err
		}
		m, err = leader.store.ReplaceMember(ctx, instead, me)
		return err
	})
	w.ok(s.store.Join(m))
	w.run(s)
	for s.store.Status().Role == "learner" || s.store.Status().Role == "none" {
		time.Sleep(10 * time.Millisecond)
	}
}

// remove takes a server out, which hands over first if it leads.
func (w *world) remove(place int) {
	w.change(func(ctx context.Context, leader *server) error {
		switch {
		case !has(leader, func(m raftstore.Member) bool { return m.Name == nameOf(place) }):
			return nil
		case leader.place == place:
			taken, _ := w.taken()
			return errors.Join(leader.store.TransferLeadership(ctx, nameOf(taken[(slices.Index(taken, place)+1)%len(taken)])), errors.New("again with the next"))
		}
		return leader.store.RemoveMember(ctx, nameOf(place))
	})
}

// now says what the test does from now on.
func (w *world) now(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doing, w.since = fmt.Sprintf(format, args...), time.Now()
}

// stuck is how long the test may do one thing. On an idle machine all take less
// than five seconds.
const stuck = 2 * time.Minute

// watch ends the test when it is stuck, and tells what everybody does.
func (w *world) watch() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
			}
			w.mu.Lock()
			doing, since := w.doing, w.since
			w.mu.Unlock()
			if time.Since(since) > stuck {
				w.tell(os.Stderr)
				panic(fmt.Sprintf("stuck for %v: %s", stuck, doing))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// equal says whether all kernels hold the same, which is not nothing.
func (w *world) equal() bool {
	first := w.refs[0].kernel.Dump()
	return first != "" && !slices.ContainsFunc(w.refs, func(d *director) bool { return d.kernel.Dump() != first })
}

// tell writes the state of all.
func (w *world) tell(to io.Writer) {
	_ = pprof.Lookup("goroutine").WriteTo(to, 1)
	w.mu.Lock()
	nodes, away := w.nodes, w.away
	fmt.Fprintf(to, "%s; the last change of members that failed: %v\n", w.doing, w.refused)
	w.mu.Unlock()
	for i, s := range nodes {
		fmt.Fprintf(to, "place %d: cut off %v", i, away[i])
		if s != nil {
			fmt.Fprintf(to, ", %+v, err %v, members %+v", s.store.Status(), s.store.Err(), s.store.Members())
			for _, a := range s.agents.Agents() {
				fmt.Fprintf(to, "\n  %+v", a)
			}
		}
		fmt.Fprintln(to)
	}
	for _, d := range w.refs {
		d.mu.Lock()
		c := d.client
		d.mu.Unlock()
		fmt.Fprintf(to, "%s: last %+v, %+v\n", d.name, d.last(), c.Status())
	}
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
	for i := range places {
		w.agents[i] = newProxy(t)
		for j := range places {
			w.peers[i][j] = newProxy(t)
		}
	}
	var founders []*server
	for i := range 3 {
		s := w.open(i)
		founders = append(founders, s)
		founding.Founders = append(founding.Founders, raftstore.Founder{
			Member: uint64(i + 1), Incarnation: s.store.Identity().Incarnation, Name: nameOf(i), RaftAddr: addrOf(i),
		})
	}
	for _, s := range founders {
		w.ok(s.store.Found(founding))
		w.run(s)
	}
	t.Cleanup(func() {
		for i := range places {
			if w.node(i) != nil {
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

// director is an agent on a kernel in memory. It remembers what it was given.
type director struct {
	name   string
	dir    string
	who    *identity.Source
	kernel *fakekernel.Kernel
	stop   func()

	*reconcile.Reconciler // the present one

	mu     sync.Mutex // guards the fields below
	client *agent.Client
	views  []given
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
	var servers []string
	for _, p := range w.agents {
		servers = append(servers, p.l.Addr().String())
	}
	d.Reconciler, err = reconcile.New(reconcile.Config{Kernel: d.kernel, Journal: reconcile.FileJournal(filepath.Join(d.dir, "scope"))})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := agent.NewClient(agent.ClientConfig{
		Servers: servers, Name: d.name, Dir: d.dir, Applier: d, Credentials: credentials.NewTLS(d.who.ClientTLS()),
		ConnectTimeout: time.Second, MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, RebalanceInterval: time.Second,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	d.mu.Lock()
	d.client = c
	d.mu.Unlock()
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
