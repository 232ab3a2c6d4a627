package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// session is one stream on the agent's side.
type session struct {
	client  *Client
	stream  grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.ServerMessage]
	server  string
	acks    chan *agentpb.Ack
	alive   *time.Timer // ends the stream when the server falls silent
	silence time.Duration
	beat    time.Duration
	cluster uint64
	// predecessors are the clusters whose state may be replaced by this one's.
	predecessors []uint64
	profiles     bool // the server knows profiles
	parts        assembler

	ending   chan struct{} // closed when nothing more is received
	requests chan []byte   // for a new credential, on their way to sendLoop
	asked    chan *agentpb.StatisticsRequest
	answered time.Time // when a question was last taken; of the receiver alone
	renewal  renewal
}

// greet says hello and takes the welcome.
func (s *session) greet(ctx context.Context) error {
	c := s.client
	c.mu.Lock()
	st, status := c.state, c.status
	c.mu.Unlock()
	hello := &agentpb.Hello{
		Name: c.cfg.Name, Version: c.cfg.Version, Features: withProfiles(c.cfg.Features), Labels: c.cfg.Labels,
		Cluster: st.cluster, Revision: st.revision, Digest: st.sum(true),
	}
	if _, ok := c.cfg.Applier.(Counter); ok {
		hello.Features = append(slices.Clip(hello.Features), featureStatistics)
	}
	if status.AppliedRevision > 0 && status.Applied.Revision > 0 {
		hello.Applied = appliedToProto(status.Applied)
	}
	if status.Held != nil {
		hello.Held = status.Held.Reason
	}
	if err := s.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	m, err := s.stream.Recv()
	if err != nil {
		return err
	}
	if bye := m.GetBye(); bye != nil {
		return fmt.Errorf("the server sends this agent on: %s", bye.GetReason())
	}
	w := m.GetWelcome()
	if w == nil {
		return errors.New("the server's first message is no welcome")
	}
	s.cluster, s.predecessors, s.profiles = w.GetCluster(), w.GetPredecessors(), hasProfiles(w.GetFeatures())
	s.silence = min(max(time.Duration(w.GetSilenceMillis())*time.Millisecond, 100*time.Millisecond), time.Minute)
	s.beat = min(max(time.Duration(w.GetHeartbeatMillis())*time.Millisecond, 10*time.Millisecond), s.silence/2)
	s.parts.limit = c.cfg.MaxUpdate
	s.alive.Reset(s.silence)
	c.mu.Lock()
	c.acks = s.acks
	c.status.Connected, c.status.Server, c.status.ServerName, c.status.LastHeard, c.status.LastError = true, s.server, w.GetServer(), time.Now(), ""
	c.mu.Unlock()
	c.log.Info("served", zap.String("server", w.GetServer()), zap.String("address", s.server), zap.String("cluster", fmt.Sprintf("%016x", w.GetCluster())))
	return ctx.Err()
}

// together is how long the word that an update is durable waits for the word
// that it is applied: a small change usually is within that time, and two
// acknowledgements in one halve what they cost the server.
const together = 5 * time.Millisecond

// sendLoop is the only sender after the hello.
func (s *session) sendLoop(ctx context.Context) {
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	var received *agentpb.Ack // held back
	var late <-chan time.Time
	spoke := false                     // since the last tick, other than by it
	var report []*agentpb.AgentMessage // in between everything else
	always := make(chan struct{})
	close(always)
	for {
		var more <-chan struct{}
		if len(report) > 0 {
			more = always
		}
		m := &agentpb.AgentMessage{}
		select {
		case <-ctx.Done():
			return
		case <-s.ending:
			s.lastWords(received)
			return
		case <-tick.C:
			// What was sent since the last tick has been heard as well.
			if spoke && s.silence >= 4*s.beat {
				spoke = false
				continue
			}
			m.Message = &agentpb.AgentMessage_Heartbeat{Heartbeat: &agentpb.Heartbeat{}}
		case request := <-s.requests:
			m.Message = &agentpb.AgentMessage_Renew{Renew: &agentpb.Renew{Request: request}}
		case q := <-s.asked:
			report = s.client.report(q)
			continue
		case <-more:
			m, report = report[0], report[1:]
		case <-late:
			m.Message = &agentpb.AgentMessage_Ack{Ack: received}
			received, late = nil, nil
		case ack := <-s.acks:
			if ack.GetKind() == agentpb.Ack_RECEIVED {
				received, late = ack, time.After(together)
				continue
			}
			if received != nil && (ack.GetRevision() != received.GetRevision() || !covers(ack.GetKind())) {
				if s.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: received}}) != nil {
					return
				}
			}
			received, late = nil, nil
			m.Message = &agentpb.AgentMessage_Ack{Ack: ack}
		}
		spoke = m.GetHeartbeat() == nil
		if s.stream.Send(m) != nil {
			return // the receiver sees why
		}
	}
}

