package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

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

// stream is one agent's stream on the server. Its handler only waits for the
// end, so that an idle agent costs two goroutines with small stacks. The rest is
// done by whoever has news: receive what the agent says, its view what changed,
// Server.pulse what time tells. They send by themselves what surely does not
// wait for the other end; for the rest there is a sender, while it lasts.
type stream struct {
	server *Server
	grpc   grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.ServerMessage]
	cancel context.CancelCauseFunc // ends the stream

	hello  Hello                // set before begun; its labels are those that selected then
	claims Hello                // the same, with the labels that were proved, or claimed
	counts bool                 // the same: it has statistics
	held   string               // the same: why it holds a state back
	auth   credentials.AuthInfo // the same; nil without an Authenticator
	begun  bool                 // guarded by the server's mu

	heard   atomic.Int64 // Unix nanoseconds of the last message
	sending atomic.Int64 // the same of when a message began to be sent without a sender; 0: none is
	beat    time.Time    // when pulse looked last; of pulse alone

	looking sync.Mutex // held by who looks again; taken before mu

	mu       sync.Mutex        // guards the fields below, and sending by other than the sender
	over     bool              // the stream ends: nothing more is posted
	view     *view             // nil before the agent is greeted
	labels   map[string]string // those of the view that the agent is to have; nil: of its view
	position position
	flight   *encoding // sent, and not acknowledged
	reading  bool      // a goroutine reads what the agent lacks
	renewed  time.Time // when a credential was last asked for
	unread   int       // bytes sent since the agent has acknowledged something
	queue    []outgoing
	sender   chan struct{} // closed when the sender, which sends the queue, ends; nil: there is none
	answers  int           // in queue
	launched bool          // an update was sent since the last heartbeat's turn
	spared   int           // heartbeats, one after the other
	question *question     // that waits for its answer
	asked    time.Time     // when the last was
	progress time.Time     // when the sender last got rid of a message
}

func (st *stream) end(code agentpb.Bye_Code, reason string) { st.cancel(&farewell{code, reason}) }

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
	st := &stream{server: s, grpc: g, cancel: cancel}
	s.streams.Go(func() { st.receive(ctx) })
	select {
	case <-ctx.Done():
	case <-s.life.Done(): // Close does not know of who is not served yet
		st.end(agentpb.Bye_STOPPING, "the server stops")
	}
	problem := context.Cause(ctx)
	closed := make(chan struct{})
	s.streams.Go(func() { defer close(closed); st.close(problem) })
	if !errors.Is(problem, errUnread) {
		patience := time.NewTimer(endPatience)
		defer patience.Stop()
		select {
		case <-closed:
		case <-patience.C:
		}
	}
	return nil // what still hangs in receiving or sending, and may hold mu, ends with the handler
}

// close ends a stream for the reason given. A farewell is said if it leaves
// within a second.
func (st *stream) close(problem error) {
	var bye *farewell
	if errors.As(problem, &bye) {
		st.farewell(bye)
	}
	st.mu.Lock()
	st.over, st.queue = true, nil
	st.settle(st.question, ErrNotConnected)
	v := st.view
	st.view = nil
	st.mu.Unlock()
	if v != nil {
		st.server.release(v, st)
	}
	st.server.finish(st, problem)
}

func (st *stream) farewell(bye *farewell) {
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	st.mu.Lock()
	st.queue = nil
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Bye{Bye: &agentpb.Bye{Code: bye.code, Reason: bye.reason}}})
	st.over = true
	sender := st.sender
	st.mu.Unlock()
	if sender == nil {
		return
	}
	select {
	case <-sender:
	case <-patience.C:
	}
}

// greet judges the hello, and begins to serve the agent.
func (st *stream) greet(ctx context.Context, h *agentpb.Hello) error {
	s := st.server
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
	if st.auth, err = s.admit(ctx, &hello); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	st.claims = hello
	if hello.Labels, err = s.selecting(ctx, hello); err != nil {
		return &farewell{agentpb.Bye_REFUSED, err.Error()}
	}
	st.hello, st.held, st.counts = hello, clip(h.GetHeld()), slices.Contains(h.GetFeatures(), featureStatistics)
	if code, reason := s.begin(ctx, st); code != agentpb.Bye_UNSPECIFIED {
		return &farewell{code, reason}
	}
	if a := h.GetApplied(); a != nil {
		s.known.acked(hello.Name, &agentpb.Ack{Kind: agentpb.Ack_APPLIED, Revision: a.GetRevision(), Applied: a})
	}
	s.log.Info("agent connected", zap.String("agent", hello.Name), zap.String("address", hello.Address), zap.Uint64("revision", hello.Revision))
	s.known.update(hello.Name, func(a *AgentInfo) { a.Held = st.held })

	cluster := s.cfg.Cluster()
	st.mu.Lock()
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
		Cluster: cluster, Server: s.cfg.ServerName, Version: s.cfg.Version, Predecessors: s.cfg.Predecessors(),
		Features: []string{featureProfiles}, HeartbeatMillis: uint32(s.cfg.HeartbeatInterval.Milliseconds()), SilenceMillis: uint32(s.cfg.SilenceTimeout.Milliseconds()),
	}}})
	st.mu.Unlock()
	if h.GetHeld() != "" {
		st.release()
	} else {
		s.forgetRelease(hello.Name)
	}

	p := position{cluster: cluster, claimed: h.GetDigest(), restores: -1, profiles: hasProfiles(h.GetFeatures())}
	if h.GetCluster() == cluster {
		p.have = h.GetRevision()
	}
	p.resume, p.full = p.have > 0, p.have == 0
	return st.start(hello.Labels, p)
}

