package formation

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipvskit/ipvskit/raftstore"
)

// answer is what one server said in a round of questions, or why it did not.
type answer struct {
	address string // that was asked, normalized
	info    *Info  // nil if there was no answer
	err     error
}

type action uint8

const (
	wait   action = iota // ask again later
	found                // make the founding record: this node is the coordinator
	accept               // take the founding record that another founder has
	join                 // ask the cluster for a place
	stop                 // only a person can go on
)

// decision is what an empty node does after a round.
type decision struct {
	action   action
	founding raftstore.Founding // to accept
	founders []Info             // to found with, this node included
	cluster  uint64             // to join
	ask      []string           // to join: whom to ask, in this order
	waiting  []Waiting
	err      error // why to stop
}

// decide judges one round of questions. self is this node, which is empty, as it
// presents itself; selfAddress its own normalized address; answers are those of
// all other addresses of its list. It is a pure function.
func decide(self Info, selfAddress string, answers []answer) decision {
	if err := namesNodeTwice(self, selfAddress, answers); err != nil {
		return decision{action: stop, err: err}
	}
	if d, ok := followCluster(self, answers); ok {
		return d
	}

	// No one knows a cluster.
	if !slices.Contains(self.List, selfAddress) {
		return decision{waiting: []Waiting{{
			Address: strings.Join(self.List, ", "),
			Reason:  fmt.Sprintf("none of them knows a cluster; this node, %s, is not on the list, so it waits for one to join", selfAddress),
		}}}
	}
	d := decision{founders: []Info{self}}
	for _, a := range answers {
		if slices.Contains(self.Without, a.address) {
			continue
		}
		if reason := unlike(self, a); reason != "" {
			d.waiting = append(d.waiting, Waiting{Address: a.address, Reason: reason})
			continue
		}
		d.founders = append(d.founders, *a.info)
	}
	if err := clash(self, d.founders); err != nil {
		return decision{action: stop, err: err}
	}
	if len(d.waiting) > 0 {
		return decision{waiting: d.waiting}
	}
	for i, a := range d.founders {
		if err := clash(a, d.founders[i+1:]); err != nil {
			return decision{waiting: []Waiting{{Address: a.HTTPAddr, Reason: err.Error()}}}
		}
	}
	coordinator := self.List[slices.IndexFunc(self.List, func(a string) bool { return !slices.Contains(self.Without, a) })]
	if coordinator != selfAddress {
		return decision{waiting: []Waiting{{Address: coordinator, Reason: "all are present; it makes the founding record"}}}
	}
	d.action = found
	return d
}

// namesNodeTwice finds an entry of the list that leads back to this very node.
func namesNodeTwice(self Info, selfAddress string, answers []answer) error {
	for _, a := range answers {
		if a.info == nil || a.info.Incarnation != self.Incarnation {
			continue
		}
		if sameAddress(a.info.HTTPAddr, self.HTTPAddr) {
			return fmt.Errorf("formation: %s on the list is this node itself, which announces itself as %s: write one and the same address in both places", a.address, selfAddress)
		}
		return fmt.Errorf("formation: %s announces itself as %s and has the incarnation of this node (%s): one of the two data directories is a copy of the other, wipe it", a.address, a.info.HTTPAddr, selfAddress)
	}
	return nil
}

// followCluster decides where some answer names a cluster.
func followCluster(self Info, answers []answer) (decision, bool) {
	d := decision{action: join}
	var first answer
	for _, a := range answers {
		if a.info == nil || a.info.Cluster == 0 {
			continue
		}
		if d.cluster == 0 {
			d.cluster, first = a.info.Cluster, a
		}
		if a.info.Cluster != d.cluster {
			return decision{action: stop, err: fmt.Errorf(
				"formation: the list leads to two clusters, %x at %s and %x at %s: this node joins neither; take the servers of one of them off the list, or wipe those that are there by mistake",
				d.cluster, first.address, a.info.Cluster, a.address)}, true
		}
		if err := a.info.Accepted.Admits(self.Versions); err != nil {
			return decision{action: stop, err: fmt.Errorf("formation: cluster %x at %s does not take this node in: %w", d.cluster, a.address, err)}, true
		}
		// A founder that has not got its record yet takes its place with it, unless
		// it was removed meanwhile: a removed identity never returns.
		if f := a.info.Founding; f != nil && f.Cluster == a.info.Cluster {
			if m, mine := founder(*f, self.Incarnation); mine && isMember(a.info.Members, m.Member) {
				d.action, d.founding = accept, *f
			}
		}
		if a.info.Leader != "" {
			d.ask = slices.Insert(d.ask, 0, a.info.Leader)
		}
		d.ask = append(d.ask, a.address)
	}
	return d, d.cluster != 0
}

// isMember reports whether a member is among members; while none are known, a
// record has just been accepted, and its founders are.
func isMember(members []raftstore.Member, id uint64) bool {
	return len(members) == 0 || slices.ContainsFunc(members, func(m raftstore.Member) bool { return m.ID == id })
}

// unlike says why an answer does not count as 'empty, same list'.
func unlike(self Info, a answer) string {
	switch {
	case a.info == nil:
		return "does not answer: " + a.err.Error()
	case !sameAddress(a.info.HTTPAddr, a.address):
		return fmt.Sprintf("is answered by a node that announces itself as %s", a.info.HTTPAddr)
	case !slices.Equal(a.info.List, self.List):
		return fmt.Sprintf("has another list, [%s], here it is [%s]", strings.Join(a.info.List, ", "), strings.Join(self.List, ", "))
	case !slices.Equal(a.info.Without, self.Without):
		return fmt.Sprintf("is told to form without [%s], this node without [%s]", strings.Join(a.info.Without, ", "), strings.Join(self.Without, ", "))
	}
	return ""
}

// clash says which of others cannot be in one cluster with a.
func clash(a Info, others []Info) error {
	for _, b := range others {
		if a.Incarnation == b.Incarnation && sameAddress(a.HTTPAddr, b.HTTPAddr) {
			continue
		}
		switch {
		case a.Name == b.Name:
			return fmt.Errorf("formation: %s and %s have the same name %q: each server needs a name of its own", a.HTTPAddr, b.HTTPAddr, a.Name)
		case a.RaftAddr == b.RaftAddr:
			return fmt.Errorf("formation: %s and %s announce the same raft address %s: each server needs one that the others reach", a.HTTPAddr, b.HTTPAddr, a.RaftAddr)
		case a.Incarnation == b.Incarnation:
			return fmt.Errorf("formation: %s and %s have the same incarnation: one of the two data directories is a copy of the other, wipe it", a.HTTPAddr, b.HTTPAddr)
		}
	}
	return nil
}
