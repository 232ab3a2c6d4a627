package formation

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/raftstore"
)

// maxSpreadPause is the longest pause between two attempts to give founders
// their record.
const maxSpreadPause = 15 * time.Second

// spread gives the founding record to every founder that is still a member,
// until all have it. Every founder does so, so that the coordinator's end leaves
// nothing undone. A node that joined has nothing to give.
func (n *Node) spread(ctx context.Context) {
	f, ok := n.store.Founding()
	if !ok {
		n.show(Progress{Phase: Done, Cluster: n.store.Identity().Cluster})
		return
	}
	self := n.store.Identity().Member
	have := map[uint64]bool{}
	pause := n.cfg.PollInterval
	for ctx.Err() == nil {
		leader, _ := n.leader()
		if leader == 0 {
			clear(have) // who had it may have lost its disk since
		}
		have[self] = true
		lacking := n.lacking(f, have)
		if len(lacking) == 0 {
			n.show(Progress{Phase: Done, Cluster: f.Cluster})
			return
		}
		results := n.offer(ctx, f, lacking)
		if ctx.Err() != nil {
			return
		}
		p := Progress{Phase: Spreading, Cluster: f.Cluster}
		lost := 0
		for i, m := range lacking {
			r := results[i]
			if r.err == nil {
				have[m.Member] = true
				pause = n.cfg.PollInterval
				continue
			}
			if r.never {
				lost++
			}
			p.Waiting = append(p.Waiting, Waiting{Address: m.HTTPAddr, Reason: r.err.Error()})
		}
		switch {
		case leader != 0 || lost == 0:
		case 2*(len(f.Founders)-lost) > len(f.Founders):
			p.Problem = fmt.Sprintf("cluster %x has no leader at present: a quorum of its members must be up", f.Cluster)
		default:
			p.Problem = fmt.Sprintf("cluster %x cannot get a quorum: %d of its %d founders will never have its founding record; if it was never in use, wipe this node's data directory and start it again",
				f.Cluster, lost, len(f.Founders))
		}
		if len(p.Waiting) > 0 {
			n.show(p)
			n.pause(ctx, pause)
			pause = min(2*pause, maxSpreadPause)
		}
	}
}

// lacking returns the founders that are not known to have the record and are
// still members.
func (n *Node) lacking(f raftstore.Founding, have map[uint64]bool) []raftstore.Founder {
	members := n.store.Members()
	var out []raftstore.Founder
	for _, m := range f.Founders {
		if !have[m.Member] && isMember(members, m.Member) {
			out = append(out, m)
		}
	}
	return out
}

// offered is what became of a record that was offered to one founder.
type offered struct {
	err   error // nil: it has the record
	never bool  // it is there no more: another node answers, or it is elsewhere
}

// offer offers the record to all of to at once.
func (n *Node) offer(ctx context.Context, f raftstore.Founding, to []raftstore.Founder) []offered {
	results := make([]offered, len(to))
	var all sync.WaitGroup
	for i, m := range to {
		all.Go(func() { results[i] = n.offerOne(ctx, f, m) })
	}
	all.Wait()
	return results
}

func (n *Node) offerOne(ctx context.Context, f raftstore.Founding, m raftstore.Founder) offered {
	info, err := n.client.found(ctx, m.HTTPAddr, f)
	if err == nil {
		if info.Cluster == f.Cluster && info.Incarnation == m.Incarnation {
			return offered{}
		}
		return offered{err: fmt.Errorf("%s answers for founder %q with incarnation %x and cluster %x", m.HTTPAddr, m.Name, info.Incarnation, info.Cluster)}
	}
	var r *refusal
	if !errors.As(err, &r) || r.Node == nil {
		return offered{err: fmt.Errorf("does not take the founding record: %w", err)}
	}
	switch {
	case r.Node.Incarnation != m.Incarnation && r.Node.Cluster == f.Cluster:
		return offered{never: true, err: fmt.Errorf("founder %q has lost its disk and is in the cluster as a new member", m.Name)}
	case r.Node.Incarnation != m.Incarnation:
		return offered{never: true, err: fmt.Errorf("founder %q has lost its disk; the node there now (incarnation %x) must join as a new member", m.Name, r.Node.Incarnation)}
	case r.Node.Cluster != 0 && r.Node.Cluster != f.Cluster:
		return offered{never: true, err: fmt.Errorf("founder %q is in another cluster, %x", m.Name, r.Node.Cluster)}
	}
	return offered{err: fmt.Errorf("refuses the founding record: %w", err)}
}
