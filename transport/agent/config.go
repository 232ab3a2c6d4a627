package agent

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Applier makes this host equal to a view. *reconcile.Reconciler satisfies it.
type Applier interface {
	// Apply is called with one view at a time, the latest; views that came
	// while it ran are skipped. The view is the callee's to keep and must not
	// be changed. What could not be made is reported in Applied.Failures, and
	// trying it again is the applier's own matter. An error means that nothing
	// is known: Apply is called again, with back-off, with the latest view. It
	// must return soon after ctx ends.
	Apply(ctx context.Context, v lbstate.View) (lbstate.Applied, error)
}

// Reporter is what an Applier may also be: it reports later accounts of the
// view that it applied last, after retries, repairs and drains.
type Reporter interface {
	Reports() <-chan lbstate.Applied
}

// ErrNothingHeld says that there is no state to release.
var ErrNothingHeld = errors.New("no state is held back")

// ClientConfig configures a Client.
type ClientConfig struct {
	Servers []string // required: host:port of each server
	Name    string   // required: unique among the agents
	Dir     string   // required: directory of the journal, made if it is missing
	Applier Applier  // required

	Labels   map[string]string // told to the servers
	Version  string            // of the program
	Features []string

	// Credentials secure the connections. Nil is plain text, which is refused
	// for servers that are not on loopback unless Insecure is set.
	Credentials credentials.TransportCredentials
	Insecure    bool
	Renewer     Renewer           // keeps Credentials fresh; nil leaves that to others
	DialOptions []grpc.DialOption // added to the client's own

	Guard Guard

	ConnectTimeout time.Duration // until a server's welcome; default 5s
	MinBackoff     time.Duration // after all servers were tried; default 200ms
	MaxBackoff     time.Duration // default 5s
	// RebalanceInterval is about how often an agent that is served by another
	// server than its own looks whether that is back, and goes there. Default 5m;
	// negative is never.
	RebalanceInterval time.Duration
	RenewSpread       time.Duration // within which agents renew when servers trust another authority; default 30s
	MaxUpdate         int           // bytes of one update; default 256 MiB
	Logger            *zap.Logger   // nil is silent

	countEvery time.Duration // fineSpan, but for tests
}

// ClientStatus is a copy of what a client knows of itself.
type ClientStatus struct {
	Name            string          `json:"name"`
	Cluster         uint64          `json:"cluster,string"` // 0: nothing accepted yet
	Revision        uint64          `json:"revision"`       // accepted and durable
	AppliedRevision uint64          `json:"applied_revision"`
	Services        int             `json:"services"`
	Applied         lbstate.Applied `json:"applied"`
	ApplyError      string          `json:"apply_error,omitempty"` // why the last Apply failed as a whole
	Connected       bool            `json:"connected"`
	Server          string          `json:"server,omitempty"`      // address
	ServerName      string          `json:"server_name,omitempty"` // as it calls itself
	LastHeard       time.Time       `json:"last_heard,omitzero"`
	LastError       string          `json:"last_error,omitempty"` // why the last stream ended or could not begin
	Held            *Held           `json:"held,omitempty"`
	Journal         JournalStatus   `json:"journal"`
}

// Held is a state that the guard keeps from the kernel.
type Held struct {
	Reason   string    `json:"reason"`
	Server   string    `json:"server"`
	Cluster  uint64    `json:"cluster,string"`
	Revision uint64    `json:"revision"`
	Services int       `json:"services"`
	Vanished []string  `json:"vanished,omitempty"` // services that would go without an explicit removal
	Since    time.Time `json:"since"`
}

// JournalStatus is the journal's condition.
type JournalStatus struct {
	Bytes    int64  `json:"bytes"`
	TornTail int64  `json:"torn_tail,omitempty"` // bytes of an unfinished append, cut off at start
	Damage   string `json:"damage,omitempty"`    // what was found at start; its state was not applied
	Error    string `json:"error,omitempty"`     // why the last write failed
}
