package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// service is the gRPC side of a Server.
type service struct {
	agentpb.UnimplementedAgentsServer
	server *Server
}

// farewell ends a stream with a Bye that says why.
type farewell struct {
	code   agentpb.Bye_Code
	reason string
}

func (f *farewell) Error() string { return f.reason }

// stream is one agent's stream on the server.
type stream struct {
	server *Server
	hello  Hello                // set before begun
	tls    *tls.ConnectionState // the same; nil without an Authenticator
	begun  bool                 // guarded by the server's mu
	cancel context.CancelCauseFunc
	heard  atomic.Int64 // Unix nanoseconds of the last message
	flow   chan *agentpb.Ack

	released chan struct{} // capacity 1: a release may wait for this agent

	sendMu sync.Mutex // one sender at a time
	grpc   grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]

	renewed time.Time // when a credential was last asked for; of receive
}

func (st *stream) end(code agentpb.Bye_Code, reason string) { st.cancel(&farewell{code, reason}) }

func (st *stream) send(m *agentpb.ServerMessage) error {
	st.sendMu.Lock()
	defer st.sendMu.Unlock()
	return st.grpc.Send(m)
}

// Stream serves one agent until either side ends it.
func (sv *service) Stream(g grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]) error {
	s := sv.server
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return status.Error(codes.Unavailable, "the server stops")
	}
	s.streams.Add(1)
	s.mu.Unlock()
	defer s.streams.Done()
	ctx, cancel := context.WithCancelCause(g.Context())
	defer cancel(nil)
	st := &stream{server: s, cancel: cancel, grpc: g, flow: make(chan *agentpb.Ack, 1), released: make(chan struct{}, 1)}
	// The handler only waits: a send or receive that hangs in one of the
	// goroutines ends when the handler returns.
	served := make(chan error, 1)
	s.streams.Go(func() { served <- st.serve(ctx) })
	var problem error
	select {
	case problem = <-served:
	case <-ctx.Done():
		problem = context.Cause(ctx)
	}
	cancel(problem)
	var bye *farewell
	if errors.As(problem, &bye) {
		said := make(chan struct{})
		s.streams.Go(func() {
			// Best effort: the agent also sees the stream end.
			_ = st.send(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Bye{Bye: &agentpb.Bye{Code: bye.code, Reason: bye.reason}}})
			close(said)
		})
		select {
		case <-said:
		case <-time.After(time.Second):
		}
	}
	s.finish(st, problem)
	return nil
}

func (st *stream) serve(ctx context.Context) error {
	s := st.server
	watchdog := time.AfterFunc(s.cfg.SilenceTimeout, func() { st.end(agentpb.Bye_SLOW, "no hello in time") })
	first, err := st.grpc.Recv()
	watchdog.Stop()
	if err != nil {
		return err
	}
	h := first.GetHello()
	if h == nil {
		return &farewell{agentpb.Bye_REFUSED, "the first message must be a hello"}
	}
	if err := checkHello(h); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	if err := s.ready(ctx); err != nil {
		return &farewell{agentpb.Bye_NOT_READY, err.Error()}
	}
	hello := Hello{Name: h.GetName(), Version: h.GetVersion(), Features: h.GetFeatures(), Labels: h.GetLabels(), Cluster: h.GetCluster(), Revision: h.GetRevision()}
	if st.tls, err = s.admit(ctx, &hello); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	labels, err := s.cfg.LabelsFor(ctx, hello)
	if err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	if labels == nil {
		labels = map[string]string{} // nil would select everything
	}
	hello.Labels = labels
	st.hello = hello
	if code, reason := s.begin(ctx, st); code != agentpb.Bye_UNSPECIFIED {
		return &farewell{code, reason}
	}
	if a := h.GetApplied(); a != nil {
		s.known.acked(hello.Name, &agentpb.Ack{Kind: agentpb.Ack_APPLIED, Revision: a.GetRevision(), Applied: a})
	}
	s.log.Info("agent connected", zap.String("agent", hello.Name), zap.String("address", hello.Address), zap.Uint64("revision", hello.Revision))

	cluster := s.cfg.Cluster()
	err = st.send(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
		Cluster: cluster, Server: s.cfg.ServerName, Version: s.cfg.Version,
		Predecessors:    s.cfg.Predecessors(),
		HeartbeatMillis: uint32(s.cfg.HeartbeatInterval.Milliseconds()), SilenceMillis: uint32(s.cfg.SilenceTimeout.Milliseconds()),
	}}})
	if err != nil {
		return err
	}
	s.known.update(hello.Name, func(a *AgentInfo) { a.Held = h.GetHeld()[:min(len(h.GetHeld()), 1024)] })
	if h.GetHeld() != "" {
		if err := st.release(); err != nil {
			return err
		}
	}
	st.heard.Store(time.Now().UnixNano())
	s.streams.Go(func() { st.receive(ctx) })
	s.streams.Go(func() { st.beat(ctx) })
	return st.follow(ctx, cluster, h)
}

