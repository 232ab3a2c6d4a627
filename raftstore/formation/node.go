package formation

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Node brings one server into a cluster: by forming it together with the others
// of its list, or by joining one that exists.
type Node struct {
	cfg           Config
	store         Store
	log           *zap.Logger
	self          string   // own address, normalized
	list, without []string // normalized and sorted
	client        client
	woken         chan struct{} // a token when a record was accepted through the handler
	decide        func(self Info, selfAddress string, answers []answer) decision

	mu       sync.Mutex // guards the fields below
	progress Progress
	logged   time.Time // when progress was last logged
}

// New makes a Node. Its error names what is wrong with the configuration.
func New(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	self, list, without, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	hc := cfg.Client
	if hc == nil {
		hc = directClient()
	}
	return &Node{
		cfg: cfg, store: cfg.Store, log: cfg.Logger, self: self, list: list, without: without,
		client: client{http: hc, scheme: cfg.Scheme, timeout: cfg.RequestTimeout, join: cfg.JoinTimeout},
		woken:  make(chan struct{}, 1),
		decide: decide,
		progress: Progress{
			Phase: Forming, Waiting: []Waiting{{Address: self, Reason: "formation has not begun"}},
		},
	}, nil
}

func (n *Node) wake() {
	select {
	case n.woken <- struct{}{}:
	default:
	}
}

// Run brings the node into a cluster and then sees to it that each founder has
// the founding record. It returns nil when both are done or ctx has ended, and
// an error when only a person can go on: the list leads to two clusters, two
// servers have one name, an address names this very node, this program is older
// than what the cluster accepts, or the store cannot make the identity durable. It may be called once.
func (n *Node) Run(ctx context.Context) error {
	if n.cfg.Client == nil {
		defer n.client.http.CloseIdleConnections()
	}
	err := n.enter(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		n.show(Progress{Phase: Stopped, Problem: err.Error()})
		return err
	}
	id := n.store.Identity()
	n.log.Info("node is in a cluster", zap.String("cluster", fmt.Sprintf("%x", id.Cluster)),
		zap.String("member", fmt.Sprintf("%x", id.Member)))
	n.spread(ctx)
	return nil
}

// enter returns when the node has an identity or ctx has ended.
func (n *Node) enter(ctx context.Context) error {
	others := slices.DeleteFunc(slices.Clone(n.list), func(a string) bool { return a == n.self })
	for ctx.Err() == nil && n.store.Identity().Cluster == 0 {
		answers := n.client.poll(ctx, others)
		if ctx.Err() != nil {
			return nil
		}
		self := n.info()
		if self.Cluster != 0 {
			return nil // a record was accepted meanwhile
		}
		d := n.decide(self, n.self, answers)
		if d.action == stop {
			return d.err
		}
		if d.action != wait {
			if err := n.act(ctx, d); err != nil {
				return err
			}
		} else {
			n.show(Progress{Phase: Forming, Waiting: d.waiting})
		}
		if n.store.Identity().Cluster != 0 {
			return nil
		}
		n.pause(ctx, n.cfg.PollInterval)
	}
	return nil
}

func (n *Node) act(ctx context.Context, d decision) error {
	switch d.action {
	case found:
		f, err := newFounding(d.founders)
		if err != nil {
			return err
		}
		if err := n.take(f); err != nil {
			return err
		}
		if n.store.Identity().Cluster == f.Cluster {
			n.log.Info("cluster founded", zap.String("cluster", fmt.Sprintf("%x", f.Cluster)), zap.Int("founders", len(f.Founders)))
		}
		return nil
	case accept:
		bad := acceptable(d.founding, n.store.Identity())
		if bad == nil {
			return n.take(d.founding)
		}
		n.show(Progress{Phase: Forming, Cluster: d.cluster, Problem: bad.Error()})
	case join:
		p := Progress{Phase: Joining, Cluster: d.cluster, Waiting: []Waiting{{Address: d.ask[0], Reason: "is asked for a place in its cluster"}}}
		if was := n.Progress(); was.Phase == p.Phase && was.Cluster == p.Cluster {
			p.Problem = was.Problem // until this attempt has its own outcome
		}
		n.show(p)
		if err := n.join(ctx, d.cluster, d.ask); err != nil && ctx.Err() == nil {
			p.Problem = err.Error()
			n.show(p)
		}
	}
	return nil
}

