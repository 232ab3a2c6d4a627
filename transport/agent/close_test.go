package agent

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Close also ends streams that are not served yet: while the server finds out
// whether it is ready, which may last as long as there is no quorum.
func TestCloseWhileAnAgentIsGreeted(t *testing.T) {
	asked := make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	s, addr, _ := serve(t, newStore(t), 7, func(c *ServerConfig) {
		c.SilenceTimeout = time.Hour
		c.Ready = func(ctx context.Context) error {
			once()
			<-ctx.Done()
			return ctx.Err()
		}
	})
	stream, leave := raw(t, addr)
	defer leave()
	if err := stream.Send(helloOf(&agentpb.Hello{Name: "early"})); err != nil {
		t.Fatal(err)
	}
	<-asked
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close() }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Error("Close waits for an agent that is not served")
		leave()
		<-closed
	}
	wantBye(t, stream, agentpb.Bye_STOPPING, "stops")
}