func checkHello(h *agentpb.Hello) error {
	if n := len(h.GetName()); n == 0 || n > 253 {
		return fmt.Errorf("the agent's name has %d bytes; 1 to 253 are allowed", n)
	}
	if len(h.GetLabels()) > 64 || len(h.GetFeatures()) > 64 || len(h.GetVersion()) > 256 {
		return errors.New("the hello has more labels or features than the 64 allowed, or a version of over 256 bytes")
	}
	for k, v := range h.GetLabels() {
		if len(k) == 0 || len(k) > 128 || len(v) > 128 {
			return fmt.Errorf("label %.130q: a key has 1 to 128 bytes and a value at most 128", k)
		}
	}
	return nil
}

// receive takes what the agent says until the stream ends.
func (st *stream) receive(ctx context.Context) {
	for {
		m, err := st.grpc.Recv()
		if err != nil {
			st.cancel(err)
			return
		}
		st.heard.Store(time.Now().UnixNano())
		switch {
		case m.GetHeartbeat() != nil:
			st.server.known.update(st.hello.Name, func(a *AgentInfo) { a.LastHeard = time.Now() })
		case m.GetRenew() != nil:
			if err := st.renew(m.GetRenew()); err != nil {
				st.cancel(err)
				return
			}
		case m.GetAck() != nil:
			ack := m.GetAck()
			st.server.known.acked(st.hello.Name, ack)
			switch ack.GetKind() {
			case agentpb.Ack_RECEIVED, agentpb.Ack_REJECTED, agentpb.Ack_HELD:
				select {
				case st.flow <- ack:
				case <-ctx.Done():
				}
			}
		default:
			st.end(agentpb.Bye_REFUSED, "neither an acknowledgement nor a heartbeat nor a request")
			return
		}
	}
}

// beat lets the agent hear this server, and ends the stream of one that falls
// silent, or when this server is not ready for longer than ReadyTimeout.
func (st *stream) beat(ctx context.Context) {
	s := st.server
	tick := time.NewTicker(s.cfg.HeartbeatInterval)
	defer tick.Stop()
	readyAt := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.released:
			if err := st.release(); err != nil {
				st.cancel(err)
				return
			}
			continue
		case <-tick.C:
		}
		if silent := time.Since(time.Unix(0, st.heard.Load())); silent > s.cfg.SilenceTimeout {
			st.end(agentpb.Bye_SLOW, fmt.Sprintf("nothing heard for %v", silent.Round(time.Millisecond)))
			return
		}
		if err := st.proved(); err != nil {
			st.end(agentpb.Bye_REFUSED, err.Error())
			return
		}
		err := s.ready(ctx)
		switch {
		case err == nil:
			readyAt = time.Now()
		case ctx.Err() == nil && time.Since(readyAt) > s.cfg.ReadyTimeout:
			st.end(agentpb.Bye_NOT_READY, err.Error())
			return
		}
		if err := st.send(s.heartbeat()); err != nil {
			st.cancel(err)
			return
		}
	}
}

