package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

func (c ClientConfig) withDefaults() ClientConfig {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("agent")
	setDefault(&c.ConnectTimeout, 5*time.Second)
	setDefault(&c.MinBackoff, 200*time.Millisecond)
	setDefault(&c.MaxBackoff, 5*time.Second)
	setDefault(&c.RebalanceInterval, 5*time.Minute)
	setDefault(&c.RenewSpread, 30*time.Second)
	setDefault(&c.MaxUpdate, 256<<20)
	setDefault(&c.countEvery, fineSpan)
	return c
}

func (c ClientConfig) validate() error {
	switch {
	case len(c.Servers) == 0:
		return errors.New("agent: Servers is required")
	case c.Name == "":
		return errors.New("agent: Name is required")
	case c.Dir == "":
		return errors.New("agent: Dir is required")
	case c.Applier == nil:
		return errors.New("agent: Applier is required")
	case c.RebalanceInterval > 0 && c.RebalanceInterval < time.Millisecond:
		return fmt.Errorf("agent: RebalanceInterval is %v, want at least 1ms, or less than 0 for none", c.RebalanceInterval)
	}
	for _, server := range c.Servers {
		host, _, err := net.SplitHostPort(server)
		if err != nil {
			return fmt.Errorf("agent: server %q is not host:port: %w", server, err)
		}
		if c.Credentials == nil && !c.Insecure && !loopback(host) {
			return fmt.Errorf("agent: server %s is not on this host, and there are no credentials: plain text needs Insecure", server)
		}
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && a.IsLoopback())
}

// Client receives the state, keeps it in the journal and hands it to the
// Applier. Its methods are safe for concurrent use.
type Client struct {
	cfg ClientConfig
	log *zap.Logger

	wake chan struct{} // capacity 1: there is a view to apply

	mu      sync.Mutex // guards the fields below
	running bool
	journal *journal
	state   *state // accepted and durable; never changed in place
	status  ClientStatus
	held    *state // what the guard keeps back

	acks chan *agentpb.Ack

	counts  sync.Mutex // guards counted
	counted history
}

// NewClient checks the configuration. It opens and starts nothing: see Run.
func NewClient(cfg ClientConfig) (*Client, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), state: &state{}, status: ClientStatus{Name: cfg.Name}}, nil
}

// Run applies the journalled view and then follows the servers until ctx ends,
// which gives nil. Any other error says why the journal cannot be used. It may
// be called once.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errors.New("agent: Run was called before")
	}
	c.running = true
	c.mu.Unlock()

	j, st, applied, err := openJournal(c.cfg.Dir)
	if err != nil {
		return err
	}
	defer j.close()
	if s := j.account(); s.Damage != "" {
		c.log.Error("the journal is damaged", zap.String("damage", s.Damage))
	} else if s.TornTail > 0 {
		c.log.Warn("the journal's last append was unfinished and is cut off", zap.Int64("bytes", s.TornTail))
	}
	c.mu.Lock()
	c.journal, c.state = j, st
	c.status.AppliedRevision = applied
	c.mu.Unlock()

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan struct{})
	wg.Go(func() { c.applyLoop(ctx, first) })
	if r, ok := c.cfg.Applier.(Reporter); ok {
		wg.Go(func() { c.reportLoop(ctx, r) })
	}
	if from, ok := c.cfg.Applier.(Counter); ok {
		wg.Go(func() { c.countLoop(ctx, from) })
	}
	if st.cluster != 0 {
		c.log.Info("applying the journal before any server is asked", zap.Uint64("revision", st.revision), zap.Int("services", len(st.entries)))
		c.poke()
		select { // the journal goes first (INV-11); a failing kernel must not keep us from the servers
		case <-first:
		case <-ctx.Done():
		}
	}
	return c.dialLoop(ctx)
}

func (c *Client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// applyLoop hands the latest view to the Applier. first is closed after the
// first attempt.
func (c *Client) applyLoop(ctx context.Context, first chan struct{}) {
	var retry <-chan time.Time
	backoff := c.cfg.MinBackoff
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-retry:
		}
		retry = nil
		c.mu.Lock()
		st := c.state
		c.mu.Unlock()
		v, unreadable := st.view()
		applied, err := c.cfg.Applier.Apply(ctx, v)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Error("the view could not be applied", zap.Uint64("revision", v.Revision), zap.Error(err), zap.Duration("again in", backoff))
			c.mu.Lock()
			c.status.ApplyError = err.Error()
			c.mu.Unlock()
			c.ack(&agentpb.Ack{Kind: agentpb.Ack_FAILED, Revision: v.Revision, Reason: err.Error()})
			retry = time.After(backoff)
			backoff = min(2*backoff, c.cfg.MaxBackoff)
		} else {
			backoff = c.cfg.MinBackoff
			applied.Failures = append(unreadable, applied.Failures...)
			applied.Converged = applied.Converged && len(unreadable) == 0
			c.account(applied)
		}
		if first != nil {
			close(first)
			first = nil
		}
	}
}

