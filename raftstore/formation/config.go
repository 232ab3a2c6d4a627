package formation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Store is what formation needs of a *raftstore.Store. Its methods may be called
// from any goroutine.
type Store interface {
	// Identity never blocks. Its Cluster is zero until Found or Join succeeded.
	Identity() raftstore.Identity
	// Founding returns the record that this node has accepted.
	Founding() (raftstore.Founding, bool)
	// Found accepts a founding record: durable when it returns nil, at most one
	// ever, nil again for the equal record.
	Found(raftstore.Founding) error
	// Join accepts a membership, for a node that has accepted nothing yet.
	Join(raftstore.Membership) error
	// AddMember enters a node in the cluster; on the leader only. It is idempotent
	// for each incarnation.
	AddMember(context.Context, raftstore.Member) (raftstore.Membership, error)
	// Members are the members as this node knows them.
	Members() []raftstore.Member
	// Status tells who leads, as far as this node knows.
	Status() raftstore.Status
}

// Config says which servers are meant to form one cluster. Store is required.
type Config struct {
	Store Store

	// List holds the HTTP addresses of the servers of the cluster, this one among
	// them, in any order and spelling. Empty means this node alone. A node that is
	// not on its list never forms a cluster; it joins one.
	List []string

	// Self is this node's own announced HTTP address. Empty means the one of the
	// store's identity, which it must equal otherwise.
	Self string

	// Without holds addresses of List whose servers a person declares absent, so
	// that the others form the cluster without waiting for them. It must be the
	// same on all of these, and fewer than half of List. Whoever sets it vouches
	// that the absent are empty or will be wiped, and that no one forms a cluster
	// of them.
	Without []string

	// Client makes the requests. Nil means one of its own, without proxy. It
	// should not follow redirects.
	Client *http.Client

	// Scheme is http, the default, or https.
	Scheme string

	// PollInterval is the pause between two rounds of questions; zero means
	// 250 ms. RequestTimeout bounds one question; zero means 2 s. JoinTimeout
	// bounds a request to join, which waits for a commit; zero means 15 s.
	PollInterval   time.Duration
	RequestTimeout time.Duration
	JoinTimeout    time.Duration

	// Logger is named "formation"; nil is silent.
	Logger *zap.Logger
}

// maxServers bounds a list and a founding record.
const maxServers = 64

func (c Config) withDefaults() Config {
	if c.Store != nil && c.Self == "" {
		c.Self = c.Store.Identity().HTTPAddr
	}
	if len(c.List) == 0 {
		c.List = []string{c.Self}
	}
	if c.Scheme == "" {
		c.Scheme = "http"
	}
	if c.PollInterval == 0 {
		c.PollInterval = 250 * time.Millisecond
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 2 * time.Second
	}
	if c.JoinTimeout == 0 {
		c.JoinTimeout = 15 * time.Second
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("formation")
	return c
}

// validate returns the normalized addresses.
func (c Config) validate() (self string, list, without []string, err error) {
	fail := func(err error) (string, []string, []string, error) {
		return "", nil, nil, fmt.Errorf("formation: %w", err)
	}
	if c.Store == nil {
		return fail(errors.New("Config.Store is nil"))
	}
	if c.Scheme != "http" && c.Scheme != "https" {
		return fail(fmt.Errorf("scheme is %q, it must be http or https", c.Scheme))
	}
	if c.PollInterval < 0 || c.RequestTimeout < 0 || c.JoinTimeout < 0 {
		return fail(errors.New("a time is negative"))
	}
	if self, err = normalize(c.Self); err != nil {
		return fail(fmt.Errorf("this node's own HTTP address: %w", err))
	}
	if announced := c.Store.Identity().HTTPAddr; !sameAddress(self, announced) {
		return fail(fmt.Errorf("this node's own HTTP address is %s here and %s in its store", self, announced))
	}
	if list, err = normalizeList(c.List); err != nil {
		return fail(fmt.Errorf("list of servers: %w", err))
	}
	if len(list) > maxServers {
		return fail(fmt.Errorf("the list has %d servers, at most %d are allowed", len(list), maxServers))
	}
	if without, err = normalizeList(c.Without); err != nil {
		return fail(fmt.Errorf("servers declared absent: %w", err))
	}
	for _, w := range without {
		if w == self {
			return fail(fmt.Errorf("%s is this node, it cannot be declared absent", w))
		}
		if !slices.Contains(list, w) {
			return fail(fmt.Errorf("%s is declared absent and not on the list %v", w, list))
		}
	}
	if 2*len(without) >= len(list) && len(without) > 0 {
		return fail(fmt.Errorf("%d of %d servers are declared absent; only fewer than half can be, for the others must not be able to form a cluster too", len(without), len(list)))
	}
	return self, list, without, nil
}
