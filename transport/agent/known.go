package agent

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// known remembers the agents of one server: soft state, bounded.
type known struct {
	limit int
	keep  time.Duration

	mu     sync.Mutex // guards the fields below
	agents map[string]*AgentInfo
	swept  time.Time // when those gone for long were last looked for
}

func newKnown(limit int, keep time.Duration) *known {
	return &known{limit: limit, keep: keep, agents: map[string]*AgentInfo{}}
}

func (k *known) connected(h Hello, server string, takeover bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget()
	a := k.agents[h.Name]
	if a == nil {
		a = &AgentInfo{Name: h.Name}
		k.agents[h.Name] = a
	}
	now := time.Now()
	a.Address, a.Labels, a.Version, a.Server = h.Address, h.Labels, h.Version, server
	a.Connected, a.Since, a.LastHeard, a.Problem, a.Rejected = true, now, now, "", ""
	a.Connects++
	if takeover {
		a.Takeovers++
	}
}

func (k *known) disconnected(name, problem string) {
	k.update(name, func(a *AgentInfo) { a.Connected, a.Since, a.Problem = false, time.Now(), problem })
}

func (k *known) update(name string, change func(*AgentInfo)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.agents[name]; a != nil {
		change(a)
	}
}

// acked takes an acknowledgement into the account.
func (k *known) acked(name string, ack *agentpb.Ack) {
	k.update(name, func(a *AgentInfo) {
		a.LastHeard = time.Now()
		switch ack.GetKind() {
		case agentpb.Ack_RECEIVED:
			a.Received, a.Held, a.Rejected = ack.GetRevision(), "", ""
		case agentpb.Ack_APPLIED, agentpb.Ack_PARTIAL:
			a.AppliedRevision, a.Applied = ack.GetRevision(), appliedFromProto(ack.GetApplied())
			a.Received = max(a.Received, ack.GetRevision())
		case agentpb.Ack_HELD:
			a.Held = clip(ack.GetReason())
		case agentpb.Ack_REJECTED, agentpb.Ack_FAILED:
			a.Rejected = clip(ack.GetReason())
		}
	})
}

// clip bounds what an agent's reason takes in this server's memory.
func clip(reason string) string { return reason[:min(len(reason), maxReason)] }

const maxReason = 1024

// forget drops who has been gone for long, and the longest gone where there
// are too many. The caller holds mu.
func (k *known) forget() {
	// Not at each call: after a server's death thousands of agents come at once.
	if time.Since(k.swept) > min(k.keep, time.Second) {
		k.swept = time.Now()
		for name, a := range k.agents {
			if !a.Connected && time.Since(a.Since) > k.keep {
				delete(k.agents, name)
			}
		}
	}
	for len(k.agents) >= k.limit {
		oldest := ""
		for name, a := range k.agents {
			if !a.Connected && (oldest == "" || a.Since.Before(k.agents[oldest].Since)) {
				oldest = name
			}
		}
		if oldest == "" {
			return
		}
		delete(k.agents, oldest)
	}
}

func (k *known) list() []AgentInfo {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget()
	list := make([]AgentInfo, 0, len(k.agents))
	for _, a := range k.agents {
		list = append(list, *a)
	}
	slices.SortFunc(list, func(a, b AgentInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
