package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// stream is one agent's stream on the server. Its handler is a loop that never
// waits for the other end: receive reads, and what is sent is sent by a goroutine
// that lives only as long as there is something to send. So an idle agent costs
// two goroutines, and one that does not read can still be ended.
type stream struct {
	server *Server
	grpc   grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]
	cancel context.CancelCauseFunc

	hello  Hello                // set before begun; its labels are those that select
	claims Hello                // with the labels that were proved, or claimed
	tls    *tls.ConnectionState // the same; nil without an Authenticator
	begun  bool                 // guarded by the server's mu

	// From receive to the handler.
	heard  atomic.Int64 // Unix nanoseconds of the last message
	first  chan *agentpb.Hello
	served chan struct{} // closed by the handler once hello is judged: receive goes on
	acks   chan *agentpb.Ack
	renews chan *agentpb.Renew

	released chan struct{} // capacity 1: a release may wait for this agent
	recheck  chan struct{} // capacity 1: its right to be served, or its labels, may have changed

	// Of the handler alone.
	queue   []*agentpb.ServerMessage // behind what is being sent
	sending bool
	answers int       // in queue
	renewed time.Time // when a credential was last asked for

	sent     chan error   // from the sender, when it ends
	progress atomic.Int64 // Unix nanoseconds of when the sender last got rid of a message
}

// maxAnswers bounds the answers to requests that wait behind what is being sent.
const maxAnswers = 8

func (st *stream) end(code agentpb.Bye_Code, reason string) { st.cancel(&farewell{code, reason}) }

// post sends messages after those that were posted before.
func (st *stream) post(msgs ...*agentpb.ServerMessage) {
	st.queue = append(st.queue, msgs...)
	st.flush()
}

func (st *stream) flush() {
	if st.sending || len(st.queue) == 0 {
		return
	}
	msgs := st.queue
	st.queue, st.sending = nil, true
	st.progress.Store(time.Now().UnixNano())
	st.server.streams.Go(func() {
		for _, m := range msgs {
			if err := st.grpc.Send(m); err != nil {
				st.sent <- err
				return
			}
			st.progress.Store(time.Now().UnixNano())
		}
		st.sent <- nil
	})
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
	st := &stream{
		server: s, grpc: g, cancel: cancel,
		first: make(chan *agentpb.Hello, 1), served: make(chan struct{}), acks: make(chan *agentpb.Ack, 1), renews: make(chan *agentpb.Renew, 1),
		released: make(chan struct{}, 1), recheck: make(chan struct{}, 1), sent: make(chan error, 1),
	}
	s.streams.Go(func() { st.receive(ctx) })
	problem := st.serve(ctx)
	if c := context.Cause(ctx); c != nil {
		problem = c
	}
	cancel(problem)
	var bye *farewell
	if errors.As(problem, &bye) {
		st.farewell(bye)
	}
	s.finish(st, problem)
	return nil // what still hangs in receiving or sending ends with the handler
}

// farewell says why the stream ends, if that leaves within a second.
func (st *stream) farewell(bye *farewell) {
	st.queue = nil
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	for range 2 { // what is being sent, and the word itself
		if st.sending {
			select {
			case err := <-st.sent:
				st.sending = false
				if err != nil {
					return
				}
			case <-patience.C:
				return
			}
		}
		if bye == nil {
			return
		}
		st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Bye{Bye: &agentpb.Bye{Code: bye.code, Reason: bye.reason}}})
		bye = nil
	}
}