// take makes a record durable. That another was first is no failure: the node
// has its identity from that one.
func (n *Node) take(f raftstore.Founding) error {
	err := n.store.Found(f)
	if err != nil && n.store.Identity().Cluster != 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("formation: make the founding record durable: %w", err)
	}
	return nil
}

// join asks for a place until one is given or all have refused. It follows where
// it is sent a few times, since leadership may move meanwhile.
func (n *Node) join(ctx context.Context, cluster uint64, ask []string) error {
	id := n.store.Identity()
	req := JoinRequest{Cluster: cluster, Incarnation: id.Incarnation, Name: id.Name, RaftAddr: id.RaftAddr, HTTPAddr: id.HTTPAddr, Versions: id.Versions}
	asked := map[string]bool{}
	var errs []error
	for len(ask) > 0 && len(asked) < 2*maxServers && ctx.Err() == nil {
		address := ask[0]
		ask = ask[1:]
		if asked[address] {
			continue
		}
		asked[address] = true
		m, err := n.client.ask(ctx, address, req)
		if err == nil {
			err = n.enroll(cluster, m)
			if err == nil {
				return nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		var r *refusal
		if errors.As(err, &r) && r.status == http.StatusMisdirectedRequest && r.Leader != "" {
			errs = errs[:len(errs)-1] // it has only shown the way
			ask = slices.Insert(ask, 0, r.Leader)
		}
	}
	return errors.Join(errs...)
}

// enroll checks the leader's answer and makes it durable.
func (n *Node) enroll(cluster uint64, m raftstore.Membership) error {
	id := n.store.Identity()
	if m.Cluster != cluster || m.Member == 0 {
		return fmt.Errorf("it offers member %x of cluster %x, asked for a place in %x", m.Member, m.Cluster, cluster)
	}
	if !slices.ContainsFunc(m.Members, func(e raftstore.Member) bool { return e.ID == m.Member && e.Incarnation == id.Incarnation }) {
		return fmt.Errorf("it offers member %x, which is not this node in the list of members that it sends", m.Member)
	}
	if err := n.store.Join(m); err != nil {
		return fmt.Errorf("make the membership durable: %w", err)
	}
	n.log.Info("cluster joined", zap.String("cluster", fmt.Sprintf("%x", m.Cluster)), zap.Int("members", len(m.Members)))
	return nil
}

// pause waits for about d, or less if a record arrives.
func (n *Node) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + mathrand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-n.woken:
	}
}

// newFounding makes the record of a cluster of nodes.
func newFounding(nodes []Info) (raftstore.Founding, error) {
	f := raftstore.Founding{Cluster: randomID()}
	for _, i := range nodes {
		f.Founders = append(f.Founders, raftstore.Founder{
			Member: randomID(), Incarnation: i.Incarnation, Name: i.Name, RaftAddr: i.RaftAddr, HTTPAddr: i.HTTPAddr, Versions: i.Versions,
		})
	}
	slices.SortFunc(f.Founders, func(a, b raftstore.Founder) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	if err := checkFounding(f); err != nil {
		return f, fmt.Errorf("formation: these servers cannot form a cluster: %w", err)
	}
	return f, nil
}

// randomID returns a number from 1 to 2⁶³-1: raft keeps the highest ones for its
// own threads.
func randomID() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		if id := binary.LittleEndian.Uint64(b[:]) >> 1; id != 0 {
			return id
		}
	}
}
