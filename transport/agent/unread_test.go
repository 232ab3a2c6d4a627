package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// An agent that acknowledges what it has not read, so that more is sent to it than
// its connection takes, makes no other agent wait, and is ended.
func TestAgentThatAcknowledgesUnread(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	s, addr, stop := serve(t, store, 7, func(c *ServerConfig) {
		c.HeartbeatInterval, c.SilenceTimeout, c.SendTimeout = time.Second, 5*time.Minute, 5*time.Minute
	})
	liar, leave := raw(t, addr)
	defer leave()
	if err := liar.Send(helloOf(&agentpb.Hello{Name: "liar"})); err != nil {
		t.Fatal(err)
	}
	liarNow := func() AgentInfo {
		for _, a := range s.Agents() {
			if a.Name == "liar" {
				return a
			}
		}
		return AgentInfo{Connected: true}
	}
	var r recorder
	follow(t, t.TempDir(), &r, nil, addr)
	until(t, "both are served", func() bool { return r.last().Revision == 1 && liarNow().Sent == 1 })
	big := lbstate.Service{Name: "big", VIP: netip.MustParseAddr("192.0.2.10"), Port: 2}
	for i := range 250 {
		big.Backends = append(big.Backends, lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, 1, 1, byte(1 + i)})})
	}
	revision := uint64(1)
	for i := 0; liarNow().Connected; i++ {
		if i == 500 {
			t.Fatal("the agent goes on for ever")
		}
		if err := liar.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: &agentpb.Ack{Kind: agentpb.Ack_RECEIVED, Revision: revision}}}); err != nil {
			break
		}
		big.Port = 2 + i
		res, err := store.PutService(t.Context(), big, lbstate.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		revision = res.Revision
		until(t, "the other agent has the change", func() bool { return r.last().Revision == revision })
		until(t, "the change is sent to both", func() bool { a := liarNow(); return a.Sent == revision || !a.Connected })
	}
	if a := liarNow(); !strings.Contains(a.Problem, "does not read") {
		t.Errorf("%+v", a)
	}
	stop()
}
