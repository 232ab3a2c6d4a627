package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Store is what a server reads. *lbstate.Store satisfies it.
type Store interface {
	// Watch returns a watcher over the services that opts select.
	Watch(opts lbstate.WatchOptions) *lbstate.Watcher
}

// ServerConfig configures a Server.
type ServerConfig struct {
	Store      Store         // required
	Cluster    func() uint64 // required: the cluster's ID; 0 while there is none
	ServerName string        // shown to agents and in AgentInfo; default "server"
	Version    string        // of the program, told to agents

	// Predecessors are the clusters that this one was restored from, where a
	// person has released their agents: these accept its state in place of a
	// predecessor's. It must be quick. Nil is none.
	Predecessors func() []uint64

	// Ready says why this server must not serve agents just now (it lags, is
	// cut off from the quorum, or has no cluster), or nil. It should prove
	// that the local state holds every acknowledged write, as a linearizable
	// read does. It is called about once a second, by one goroutine. Default:
	// ready while Cluster is not 0.
	Ready func(context.Context) error

	// Authenticator, where given, proves the agents' names and labels by their
	// certificates; without it they are what they say. The gRPC server needs
	// TLS that asks for certificates: see ServerCredentials.
	Authenticator Authenticator

	// LabelsFor gives the labels that select the agent's services, and an
	// error refuses the agent. Hello has those that the Authenticator has
	// proved, or without one those that the agent claims; they are the default.
	// It is asked when a stream begins, and again for each Recheck; it must be
	// quick.
	LabelsFor func(context.Context, Hello) (map[string]string, error)

	HeartbeatInterval time.Duration // default 2s
	SilenceTimeout    time.Duration // a peer not heard for so long is dead; default 4 heartbeats
	SendTimeout       time.Duration // for one chunk to leave; default 10s
	ReadyTimeout      time.Duration // how long a stream outlives readiness; default 3s
	MaxStreams        int           // default 20000
	MaxKnown          int           // agents remembered; default 2 times MaxStreams
	KeepKnown         time.Duration // after the stream's end; default 1h
	Logger            *zap.Logger   // nil is silent
}

// Hello is what an agent says of itself. An Authenticator proves its name and
// labels; everything else is information.
type Hello struct {
	Name     string
	Address  string // of the other end of the connection
	Version  string
	Features []string
	Labels   map[string]string
	Cluster  uint64 // whose state it holds; 0: none
	Revision uint64
}

// Server serves the state to agents. It is safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	log     *zap.Logger
	known   *known
	streams sync.WaitGroup // all goroutines
	life    context.Context
	stop    context.CancelFunc // ends life
	watched sync.Once          // starts the monitor
	lists   chan struct{}      // a token for each List that reads
	views   views
	recheck chan struct{} // capacity 1

	mu     sync.Mutex // guards the fields below
	closed bool
	open   map[string]*stream // by the agent's name
	// releases wait for agents that hold a state back, by the agent's name.
	releases map[string]pendingRelease

	readyMu sync.Mutex // guards the fields below, and makes one caller ask for all
	readyAt time.Time
	readyIs error

	condition atomic.Pointer[condition] // of the monitor; nil before its first answer
}

// NewServer checks the configuration. It starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	return &Server{
		life: life, stop: stop, lists: make(chan struct{}, 8), recheck: make(chan struct{}, 1),
		cfg: cfg, log: cfg.Logger,
		known: newKnown(cfg.MaxKnown, cfg.KeepKnown),
		open:  map[string]*stream{}, releases: map[string]pendingRelease{},
		views: views{open: map[string]*view{}},
	}, nil
}