// follow sends updates, one in flight. What changes while the agent is busy is
// coalesced: each service once, as it is at the end.
func (st *stream) follow(ctx context.Context, cluster uint64, h *agentpb.Hello) error {
	v := st.server.acquire(st.hello.Labels)
	if v == nil {
		return &farewell{agentpb.Bye_STOPPING, "the server stops"}
	}
	defer st.server.release(v)
	have := uint64(0)
	if h.GetCluster() == cluster {
		have = h.GetRevision()
	}
	resume, full := have > 0, have == 0
	restores := -1 // of the moment before
	for {
		now, changed, err := v.state()
		if err != nil {
			return err
		}
		if now != nil {
			// What the agent holds may be of a state that is no more.
			full = full || restores >= 0 && now.restores != restores
			restores = now.restores
		}
		var next *encoding
		switch {
		case now == nil: // the first read is under way
		case full, resume && !now.covers(have):
			next, err = v.read(now, cluster, have, full)
		case have < now.revision:
			next, err = now.delta(cluster, have)
		case resume && h.GetDigest() != now.digest:
			full = true
			continue
		}
		if err != nil {
			return err
		}
		if next != nil && next.revision < have {
			return &farewell{agentpb.Bye_BEHIND, fmt.Sprintf("this server is at revision %d, the agent has seen %d", next.revision, have)}
		}
		if next != nil && next.empty && resume && h.GetDigest() == next.digest {
			next = nil // the agent holds it all
		}
		if next == nil {
			resume = resume && now == nil
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		ack, err := st.deliver(ctx, next)
		if err != nil {
			return err
		}
		resume, full = false, false
		switch {
		case ack.GetKind() == agentpb.Ack_RECEIVED:
			have = next.revision
		case ack.GetWantFull():
			full = true
		default: // rejected, or held until someone releases it
			have = next.revision
			if ack.GetKind() == agentpb.Ack_REJECTED {
				return &farewell{agentpb.Bye_REFUSED, "the agent rejected the update: " + ack.GetReason()}
			}
		}
	}
}

// deliver sends an update and waits for the agent's word on it.
func (st *stream) deliver(ctx context.Context, e *encoding) (*agentpb.Ack, error) {
	slow := time.AfterFunc(st.server.cfg.SendTimeout, func() { st.end(agentpb.Bye_SLOW, "the agent does not read") })
	for _, m := range e.chunks {
		if err := st.send(m); err != nil {
			slow.Stop()
			return nil, err
		}
		slow.Reset(st.server.cfg.SendTimeout)
	}
	slow.Stop()
	st.server.known.update(st.hello.Name, func(a *AgentInfo) { a.Sent = e.revision })
	for {
		select {
		case ack := <-st.flow:
			if ack.GetRevision() == e.revision {
				return ack, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// List answers once with the whole view.
func (sv *service) List(ctx context.Context, r *agentpb.ListRequest) (*agentpb.ListResponse, error) {
	s := sv.server
	if err := checkHello(&agentpb.Hello{Name: r.GetName(), Labels: r.GetLabels()}); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.ready(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	hello := Hello{Name: r.GetName(), Labels: r.GetLabels(), Cluster: r.GetCluster(), Revision: r.GetRevision()}
	if _, err := s.admit(ctx, &hello); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	labels, err := s.cfg.LabelsFor(ctx, hello)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if labels == nil {
		labels = map[string]string{}
	}
	u, err := s.cfg.Store.Watch(lbstate.WatchOptions{Labels: labels}).Next(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	answer := &agentpb.ListResponse{Cluster: s.cfg.Cluster(), Revision: u.Revision}
	for _, v := range u.Services {
		answer.Digest += pairDigest(v.Name, v.Version)
		answer.Services = append(answer.Services, lbstate.Desired(v).Proto())
	}
	if r.GetCluster() == answer.Cluster && r.GetDigest() == answer.Digest && r.GetRevision() > 0 {
		answer.Unchanged, answer.Services = true, nil
	}
	return answer, nil
}
