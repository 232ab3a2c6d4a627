package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Authenticator knows agents by their certificates. *identity.Source satisfies
// it. Its methods must be quick, and safe for concurrent use.
type Authenticator interface {
	// Agent returns the name and the labels that a connection's certificate
	// proves. It is asked when a stream begins, and about once a heartbeat while
	// it lasts; an error refuses the agent, or ends its stream.
	Agent(tls.ConnectionState) (name string, labels map[string]string, err error)

	// Trust stands for the authorities that this server trusts, if it can renew
	// credentials; otherwise it is 0.
	Trust() uint64

	// Renew answers a certificate request with a new credential for the agent
	// that the connection's certificate proves, and no other.
	Renew(state tls.ConnectionState, request []byte) (credential []byte, err error)
}

// Renewer keeps an agent's credential fresh. *identity.Source satisfies it. Its
// methods are called by one goroutine.
type Renewer interface {
	// Due says whether the credential should be renewed. trust is what the
	// server's Authenticator says of itself; 0 is not known.
	Due(trust uint64) bool
	// Request makes a certificate request.
	Request() ([]byte, error)
	// Accept takes the answer to the last request.
	Accept(credential []byte) error
}

const (
	maxRequest = 16 << 10         // bytes of a certificate request
	renewEvery = 10 * time.Second // of one stream
)

// admit proves who the agent is. With an Authenticator name and labels come from
// the certificate: a hello that claims others is refused, so that nobody wonders
// why a label selects nothing.
func (s *Server) admit(ctx context.Context, hello *Hello) (credentials.AuthInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		p = &peer.Peer{}
	} else {
		hello.Address = p.Addr.String()
	}
	if s.cfg.Authenticator == nil {
		return nil, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, errors.New("this server takes agents by certificate, and the connection is not TLS: give the agent its credential")
	}
	name, labels, err := s.cfg.Authenticator.Agent(info.State)
	if err != nil {
		return nil, err
	}
	if name != hello.Name {
		return nil, fmt.Errorf("the certificate is that of agent %q, and the agent calls itself %q: one credential is for one agent", name, hello.Name)
	}
	for k, v := range hello.Labels {
		if proved, ok := labels[k]; !ok || proved != v {
			return nil, fmt.Errorf("the agent claims label %s=%s, and its certificate proves %v: labels come from the credential alone; issue one with this label", k, v, labels)
		}
	}
	hello.Labels = labels
	return p.AuthInfo, nil // shared with the connection: a copy for each stream would cost as much as the stream
}

// proved says whether the stream's certificate is still good.
func (st *stream) proved() error {
	info, ok := st.auth.(credentials.TLSInfo)
	if !ok {
		return nil
	}
	_, _, err := st.server.cfg.Authenticator.Agent(info.State)
	return err
}

// renew answers a certificate request.
func (st *stream) renew(r *agentpb.Renew) error {
	answer := &agentpb.Credential{}
	info, known := st.auth.(credentials.TLSInfo)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.answers++; st.answers > maxAnswers {
		return &farewell{agentpb.Bye_SLOW, "the agent asks and does not read"}
	}
	switch {
	case !known:
		answer.Refused = "this server does not know agents by certificate"
	case len(r.GetRequest()) > maxRequest:
		answer.Refused = fmt.Sprintf("a certificate request of %d bytes; at most %d are taken", len(r.GetRequest()), maxRequest)
	case !st.renewed.IsZero() && time.Since(st.renewed) < renewEvery:
		answer.Refused = fmt.Sprintf("a second request within %v", renewEvery)
	default:
		st.renewed = time.Now()
		var err error
		if answer.Credential, err = st.server.cfg.Authenticator.Renew(info.State, r.GetRequest()); err != nil {
			answer.Refused = err.Error()
		}
	}
	st.server.log.Info("an agent renews its credential", zap.String("agent", st.hello.Name), zap.String("refused", answer.Refused))
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Credential{Credential: answer}})
	if st.sender == nil {
		st.answers = 0
	}
	return nil
}

func (s *Server) heartbeat() *agentpb.ServerMessage {
	beat := &agentpb.Heartbeat{}
	if s.cfg.Authenticator != nil {
		beat.Trust = s.cfg.Authenticator.Trust()
	}
	return &agentpb.ServerMessage{Message: &agentpb.ServerMessage_Heartbeat{Heartbeat: beat}}
}

// ServerCredentials are TLS credentials for the gRPC server that agents dial.
// They log who is refused, and why, which gRPC itself does not. A nil logger is
// silent.
func ServerCredentials(cfg *tls.Config, log *zap.Logger) credentials.TransportCredentials {
	if log == nil {
		log = zap.NewNop()
	}
	// Anyone may connect: what they make us log is bounded.
	log = log.Named("agents").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Second, 5, 0)
	}))
	return &loggedCredentials{credentials.NewTLS(cfg), log}
}

type loggedCredentials struct {
	credentials.TransportCredentials
	log *zap.Logger
}

func (c *loggedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.log.Warn("connection refused", zap.Stringer("remote", raw.RemoteAddr()), zap.Error(err))
	}
	return conn, info, err
}

func (c *loggedCredentials) Clone() credentials.TransportCredentials {
	return &loggedCredentials{c.TransportCredentials.Clone(), c.log}
}

// renewal is a client's side of keeping its credential fresh. It belongs to the
// goroutine that receives.
type renewal struct {
	next  time.Time // no request before
	asked bool      // an answer is due
}

const renewAgain = 5 * time.Minute // after a request

// renewIfDue asks for a new credential when it is time. trust is from a
// heartbeat.
func (s *session) renewIfDue(trust uint64) {
	r, now := s.client.cfg.Renewer, time.Now()
	if r == nil || trust == 0 || !r.Due(trust) {
		return
	}
	if s.renewal.next.IsZero() { // all agents see a new authority at once, and must not all ask at once
		s.renewal.next = now.Add(rand.N(s.client.cfg.RenewSpread))
	}
	if now.Before(s.renewal.next) {
		return
	}
	s.renewal.next = now.Add(renewAgain)
	request, err := r.Request()
	if err != nil {
		s.client.log.Error("the credential cannot be renewed", zap.Error(err))
		return
	}
	select {
	case s.requests <- request:
		s.renewal.asked = true
	default: // the one before has not left yet
	}
}

func (s *session) renewed(c *agentpb.Credential) {
	log := s.client.log
	if !s.renewal.asked {
		log.Warn("a credential arrives that was not asked for", zap.String("server", s.server))
		return
	}
	s.renewal.asked = false
	if c.GetRefused() != "" {
		log.Error("the server does not renew this agent's credential", zap.String("server", s.server), zap.String("reason", c.GetRefused()))
		return
	}
	if err := s.client.cfg.Renewer.Accept(c.GetCredential()); err != nil {
		log.Error("the renewed credential is not used", zap.String("server", s.server), zap.Error(err))
		return
	}
	log.Info("the credential is renewed", zap.String("server", s.server))
}

// explained adds to a TLS alert, which says little, where more is said.
func explained(err error) error {
	if err != nil && strings.Contains(err.Error(), "remote error: tls: ") {
		return fmt.Errorf("the server refuses this agent's certificate, and its log says why: %w", err)
	}
	return err
}
