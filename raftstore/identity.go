package raftstore

// Identity says who a node is. Cluster and Member are zero until the node has
// founded or joined a cluster; from then on they never change.
type Identity struct {
	Cluster     uint64 `json:"cluster"`
	Member      uint64 `json:"member"`
	Incarnation uint64 `json:"incarnation"` // random, made with the data directory
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"` // announced address of the raft port
	HTTPAddr    string `json:"http_addr"` // announced address of the HTTP port
	// Versions are those of the commands that this program can apply.
	Versions Versions `json:"versions,omitempty"`
}

// Founder is one of the members that form a cluster.
type Founder struct {
	Member      uint64 `json:"member"`
	Incarnation uint64 `json:"incarnation"`
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`

	// Versions are those of the commands that its program can apply; nil: not told.
	Versions Versions `json:"versions,omitempty"`
}

// equal says whether both records say the same.
func (f Founder) equal(o Founder) bool {
	return f.Member == o.Member && f.Incarnation == o.Incarnation && f.Name == o.Name &&
		f.RaftAddr == o.RaftAddr && f.HTTPAddr == o.HTTPAddr && f.Versions.equal(o.Versions)
}

// Founding is the founding record: made once by one coordinator, accepted by
// each founder at most once, durable there before its first raft message.
type Founding struct {
	Cluster     uint64    `json:"cluster"`
	Predecessor uint64    `json:"predecessor,omitempty"` // the cluster that this one was restored from
	Founders    []Founder `json:"founders"`
}

// Member is one member of the cluster as the replicated state has it.
type Member struct {
	ID          uint64 `json:"id"`
	Incarnation uint64 `json:"incarnation"`
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`
	Learner     bool   `json:"learner"`

	// Versions are those of the commands that its program can apply, as it said when
	// it joined or last started; nil: it has not, which counts as 1.
	Versions Versions `json:"versions,omitempty"`
}

func (m Member) equal(o Member) bool {
	return m.ID == o.ID && m.Incarnation == o.Incarnation && m.Name == o.Name &&
		m.RaftAddr == o.RaftAddr && m.HTTPAddr == o.HTTPAddr && m.Learner == o.Learner && m.Versions.equal(o.Versions)
}

// Membership is the leader's answer to a node that joins. The node makes it
// durable (Store.Join) before its first raft message.
type Membership struct {
	Cluster uint64   `json:"cluster"`
	Member  uint64   `json:"member"`
	Members []Member `json:"members"`
}
