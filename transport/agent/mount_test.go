package agent

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// watched is a stream as a user's interceptor sees it.
type watched struct {
	grpc.ServerStream
	in, out *atomic.Int64
}

func (w *watched) RecvMsg(m any) error {
	err := w.ServerStream.RecvMsg(m)
	if _, ok := m.(*agentpb.AgentMessage); ok && err == nil {
		w.in.Add(1)
	}
	return err
}

func (w *watched) SendMsg(m any) error {
	if _, ok := m.(*agentpb.ServerMessage); ok {
		w.out.Add(1)
	}
	return w.ServerStream.SendMsg(m)
}

// The service is mounted on a user's own gRPC server, without ServerOptions,
// beside another service and behind interceptors; the client takes some, too.
func TestOnAServerOfOnesOwn(t *testing.T) {
	store := newStore(t)
	rev := put(t, store, "one", 1, nil)
	s, err := NewServer(ServerConfig{Store: store, Cluster: func() uint64 { return 7 }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var in, out, unary, dialed atomic.Int64
	g := grpc.NewServer(
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, &watched{ss, &in, &out})
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			unary.Add(1)
			return next(ctx, r)
		}))
	s.Register(g)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { s.Close(); g.Stop(); <-done })

	var r recorder
	c, err := NewClient(ClientConfig{
		Servers: []string{l.Addr().String()}, Name: "a1", Dir: t.TempDir(), Applier: &r, MinBackoff: time.Millisecond,
		DialOptions: []grpc.DialOption{grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			dialed.Add(1)
			return next(ctx, d, cc, method, o...)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	defer ended(t, cancel, ran)
	until(t, "the state", func() bool { return r.last().Revision == rev })
	until(t, "its acknowledgement", func() bool { a := s.Agents(); return len(a) == 1 && a[0].AppliedRevision == rev })
	if in.Load() < 2 || out.Load() < 2 || dialed.Load() == 0 {
		t.Errorf("the interceptors saw %d and %d messages, and %d streams", in.Load(), out.Load(), dialed.Load())
	}

	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Who polls is told once, and then that nothing has changed.
	agents := agentpb.NewAgentsClient(conn)
	all, err := agents.List(t.Context(), &agentpb.ListRequest{Name: "poller"})
	if err != nil || all.GetUnchanged() || len(all.GetServices()) != 1 || all.GetRevision() != rev || all.GetCluster() != 7 {
		t.Fatalf("%v, %v", all, err)
	}
	same, err := agents.List(t.Context(), &agentpb.ListRequest{Name: "poller", Cluster: 7, Revision: rev, Digest: all.GetDigest()})
	if err != nil || !same.GetUnchanged() || len(same.GetServices()) != 0 {
		t.Errorf("%v, %v", same, err)
	}
	if h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the other service: %v, %v", h, err)
	}
	if unary.Load() != 3 {
		t.Errorf("%d unary calls passed the interceptor", unary.Load())
	}
}