func (c ServerConfig) withDefaults() ServerConfig {
	if c.ServerName == "" {
		c.ServerName = "server"
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("agents")
	if c.Ready == nil {
		cluster := c.Cluster
		c.Ready = func(context.Context) error {
			if cluster() == 0 {
				return errors.New("not in a cluster yet")
			}
			return nil
		}
	}
	if c.LabelsFor == nil {
		c.LabelsFor = func(_ context.Context, h Hello) (map[string]string, error) { return maps.Clone(h.Labels), nil }
	}
	if c.Predecessors == nil {
		c.Predecessors = func() []uint64 { return nil }
	}
	setDefault(&c.HeartbeatInterval, 2*time.Second)
	setDefault(&c.SilenceTimeout, 4*c.HeartbeatInterval)
	setDefault(&c.SendTimeout, 10*time.Second)
	setDefault(&c.ReadyTimeout, 3*time.Second)
	setDefault(&c.MaxStreams, 20000)
	setDefault(&c.MaxKnown, 2*c.MaxStreams)
	setDefault(&c.KeepKnown, time.Hour)
	return c
}

func (c ServerConfig) validate() error {
	switch {
	case c.Store == nil:
		return errors.New("agent server: Store is required")
	case c.Cluster == nil:
		return errors.New("agent server: Cluster is required")
	case c.HeartbeatInterval < 10*time.Millisecond:
		return fmt.Errorf("agent server: HeartbeatInterval is %v, want at least 10ms", c.HeartbeatInterval)
	case c.SilenceTimeout < 2*c.HeartbeatInterval:
		return fmt.Errorf("agent server: SilenceTimeout is %v, want at least 2 heartbeats (%v)", c.SilenceTimeout, 2*c.HeartbeatInterval)
	case c.MaxStreams < 0 || c.MaxKnown < 0:
		return errors.New("agent server: MaxStreams and MaxKnown must not be negative")
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// ServerOptions are those that a gRPC server for agents should have: limits
// on what a message from an agent may hold, small buffers per connection, and
// keepalives that notice a dead peer in seconds. They leave credentials to
// the caller. A server that also serves other services may choose its own.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxAgentMessage),
		grpc.MaxConcurrentStreams(16), // per connection; an agent needs one
		grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.ReadBufferSize(0), // a TLS record has a buffer of its own
		grpc.WriteBufferSize(16 << 10),
		// Agents say little. Windows of a set size also spare the pings by which
		// gRPC estimates them, one for nearly every acknowledgement.
		grpc.StaticStreamWindowSize(64 << 10),
		grpc.StaticConnWindowSize(128 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	agentpb.RegisterAgentsServer(r, &service{server: s})
}

// Agents are the agents that are connected or were within KeepKnown, by name.
// The account is this server's own and lives in memory only.
func (s *Server) Agents() []AgentInfo { return s.known.list() }

// Close ends every stream, telling the agents that this server stops, and
// waits for them. It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, st := range s.open {
		st.end(agentpb.Bye_STOPPING, "the server stops")
	}
	s.mu.Unlock()
	s.stop()
	s.closeViews()
	s.streams.Wait()
	return nil
}

// begin admits a stream; an older one of the same name ends.
func (s *Server) begin(ctx context.Context, st *stream) (bye agentpb.Bye_Code, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed, ctx.Err() != nil:
		return agentpb.Bye_STOPPING, "the server stops"
	case len(s.open) >= s.cfg.MaxStreams:
		return agentpb.Bye_FULL, fmt.Sprintf("this server takes %d agents", s.cfg.MaxStreams)
	}
	old := s.open[st.hello.Name]
	if old != nil {
		old.end(agentpb.Bye_SUPERSEDED, "another agent connected with this name, from "+st.hello.Address)
		s.log.Warn("two streams with one agent's name: the newer goes on",
			zap.String("agent", st.hello.Name), zap.String("older", old.hello.Address), zap.String("newer", st.hello.Address))
	}
	s.open[st.hello.Name], st.begun = st, true
	st.beat = time.Now()
	s.watched.Do(func() {
		s.streams.Go(s.monitor)
		s.streams.Go(s.pulse)
		s.streams.Go(s.unstick)
		s.streams.Go(s.rechecks)
	})
	s.known.connected(st.hello, s.cfg.ServerName, old != nil)
	return agentpb.Bye_UNSPECIFIED, ""
}

func (s *Server) finish(st *stream, problem error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !st.begun {
		s.log.Info("agent not served", zap.Error(problem))
		return
	}
	said := ""
	if problem != nil && status.Code(problem) != codes.Canceled && !errors.Is(problem, context.Canceled) && !errors.Is(problem, io.EOF) {
		said = problem.Error()
	}
	s.log.Info("agent gone", zap.String("agent", st.hello.Name), zap.String("reason", said))
	if s.open[st.hello.Name] == st {
		delete(s.open, st.hello.Name)
		s.known.disconnected(st.hello.Name, said)
	}
}
