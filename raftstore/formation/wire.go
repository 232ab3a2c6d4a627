package formation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Paths of the requests between servers.
const (
	pathNode  = "/raft/v1/node"
	pathFound = "/raft/v1/found"
	pathJoin  = "/raft/v1/join"

	maxBody = 256 << 10 // bytes of a request or an answer
)

// Info is what a server says of itself to the others (GET /raft/v1/node).
type Info struct {
	// Cluster is the cluster that the node belongs to, by a founding record or a
	// membership that it has made durable; 0: it is empty.
	Cluster uint64 `json:"cluster"`

	Member      uint64 `json:"member,omitempty"`
	Incarnation uint64 `json:"incarnation"`
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`

	// Versions are those of the commands that its program can apply; Accepted those
	// that its cluster accepts, which a node that joins must know.
	Versions raftstore.Versions `json:"versions,omitempty"`
	Accepted raftstore.Versions `json:"accepted,omitempty"`

	// List and Without are its configuration, normalized and sorted.
	List    []string `json:"list"`
	Without []string `json:"without,omitempty"`

	// Founding is the record that it has accepted; nil if it joined.
	Founding *raftstore.Founding `json:"founding,omitempty"`

	// Members are the cluster's members as the node knows them; empty while it
	// knows none.
	Members []raftstore.Member `json:"members,omitempty"`

	// Leader is the HTTP address of its cluster's leader; empty if it knows none.
	Leader string `json:"leader,omitempty"`
}

// JoinRequest asks a leader for a place in its cluster (POST /raft/v1/join). The
// answer is a raftstore.Membership.
type JoinRequest struct {
	Cluster     uint64 `json:"cluster"` // the cluster that the asker has seen
	Incarnation uint64 `json:"incarnation"`
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`

	Versions raftstore.Versions `json:"versions,omitempty"` // of the commands that its program can apply
}

// failure is the body of every answer that is not 200.
type failure struct {
	Error string `json:"error"`
	// Cluster is that of the one who answers, 0 if it has none.
	Cluster uint64 `json:"cluster"`
	// Leader is where to ask instead (421).
	Leader string `json:"leader,omitempty"`
	// Node is who answers, where a founding record is refused (409).
	Node *Info `json:"node,omitempty"`
}

// decode reads one JSON value and nothing after it.
func decode(r io.Reader, strict bool, into any) error {
	limited := &io.LimitedReader{R: r, N: maxBody + 1}
	d := json.NewDecoder(limited)
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		if limited.N <= 0 {
			return fmt.Errorf("more than %d bytes", maxBody)
		}
		return fmt.Errorf("not the JSON that is expected: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// checkFounding says what is wrong with a record, whoever receives it.
func checkFounding(f raftstore.Founding) error {
	if f.Cluster == 0 {
		return errors.New("it names no cluster")
	}
	if len(f.Founders) == 0 || len(f.Founders) > maxServers {
		return fmt.Errorf("it has %d founders, 1 to %d are allowed", len(f.Founders), maxServers)
	}
	seen := map[string]string{}
	once := func(founder, what, value string) error {
		key := what + " " + value
		if other, twice := seen[key]; twice {
			return fmt.Errorf("founders %q and %q have the same %s %s", other, founder, what, value)
		}
		seen[key] = founder
		return nil
	}
	for _, m := range f.Founders {
		if m.Member == 0 || m.Incarnation == 0 || m.Name == "" || m.RaftAddr == "" {
			return fmt.Errorf("founder %q lacks a member ID, an incarnation, a name or a raft address", m.Name)
		}
		address, err := normalize(m.HTTPAddr)
		if err != nil {
			return fmt.Errorf("founder %q: %w", m.Name, err)
		}
		for what, value := range map[string]string{
			"member ID": fmt.Sprintf("%x", m.Member), "incarnation": fmt.Sprintf("%x", m.Incarnation),
			"name": m.Name, "raft address": m.RaftAddr, "HTTP address": address,
		} {
			if err := once(m.Name, what, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// founder returns the entry of a node in a record, judged by its incarnation:
// the name and the address of a wiped node are still those in the record, and
// it is not the founder any more.
func founder(f raftstore.Founding, incarnation uint64) (raftstore.Founder, bool) {
	for _, m := range f.Founders {
		if m.Incarnation == incarnation {
			return m, true
		}
	}
	return raftstore.Founder{}, false
}

// acceptable says whether the node with identity id may accept f.
func acceptable(f raftstore.Founding, id raftstore.Identity) error {
	if err := checkFounding(f); err != nil {
		return fmt.Errorf("founding record of cluster %x: %w", f.Cluster, err)
	}
	m, ok := founder(f, id.Incarnation)
	switch {
	case !ok:
		return fmt.Errorf("founding record of cluster %x does not name incarnation %x of node %q: it was made for a node that has lost its disk, or for another one", f.Cluster, id.Incarnation, id.Name)
	case m.Name != id.Name || m.RaftAddr != id.RaftAddr || !sameAddress(m.HTTPAddr, id.HTTPAddr):
		return fmt.Errorf("founding record of cluster %x has this node as %q with raft %s and HTTP %s, it is %q with raft %s and HTTP %s",
			f.Cluster, m.Name, m.RaftAddr, m.HTTPAddr, id.Name, id.RaftAddr, id.HTTPAddr)
	}
	return nil
}