func (c *Client) reportLoop(ctx context.Context, r Reporter) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-r.Reports():
			c.account(a)
		}
	}
}

// account takes what the Applier says into the status, and tells the server.
func (c *Client) account(a lbstate.Applied) {
	a = bounded(a)
	c.mu.Lock()
	again := c.status.AppliedRevision == a.Revision
	c.status.Applied, c.status.AppliedRevision, c.status.ApplyError = a, a.Revision, ""
	j := c.journal
	c.mu.Unlock()
	if !again {
		if err := j.confirm(a.Revision); err != nil {
			c.log.Warn("the journal could not note what was applied", zap.Error(err))
		}
	}
	c.ack(appliedAck(a))
}

func appliedAck(a lbstate.Applied) *agentpb.Ack {
	kind := agentpb.Ack_APPLIED
	if len(a.Failures) > 0 {
		kind = agentpb.Ack_PARTIAL
	}
	return &agentpb.Ack{Kind: kind, Revision: a.Revision, Applied: appliedToProto(a)}
}

// ack queues an acknowledgement for the present stream, if there is one; what
// does not fit is old news that a later account replaces.
func (c *Client) ack(a *agentpb.Ack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.acks == nil {
		return
	}
	select {
	case c.acks <- a:
	default:
	}
}

func (c *Client) disconnected(server string, err error) {
	c.mu.Lock()
	said := c.status.LastError
	was := c.status.Connected
	c.acks = nil
	c.status.Connected, c.status.Server, c.status.ServerName, c.status.LastError = false, "", "", fmt.Sprintf("%s: %v", server, err)
	repeated := said == c.status.LastError
	c.mu.Unlock()
	if was || !repeated {
		c.log.Warn("not served: going on to the next server, with the state as it is", zap.String("server", server), zap.Error(err))
	}
}

// clientWindow bounds what an agent's host buffers before it is taken, in bytes:
// a whole state arrives at ten megabytes a second where an answer takes 100 ms.
const clientWindow = 1 << 20

func (c *Client) dial(server string) (*grpc.ClientConn, error) {
	creds := c.cfg.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxServerMessage)),
		// No pings to estimate the windows, which the server would have to answer
		// for each change.
		grpc.WithStaticStreamWindowSize(clientWindow),
		grpc.WithStaticConnWindowSize(clientWindow),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDisableServiceConfig(),
	}, c.cfg.DialOptions...)
	return grpc.NewClient("passthrough:///"+server, opts...)
}

// follow runs one stream and says whether the server ever served it.
func (c *Client) follow(ctx context.Context, server string) (served bool, err error) {
	conn, err := c.dial(server)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.cfg.ConnectTimeout, func() { cancel(errors.New("the server did not answer in time")) })
	defer watchdog.Stop()
	stream, err := agentpb.NewAgentsClient(conn).Stream(ctx)
	if err != nil {
		return false, explained(cause(ctx, err))
	}
	s := &session{client: c, stream: stream, server: server, acks: make(chan *agentpb.Ack, 64), requests: make(chan []byte, 1), asked: make(chan *agentpb.StatisticsRequest, 1), ending: make(chan struct{}), alive: watchdog, silence: c.cfg.ConnectTimeout}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // before waiting for the sender
	if err := s.greet(ctx); err != nil {
		return false, explained(cause(ctx, err))
	}
	wg.Go(func() { s.sendLoop(ctx) })
	err = cause(ctx, s.receive())
	s.part(cancel)
	return true, err
}

// cause prefers what we ended the stream for to what gRPC says of it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

// Status is safe at any time.
func (c *Client) Status() ClientStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Cluster, s.Revision, s.Services = c.state.cluster, c.state.revision, len(c.state.entries)
	if c.journal != nil {
		s.Journal = c.journal.account()
	}
	return s
}

// Release lets the state pass that is held back now, once. It returns
// ErrNothingHeld when there is none.
func (c *Client) Release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return ErrNothingHeld
	}
	next := c.held
	if err := c.acceptLocked(next, &agentpb.Update{Full: true}); err != nil {
		return err
	}
	c.log.Warn("the held state was released by hand", zap.Uint64("cluster", next.cluster), zap.Uint64("revision", next.revision))
	return nil
}

// acceptLocked makes next durable and then the one to apply.
func (c *Client) acceptLocked(next *state, u *agentpb.Update) error {
	if err := c.journal.accept(next, u, c.status.AppliedRevision); err != nil {
		return fmt.Errorf("the state could not be made durable, so it is not applied: %w", err)
	}
	c.state, c.held, c.status.Held = next, nil, nil
	c.poke()
	return nil
}