// serve greets the agent and then follows its view.
func (st *stream) serve(ctx context.Context) error {
	s := st.server
	patience := time.NewTimer(s.cfg.SilenceTimeout)
	defer patience.Stop()
	var h *agentpb.Hello
	select {
	case h = <-st.first:
	case <-patience.C:
		return &farewell{agentpb.Bye_SLOW, "no hello in time"}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	var err error
	if st.tls, err = s.admit(ctx, &hello); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	st.claims = hello
	if hello.Labels, err = s.selecting(ctx, hello); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	st.hello = hello
	st.lookAgain() // what changes from here on Recheck tells
	if code, reason := s.begin(ctx, st); code != agentpb.Bye_UNSPECIFIED {
		return &farewell{code, reason}
	}
	if a := h.GetApplied(); a != nil {
		s.known.acked(hello.Name, &agentpb.Ack{Kind: agentpb.Ack_APPLIED, Revision: a.GetRevision(), Applied: a})
	}
	close(st.served)
	s.log.Info("agent connected", zap.String("agent", hello.Name), zap.String("address", hello.Address), zap.Uint64("revision", hello.Revision))

	cluster := s.cfg.Cluster()
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
		Cluster: cluster, Server: s.cfg.ServerName, Version: s.cfg.Version, Predecessors: s.cfg.Predecessors(),
		Features: []string{featureProfiles}, HeartbeatMillis: uint32(s.cfg.HeartbeatInterval.Milliseconds()), SilenceMillis: uint32(s.cfg.SilenceTimeout.Milliseconds()),
	}}})
	s.known.update(hello.Name, func(a *AgentInfo) { a.Held = clip(h.GetHeld()) })
	if h.GetHeld() != "" {
		st.release()
	}
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
	m, err := st.grpc.Recv()
	if err != nil {
		st.cancel(err)
		return
	}
	st.heard.Store(time.Now().UnixNano())
	st.first <- m.GetHello()
	select {
	case <-st.served:
	case <-ctx.Done():
		return
	}
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
			select {
			case st.renews <- m.GetRenew():
			case <-ctx.Done():
			}
		case m.GetAck() != nil:
			ack := m.GetAck()
			st.server.known.acked(st.hello.Name, ack)
			switch ack.GetKind() {
			case agentpb.Ack_RECEIVED, agentpb.Ack_APPLIED, agentpb.Ack_PARTIAL, agentpb.Ack_REJECTED, agentpb.Ack_HELD:
				select {
				case st.acks <- ack:
				case <-ctx.Done():
				}
			}
		default:
			st.end(agentpb.Bye_REFUSED, "neither an acknowledgement nor a heartbeat nor a request")
			return
		}
	}
}

