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
}

// Founder is one of the members that form a cluster.
type Founder struct {
	Member      uint64 `json:"member"`
	Incarnation uint64 `json:"incarnation"`
	Name        string `json:"name"`
	RaftAddr    string `json:"raft_addr"`
	HTTPAddr    string `json:"http_addr"`
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
}

// Membership is the leader's answer to a node that joins. The node makes it
// durable (Store.Join) before its first raft message.
type Membership struct {
	Cluster uint64   `json:"cluster"`
	Member  uint64   `json:"member"`
	Members []Member `json:"members"`
}