// lastWords sends what is queued, such as why the agent leaves.
func (s *session) lastWords(received *agentpb.Ack) {
	if received != nil && s.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: received}}) != nil {
		return
	}
	for {
		select {
		case ack := <-s.acks:
			if s.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: ack}}) != nil {
				return
			}
		default:
			_ = s.stream.CloseSend() // the stream is over either way
			return
		}
	}
}

// part ends a stream so that the server hears the agent's last words: it waits a
// second for the server to end it, too.
func (s *session) part(cancel context.CancelCauseFunc) {
	s.alive.Stop()
	patience := time.AfterFunc(time.Second, func() { cancel(nil) })
	defer patience.Stop()
	close(s.ending)
	for {
		if _, err := s.stream.Recv(); err != nil {
			return
		}
	}
}

// covers says whether an acknowledgement says of its revision that it was
// received, too.
func covers(kind agentpb.Ack_Kind) bool {
	return kind == agentpb.Ack_RECEIVED || kind == agentpb.Ack_APPLIED || kind == agentpb.Ack_PARTIAL
}

func (s *session) receive() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		s.alive.Reset(s.silence)
		s.client.mu.Lock()
		s.client.status.LastHeard = time.Now()
		s.client.mu.Unlock()
		switch {
		case m.GetChunk() != nil:
			u, err := s.parts.add(m.GetChunk())
			if err != nil {
				return err
			}
			if u != nil {
				if err := s.update(u); err != nil {
					return err
				}
			}
		case m.GetRelease() != nil:
			if err := s.released(m.GetRelease()); err != nil {
				return err
			}
		case m.GetHeartbeat() != nil:
			s.renewIfDue(m.GetHeartbeat().GetTrust())
		case m.GetStatistics() != nil:
			if now := time.Now(); now.Sub(s.answered) >= askEvery/2 { // a server asks no more often
				select {
				case s.asked <- m.GetStatistics():
					s.answered = now
				default: // one at a time
				}
			}
		case m.GetCredential() != nil:
			s.renewed(m.GetCredential())
		case m.GetWelcome() != nil:
			return errors.New("the server greets a second time")
		case m.GetBye() != nil:
			return fmt.Errorf("the server ends the stream: %s", m.GetBye().GetReason())
		}
	}
}

// update judges one update, makes it durable and passes it on.
func (s *session) update(u *agentpb.Update) error {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.state
	answer := func(a *agentpb.Ack) error {
		a.Revision = u.GetRevision()
		select {
		case s.acks <- a:
			return nil
		case <-s.stream.Context().Done():
			return s.stream.Context().Err()
		}
	}
	if u.GetCluster() != s.cluster {
		return fmt.Errorf("an update of cluster %016x from a server of cluster %016x", u.GetCluster(), s.cluster)
	}
	if !u.GetFull() && (u.GetCluster() != have.cluster || u.GetSince() != have.revision || u.GetRevision() < have.revision) {
		return answer(&agentpb.Ack{Kind: agentpb.Ack_REJECTED, WantFull: true, Reason: fmt.Sprintf("a change from revision %d to %d does not continue revision %d", u.GetSince(), u.GetRevision(), have.revision)})
	}
	next := have.apply(u)
	if !s.profiles {
		next.keepProfile(have)
	}
	if next.sum(s.profiles) != u.GetDigest() {
		a := &agentpb.Ack{Kind: agentpb.Ack_REJECTED, WantFull: !u.GetFull(), Reason: "the digest of the state does not match the server's"}
		if err := answer(a); err != nil || a.WantFull {
			return err
		}
		return errors.New(a.Reason)
	}
	if u.GetFull() {
		removed := map[string]struct{}{}
		if u.GetCluster() == have.cluster && u.GetSince() == have.revision {
			for _, name := range u.GetRemoved() {
				removed[name] = struct{}{}
			}
		}
		guard := c.cfg.Guard.guard(have)
		if slices.Contains(s.predecessors, have.cluster) {
			guard.AcceptCluster = u.GetCluster()
		}
		if reason, vanished := guard.judge(have, next, removed); reason != "" {
			c.held = next
			c.status.Held = &Held{Reason: reason, Server: s.server, Cluster: next.cluster, Revision: next.revision, Services: len(next.entries), Vanished: vanished[:min(len(vanished), 100)], Since: time.Now()}
			c.log.Warn("a state is held back; traffic goes on as it is", zap.String("server", s.server), zap.String("reason", reason))
			if err := answer(&agentpb.Ack{Kind: agentpb.Ack_HELD, Reason: reason}); err != nil {
				return err
			}
			return errors.New("its state is held back: " + reason)
		}
	}
	if err := c.acceptLocked(next, u); err != nil {
		return err
	}
	return answer(&agentpb.Ack{Kind: agentpb.Ack_RECEIVED})
}