// follow sends updates, one in flight. What changes while the agent is busy is
// coalesced: each service once, as it is at the end.
func (st *stream) follow(ctx context.Context, cluster uint64, h *agentpb.Hello) error {
	s := st.server
	v := s.acquire(st.hello.Labels)
	if v == nil {
		return &farewell{agentpb.Bye_STOPPING, "the server stops"}
	}
	defer func() { s.release(v) }()
	tick := time.NewTicker(s.cfg.HeartbeatInterval)
	defer tick.Stop()
	p := position{cluster: cluster, claimed: h.GetDigest(), restores: -1, profiles: hasProfiles(h.GetFeatures())}
	if h.GetCluster() == cluster {
		p.have = h.GetRevision()
	}
	p.resume, p.full = p.have > 0, p.have == 0
	var flight *encoding            // sent, and not acknowledged
	var relabeled map[string]string // not shown yet; nil: none
	for {
		var changed <-chan struct{}
		if flight == nil {
			var err error
			if relabeled != nil {
				v, flight, err = st.reselect(v, relabeled, &p)
				relabeled = nil
			} else {
				flight, changed, err = p.next(v)
			}
			if err != nil {
				return err
			}
			if flight != nil {
				st.post(flight.chunks...)
				s.known.update(st.hello.Name, func(a *AgentInfo) { a.Sent = flight.revision })
			}
		}
		select {
		case <-changed:
		case ack := <-st.acks:
			if flight == nil || ack.GetRevision() != flight.revision {
				continue
			}
			if err := p.acked(ack); err != nil {
				return err
			}
			flight = nil
		case err := <-st.sent:
			if err != nil {
				return err
			}
			st.sending = false
			if len(st.queue) == 0 {
				st.answers = 0
			}
			st.flush()
		case r := <-st.renews:
			if st.answers++; st.answers > maxAnswers {
				return &farewell{agentpb.Bye_SLOW, "the agent asks and does not read"}
			}
			st.renew(r)
		case <-st.released:
			st.release()
		case <-st.recheck:
			var err error
			if relabeled, err = st.relabel(ctx, v); err != nil {
				return err
			}
		case <-tick.C:
			if err := st.alive(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// alive lets the agent hear this server. It ends the stream of an agent that
// falls silent, does not read, or lost its right to be served, and of a server
// that is not ready for longer than ReadyTimeout.
func (st *stream) alive() error {
	s := st.server
	if silent := time.Since(time.Unix(0, st.heard.Load())); silent > s.cfg.SilenceTimeout {
		return &farewell{agentpb.Bye_SLOW, fmt.Sprintf("nothing heard for %v", silent.Round(time.Millisecond))}
	}
	if err := st.proved(); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	if err := s.unready(); err != nil {
		return &farewell{agentpb.Bye_NOT_READY, err.Error()}
	}
	if !st.sending {
		st.post(s.heartbeat())
	} else if time.Since(time.Unix(0, st.progress.Load())) > s.cfg.SendTimeout {
		return &farewell{agentpb.Bye_SLOW, "the agent does not read"}
	}
	return nil
}

// position is what an agent holds of its view.
type position struct {
	cluster uint64
	have    uint64 // revision; 0: nothing
	full    bool   // only the whole state helps
	// resume says that the agent comes with what it had: claimed is its digest.
	resume   bool
	claimed  uint64
	restores int // of the moment before; -1: none
	profiles bool
}

// next is what the agent lacks, or nil and what tells of the next change.
func (p *position) next(v *view) (*encoding, <-chan struct{}, error) {
	now, changed, err := v.state()
	if err != nil || now == nil {
		return nil, changed, err
	}
	// What the agent holds may be of a state that is no more.
	p.full = p.full || p.restores >= 0 && now.restores != p.restores
	p.restores = now.restores
	if p.resume && !p.full && p.have == now.revision && p.claimed != now.sum(p.profiles) {
		p.full = true
	}
	var e *encoding
	switch {
	case p.full, p.resume && !now.covers(p.have):
		e, err = v.read(now, p.cluster, p.have, p.full, p.profiles)
	case p.have < now.revision:
		e, err = now.delta(p.cluster, p.have, p.profiles)
	}
	if err != nil {
		return nil, nil, err
	}
	if e != nil && e.revision < p.have {
		return nil, nil, &farewell{agentpb.Bye_BEHIND, fmt.Sprintf("this server is at revision %d, the agent has seen %d", e.revision, p.have)}
	}
	if e != nil && e.empty && p.resume && p.claimed == e.digest {
		e = nil // the agent holds it all
	}
	p.resume = false
	return e, changed, nil
}

// acked takes the agent's word on the update in flight.
func (p *position) acked(ack *agentpb.Ack) error {
	p.full = false
	switch {
	case !covers(ack.GetKind()) && ack.GetWantFull():
		p.full = true
	case ack.GetKind() == agentpb.Ack_REJECTED:
		return &farewell{agentpb.Bye_REFUSED, "the agent rejected the update: " + ack.GetReason()}
	default: // received, or held until someone releases it
		p.have = ack.GetRevision()
	}
	return nil
}

// List answers once with the whole view.
func (sv *service) List(ctx context.Context, r *agentpb.ListRequest) (*agentpb.ListResponse, error) {
	s := sv.server
	if err := checkHello(&agentpb.Hello{Name: r.GetName(), Labels: r.GetLabels(), Features: r.GetFeatures()}); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.ready(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	hello := Hello{Name: r.GetName(), Labels: r.GetLabels(), Cluster: r.GetCluster(), Revision: r.GetRevision()}
	if _, err := s.admit(ctx, &hello); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	labels, err := s.selecting(ctx, hello)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	select { // each reads the whole state
	case s.lists <- struct{}{}:
		defer func() { <-s.lists }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
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
	if p := u.Profile; p != nil && hasProfiles(r.GetFeatures()) {
		answer.Profile = p.Desired().Proto()
		answer.Digest += profileDigest(p.Name, p.Revision)
	}
	if r.GetCluster() == answer.Cluster && r.GetDigest() == answer.Digest && r.GetRevision() > 0 {
		answer.Unchanged, answer.Services, answer.Profile = true, nil, nil
	}
	return answer, nil
}
