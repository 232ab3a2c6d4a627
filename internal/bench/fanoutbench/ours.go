package fanoutbench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
	"github.com/ipvskit/ipvskit/transport/identity"
	"github.com/ipvskit/ipvskit/transport/peer"
)

// ourServer is one of three.
type ourServer struct {
	lb     *lbstate.Store
	store  *raftstore.Store
	agents *agent.Server
	grpc   *grpc.Server
	addr   string
	done   chan error
}

type ourCluster []*ourServer

func openOurs(dir string, source *identity.Source) (cluster, error) {
	var c ourCluster
	var founding raftstore.Founding
	founding.Cluster = 1
	for i := range 3 {
		name := fmt.Sprintf("n%d", i)
		transport, err := peer.New(peer.Config{ListenAddr: "127.0.0.1:0", ServerTLS: source.ServerTLS(identity.RoleServer), ClientTLS: source.ClientTLS()})
		if err != nil {
			return nil, err
		}
		state := lbstate.New(lbstate.Config{})
		store, err := raftstore.Open(raftstore.Config{
			Dir: filepath.Join(dir, name), Name: name, RaftAddr: transport.Addr().String(),
			StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state}, Transport: transport,
		})
		if err != nil {
			return nil, err
		}
		s := &ourServer{lb: lbstate.NewStore(state, store.Machine(lbstate.Bucket)), store: store, done: make(chan error, 1)}
		s.agents, err = agent.NewServer(agent.ServerConfig{
			Store: s.lb, ServerName: name, Cluster: func() uint64 { return store.Identity().Cluster }, Authenticator: source,
			Ready: func(ctx context.Context) error {
				_, err := s.lb.Revision(ctx, lbstate.ReadOptions{})
				return err
			},
		})
		if err != nil {
			return nil, err
		}
		s.grpc = grpc.NewServer(append(agent.ServerOptions(), grpc.Creds(agent.ServerCredentials(source.ServerTLS(identity.RoleAgent), nil)))...)
		s.agents.Register(s.grpc)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		s.addr = l.Addr().String()
		go func() { _ = s.grpc.Serve(l) }()
		founding.Founders = append(founding.Founders, raftstore.Founder{
			Member: uint64(i + 1), Incarnation: store.Identity().Incarnation, Name: name, RaftAddr: transport.Addr().String(),
		})
		c = append(c, s)
	}
	for _, s := range c {
		if err := s.store.Found(founding); err != nil {
			return nil, err
		}
		go func() { s.done <- s.store.Run(context.Background()) }()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range c {
		if err := s.store.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// order has a follower first, which serves the agents, and dies.
func (c ourCluster) order() []*ourServer {
	out := append(ourCluster(nil), c...)
	for i, s := range out {
		if leading, _, _ := s.store.Leadership(); leading {
			out[i], out[len(out)-1] = out[len(out)-1], out[i]
			break
		}
	}
	return out
}

func (c ourCluster) addresses() []string {
	var out []string
	for _, s := range c.order() {
		out = append(out, s.addr)
	}
	return out
}

func (c ourCluster) prepare(context.Context, string, []lbstate.Service) error { return nil }

// put writes a service by the leader.
func (c ourCluster) put(ctx context.Context, s lbstate.Service) (uint64, error) {
	order := c.order()
	r, err := order[len(order)-1].lb.PutService(ctx, s, lbstate.WriteOptions{})
	return r.Revision, err
}

// list is what an agent that polled would be sent each time.
func (c ourCluster) list(ctx context.Context) (int, error) {
	u, err := c[0].lb.Watch(lbstate.WatchOptions{}).Next(ctx)
	if err != nil {
		return 0, err
	}
	var r agentpb.ListResponse
	for _, s := range u.Services {
		r.Services = append(r.Services, lbstate.Desired(s).Proto())
	}
	return proto.Size(&r), nil
}

// kill ends the first of order, at once.
func (c ourCluster) kill() error {
	s := c.order()[0]
	s.grpc.Stop()
	s.agents.Close()
	return errors.Join(s.store.Close(), <-s.done)
}

// ourAgent is a simulated agent of ours.
type ourAgent struct {
	name              string
	cluster, revision uint64
	digest            uint64
}

func (a *ourAgent) follow(ctx context.Context, conn *grpc.ClientConn, had func(uint64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agentpb.NewAgentsClient(conn).Stream(ctx)
	if err != nil {
		return err
	}
	hello := &agentpb.Hello{Name: a.name, Cluster: a.cluster, Revision: a.revision, Digest: a.digest}
	if err := stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	acks := make(chan uint64, 16)
	go a.send(ctx, stream, acks)
	var parts []byte
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.GetBye() != nil {
			return errors.New(m.GetBye().GetReason())
		}
		if m.GetChunk() == nil {
			continue
		}
		parts = append(parts, m.GetChunk().GetData()...)
		if !m.GetChunk().GetLast() {
			continue
		}
		if err := a.take(parts); err != nil {
			return err
		}
		parts = nil
		acks <- a.revision
		had(a.revision)
	}
}

// take reads what leads an update, and leaves its services as they are, as an
// agent of etcd's does with its values: what decoding them costs is the agents'
// hosts' own matter, and here all agents share a machine with the servers.
func (a *ourAgent) take(update []byte) error {
	for len(update) > 0 {
		num, typ, n := protowire.ConsumeTag(update)
		if n < 0 {
			return protowire.ParseError(n)
		}
		update = update[n:]
		switch num {
		case clusterField:
			a.cluster, n = protowire.ConsumeVarint(update)
		case revisionField:
			a.revision, n = protowire.ConsumeVarint(update)
		case digestField:
			a.digest, n = protowire.ConsumeFixed64(update)
		default:
			n = protowire.ConsumeFieldValue(num, typ, update)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		update = update[n:]
	}
	return nil
}

var (
	updateFields  = (&agentpb.Update{}).ProtoReflect().Descriptor().Fields()
	clusterField  = updateFields.ByName("cluster").Number()
	revisionField = updateFields.ByName("revision").Number()
	digestField   = updateFields.ByName("digest").Number()
)

// send is the only sender: acknowledgements of what came, and heartbeats.
func (a *ourAgent) send(ctx context.Context, stream grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.ServerMessage], acks chan uint64) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	spoke := false
	for {
		kinds := []agentpb.Ack_Kind{agentpb.Ack_APPLIED} // as of an agent whose kernel takes less than 5 ms
		var revision uint64
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			kinds = nil
			if spoke { // as agents do
				spoke = false
				continue
			}
			if stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Heartbeat{Heartbeat: &agentpb.Heartbeat{}}}) != nil {
				return
			}
		case revision = <-acks:
			spoke = true
		}
		for _, kind := range kinds {
			ack := &agentpb.Ack{Kind: kind, Revision: revision, Applied: &agentpb.Applied{Revision: revision, Converged: true}}
			if stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: ack}}) != nil {
				return
			}
		}
	}
}
