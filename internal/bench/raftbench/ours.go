package raftbench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/peer"
)

var ours = kind{
	name:          "raftstore",
	settings:      "raftstore over transport/peer, all defaults but MaxPending; state on disk in bbolt, fsync on",
	open:          openOurs,
	followerReads: true,
}

type ourNode struct {
	s    *raftstore.Store
	m    *raftstore.Machine
	done chan error
}

// openOurs makes a cluster of the places given: founding records that all nodes
// derive alike stand in for formation over HTTP, which is not what is measured.
func openOurs(p place) (node, error) {
	t, err := peer.New(peer.Config{ListenAddr: p.Peers[p.Self]})
	if err != nil {
		return nil, err
	}
	s, err := raftstore.Open(raftstore.Config{
		Dir: p.dir(), Name: fmt.Sprintf("n%d", p.Self), RaftAddr: p.Peers[p.Self],
		StateMachines: map[string]raftstore.StateMachine{"kv": kvMachine{}}, Transport: t, MaxPending: 1 << 16,
	})
	if err != nil {
		return nil, err
	}
	n := &ourNode{s: s, m: s.Machine("kv"), done: make(chan error, 1)}
	if s.Identity().Cluster == 0 {
		f, err := founding(p, s.Identity().Incarnation)
		if err == nil {
			err = s.Found(f)
		}
		if err != nil {
			return nil, err
		}
	}
	go func() { n.done <- s.Run(context.Background()) }()
	return n, nil
}

// founding waits until every place has written its incarnation down.
func founding(p place, incarnation uint64) (raftstore.Founding, error) {
	f := raftstore.Founding{Cluster: 1}
	name := func(i int) string { return filepath.Join(p.Dir, fmt.Sprintf("incarnation%d", i)) }
	tmp := name(p.Self) + ".tmp"
	if err := os.WriteFile(tmp, binary.BigEndian.AppendUint64(nil, incarnation), 0o600); err != nil {
		return f, err
	}
	if err := os.Rename(tmp, name(p.Self)); err != nil {
		return f, err
	}
	for i, addr := range p.Peers {
		var data []byte
		if err := await("the others' incarnations", func() bool {
			var err error
			data, err = os.ReadFile(name(i))
			return err == nil
		}); err != nil {
			return f, err
		}
		f.Founders = append(f.Founders, raftstore.Founder{
			Member: uint64(i + 1), Incarnation: binary.BigEndian.Uint64(data), Name: fmt.Sprintf("n%d", i), RaftAddr: addr,
		})
	}
	return f, nil
}

func (n *ourNode) Put(ctx context.Context, key, value []byte) error {
	return n.PutAll(ctx, [][]byte{key}, value)
}

func (n *ourNode) PutAll(ctx context.Context, keys [][]byte, value []byte) error {
	_, _, err := n.m.Propose(ctx, encodePairs(keys, value))
	return err
}

func (n *ourNode) Get(ctx context.Context, key []byte) error {
	return n.s.Read(ctx, func(tx *bbolt.Tx) error {
		if b := tx.Bucket(kvBucket); b != nil {
			b.Get(key)
		}
		return nil
	})
}

func (n *ourNode) GetLocal(key []byte) (value []byte, err error) {
	err = n.s.ReadStale(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(kvBucket); b != nil {
			value = bytes.Clone(b.Get(key))
		}
		return nil
	})
	return value, err
}

func (n *ourNode) Leading() bool {
	leading, _, _ := n.s.Leadership()
	return leading
}

func (n *ourNode) Term() uint64 {
	_, term, _ := n.s.Leadership()
	return term
}

func (n *ourNode) Close() error {
	err := n.s.Close()
	if e := <-n.done; err == nil {
		err = e
	}
	return err
}

// kvMachine puts values into a bucket.
type kvMachine struct{}

var kvBucket = []byte("kv")

func (kvMachine) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists(kvBucket)
	if err != nil {
		return nil, err
	}
	for _, c := range cmds {
		if err := eachPair(c, b.Put); err != nil {
			return nil, err
		}
	}
	return make([]any, len(cmds)), nil
}

func (kvMachine) Committed(uint64)         {}
func (kvMachine) Restored(*bbolt.Tx) error { return nil }
