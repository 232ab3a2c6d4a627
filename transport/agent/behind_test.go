package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// An agent that acknowledges late, after more changes than its view remembers, is
// sent what changed since what it has, and all of it.
func TestAgentBehindWhatTheViewRemembers(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	s, addr, _ := serve(t, store, 7, func(c *ServerConfig) { c.SilenceTimeout = time.Minute })
	stream, _ := raw(t, addr)
	if err := stream.Send(helloOf(&agentpb.Hello{Name: "late"})); err != nil {
		t.Fatal(err)
	}
	a := assembler{limit: 64 << 20}
	update := func() *agentpb.Update {
		t.Helper()
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetChunk() == nil {
				continue
			}
			if u, err := a.add(m.GetChunk()); err != nil {
				t.Fatal(err)
			} else if u != nil {
				return u
			}
		}
	}
	first := update()
	have := new(state).apply(first)
	v := viewOf(s, map[string]string{})
	var last uint64
	for i := range 2 * keptSteps {
		last = put(t, store, fmt.Sprintf("more-%03d", i), 1000+i, nil)
		// Each change is a step of its own.
		until(t, "the view has the change", func() bool { m, _ := v.state(); return m.revision == last })
	}
	if err := stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: &agentpb.Ack{Kind: agentpb.Ack_RECEIVED, Revision: first.GetRevision()}}}); err != nil {
		t.Fatal(err)
	}
	next := update()
	if next.GetFull() || next.GetSince() != have.revision || next.GetRevision() != last {
		t.Errorf("since %d to %d, full %v; want a change from %d to %d", next.GetSince(), next.GetRevision(), next.GetFull(), have.revision, last)
	}
	if got := have.apply(next); got.sum(false) != next.GetDigest() {
		t.Errorf("%d of %d services, and another digest than the server's", len(got.entries), 1+2*keptSteps)
	}
}