// start shows the agent the view of its labels from a position on.
func (st *stream) start(labels map[string]string, p position) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return nil
	}
	if st.view = st.server.acquire(labels, st); st.view == nil {
		return &farewell{agentpb.Bye_STOPPING, "the server stops"}
	}
	st.position = p
	st.step()
	return nil
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
	patience := time.AfterFunc(st.server.cfg.SilenceTimeout, func() { st.end(agentpb.Bye_SLOW, "no hello in time") })
	m, err := st.grpc.Recv()
	if !patience.Stop() && err == nil {
		return
	}
	if err == nil {
		st.heard.Store(time.Now().UnixNano())
		err = st.greet(ctx, m.GetHello())
	}
	if err == nil { // what changed before the stream was known to Recheck
		err = st.lookAgain(ctx)
	}
	for err == nil {
		if m, err = st.grpc.Recv(); err == nil {
			st.heard.Store(time.Now().UnixNano())
			err = st.take(m)
		}
	}
	st.cancel(err)
}

// take takes one message of a greeted agent.
func (st *stream) take(m *agentpb.AgentMessage) error {
	switch m := m.GetMessage().(type) {
	case *agentpb.AgentMessage_Heartbeat:
		st.server.known.update(st.hello.Name, func(a *AgentInfo) { a.LastHeard = time.Now() })
		return nil
	case *agentpb.AgentMessage_Renew:
		return st.renew(m.Renew)
	case *agentpb.AgentMessage_Statistics:
		return st.counted(m.Statistics)
	case *agentpb.AgentMessage_Ack:
		st.server.known.acked(st.hello.Name, m.Ack)
		switch m.Ack.GetKind() {
		case agentpb.Ack_RECEIVED, agentpb.Ack_APPLIED, agentpb.Ack_PARTIAL, agentpb.Ack_REJECTED, agentpb.Ack_HELD:
			return st.acked(m.Ack)
		}
		return nil
	}
	return &farewell{agentpb.Bye_REFUSED, "neither an acknowledgement nor a heartbeat nor a request"}
}

// acked takes the word on the update that is in flight, and sends the next.
func (st *stream) acked(ack *agentpb.Ack) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.flight == nil || ack.GetRevision() != st.flight.revision {
		return nil
	}
	if err := st.position.acked(ack); err != nil {
		return err
	}
	st.flight, st.unread = nil, 0 // what was sent before it has arrived, too
	st.step()
	return nil
}

// step sends what the agent lacks, unless an update is in flight: what changes
// while the agent is busy is coalesced, each service once, as it is at the end.
// The caller holds mu.
func (st *stream) step() {
	if st.over || st.view == nil || st.flight != nil || st.reading {
		return
	}
	if st.labels != nil && !maps.Equal(st.labels, st.view.labels) {
		st.reselect()
		return
	}
	e, read, err := st.position.next(st.view)
	switch {
	case err != nil:
		st.cancel(err)
	case read != nil:
		st.later(read, func(e *encoding, err error) (*encoding, error) {
			if err != nil {
				return nil, err
			}
			return st.position.fitting(e)
		})
	case e != nil:
		st.launch(e)
	}
}

// later reads an update, which may wait for the quorum or the disk, and sends
// what judge makes of the answer. The caller holds mu, as judge's does.
func (st *stream) later(read func() (*encoding, error), judge func(*encoding, error) (*encoding, error)) {
	st.reading = true
	st.server.streams.Go(func() {
		e, err := read()
		st.mu.Lock()
		defer st.mu.Unlock()
		st.reading = false
		e, err = judge(e, err)
		switch {
		case err != nil:
			st.cancel(err)
		case e != nil:
			st.launch(e)
		default:
			st.step() // what came meanwhile
		}
	})
}

// launch sends an update. The caller holds mu.
func (st *stream) launch(e *encoding) {
	st.flight, st.launched = e, true
	st.post(e.chunks...)
	st.server.known.update(st.hello.Name, func(a *AgentInfo) { a.Sent = e.revision })
}

// changed says that the view has changed, or failed.
func (st *stream) changed() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.step()
}

// alive lets the agent hear this server. It ends the stream of an agent that
// falls silent, does not read, or lost its right to be served, and of a server
// that is not ready for longer than ReadyTimeout.
func (st *stream) alive(beat *agentpb.ServerMessage) error {
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
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sender == nil {
		// What was sent since the last turn has been heard as well. Heartbeats also
		// carry what agents have to know in time, so not all are spared.
		if st.launched && st.spared < spareBeats && s.cfg.SilenceTimeout >= 4*s.cfg.HeartbeatInterval {
			st.spared++
		} else {
			st.spared = 0
			st.post(beat)
		}
		st.launched = false
	} else if time.Since(st.progress) > s.cfg.SendTimeout {
		return &farewell{agentpb.Bye_SLOW, "the agent does not read"}
	}
	return nil
}
