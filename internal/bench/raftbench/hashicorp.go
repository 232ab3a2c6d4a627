package raftbench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

const hashicorpSettings = "hashicorp/raft v1.7.3, %s, TCP transport, MaxAppendEntries 512, BatchApplyCh, the rest default (heartbeat and election 1 s, lease 500 ms); state a map in memory (less work than ours), fsync on"

var hashicorpBoltDB = kind{
	name:     "hashicorp-boltdb",
	settings: fmt.Sprintf(hashicorpSettings, "raft-boltdb v2.3.1"),
	open: func(p place) (node, error) {
		return openHashicorp(p, func(dir string) (logStore, error) {
			return boltdb.New(boltdb.Options{Path: filepath.Join(dir, "raft.db")})
		})
	},
}

var hashicorpWAL = kind{
	name:     "hashicorp-wal",
	settings: fmt.Sprintf(hashicorpSettings, "raft-wal v0.4.2"),
	open: func(p place) (node, error) {
		return openHashicorp(p, func(dir string) (logStore, error) {
			d := filepath.Join(dir, "wal")
			if err := os.MkdirAll(d, 0o700); err != nil {
				return nil, err
			}
			return wal.Open(d)
		})
	},
}

type logStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

type hashicorpNode struct {
	r     *raft.Raft
	store logStore
	fsm   *mapFSM
}

func openHashicorp(p place, open func(dir string) (logStore, error)) (node, error) {
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return nil, err
	}
	store, err := open(p.dir())
	if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStore(p.dir(), 2, io.Discard)
	if err != nil {
		return nil, err
	}
	addr, err := net.ResolveTCPAddr("tcp", p.Peers[p.Self])
	if err != nil {
		return nil, err
	}
	transport, err := raft.NewTCPTransport(p.Peers[p.Self], addr, 3, 10*time.Second, io.Discard)
	if err != nil {
		return nil, err
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(p.Peers[p.Self])
	cfg.LogOutput = io.Discard
	cfg.LogLevel = "ERROR"
	cfg.MaxAppendEntries = 512
	cfg.BatchApplyCh = true
	cfg.SnapshotThreshold = 1 << 20 // none in a run: restart replays the log
	known, err := raft.HasExistingState(store, store, snapshots)
	if err != nil {
		return nil, err
	}
	fsm := &mapFSM{m: map[string][]byte{}}
	r, err := raft.NewRaft(cfg, fsm, store, store, snapshots, transport)
	if err != nil {
		return nil, err
	}
	if !known {
		var servers []raft.Server
		for _, peer := range p.Peers {
			servers = append(servers, raft.Server{ID: raft.ServerID(peer), Address: raft.ServerAddress(peer)})
		}
		if err := r.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
			return nil, err
		}
	}
	return &hashicorpNode{r: r, store: store, fsm: fsm}, nil
}

func (n *hashicorpNode) Put(ctx context.Context, key, value []byte) error {
	return n.PutAll(ctx, [][]byte{key}, value)
}

func (n *hashicorpNode) PutAll(_ context.Context, keys [][]byte, value []byte) error {
	return n.r.Apply(encodePairs(keys, value), 10*time.Second).Error()
}

func (n *hashicorpNode) Get(_ context.Context, key []byte) error {
	if err := n.r.VerifyLeader().Error(); err != nil {
		return err
	}
	_, err := n.GetLocal(key)
	return err
}

func (n *hashicorpNode) GetLocal(key []byte) ([]byte, error) {
	n.fsm.mu.RLock()
	defer n.fsm.mu.RUnlock()
	return n.fsm.m[string(key)], nil
}

func (n *hashicorpNode) Leading() bool { return n.r.State() == raft.Leader }

func (n *hashicorpNode) Term() uint64 { return n.r.CurrentTerm() }

func (n *hashicorpNode) Close() error {
	err := n.r.Shutdown().Error()
	if e := n.store.Close(); err == nil {
		err = e
	}
	return err
}

// mapFSM is the cheapest state there is.
type mapFSM struct {
	mu sync.RWMutex // guards m
	m  map[string][]byte
}

func (f *mapFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return eachPair(l.Data, func(key, value []byte) error {
		f.m[string(key)] = value
		return nil
	})
}

func (f *mapFSM) Snapshot() (raft.FSMSnapshot, error) {
	return nil, fmt.Errorf("no snapshots in a run")
}

func (f *mapFSM) Restore(r io.ReadCloser) error {
	_, err := io.Copy(bytes.NewBuffer(nil), r)
	return err
}
