// Package raftbench measures raftstore beside embedded etcd and hashicorp/raft:
// the same commands, on the same disk, in one run.
//
// Every node runs in a process of its own, as those of a real cluster do: what one
// collects, commits or syncs does not hold up the goroutines of the others. The
// callers are in the process of the node that they call.
package raftbench

import (
	"context"
	"fmt"
	"path/filepath"
)

// node is one member of a cluster of one kind. Put and Get may be called by
// many goroutines at once.
type node interface {
	// Put returns when the write is committed and applied on this node.
	Put(ctx context.Context, key, value []byte) error
	// PutAll is Put of up to 100 keys as one command.
	PutAll(ctx context.Context, keys [][]byte, value []byte) error
	// Get is a linearizable read of one key.
	Get(ctx context.Context, key []byte) error
	// GetLocal reads what this node has applied; nil when there is no such key.
	GetLocal(key []byte) ([]byte, error)
	Leading() bool
	// Term is one up for each election.
	Term() uint64
	Close() error
}

// place says where one node lives, and who the others are.
type place struct {
	Dir    string
	Self   int
	Peers  []string // raft addresses, by position
	Client []string // client addresses, by position (etcd-client alone)
}

func (p place) dir() string { return filepath.Join(p.Dir, fmt.Sprintf("node%d", p.Self)) }

// kind is one implementation to measure.
type kind struct {
	name     string
	settings string // printed with the results
	open     func(place) (node, error)
	// followerReads says that a follower can serve a linearizable read.
	followerReads bool
}

var kinds = []kind{ours, etcd, etcdClient, hashicorpBoltDB, hashicorpWAL}

func kindNamed(name string) (kind, error) {
	for _, k := range kinds {
		if k.name == name {
			return k, nil
		}
	}
	return kind{}, fmt.Errorf("no such kind: %q", name)
}
