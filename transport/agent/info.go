package agent

import (
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// AgentInfo is what one server knows of one agent.
type AgentInfo struct {
	Name            string            `json:"name"`
	Address         string            `json:"address"` // host:port of its end of the connection
	Labels          map[string]string `json:"labels,omitempty"`
	Version         string            `json:"version,omitempty"`
	Server          string            `json:"server"` // whose account this is
	Connected       bool              `json:"connected"`
	Since           time.Time         `json:"since"` // of being, or not being, connected
	LastHeard       time.Time         `json:"last_heard"`
	Sent            uint64            `json:"sent_revision"`
	Received        uint64            `json:"received_revision"` // durable in its journal
	AppliedRevision uint64            `json:"applied_revision"`
	Applied         lbstate.Applied   `json:"applied"`
	Held            string            `json:"held,omitempty"`     // why it holds a state back
	Rejected        string            `json:"rejected,omitempty"` // why it refused the last update
	Problem         string            `json:"problem,omitempty"`  // what ended its last stream, if not the agent
	Connects        int               `json:"connects"`           // streams since it is known
	Takeovers       int               `json:"takeovers"`          // streams that ended because another came with its name
}
