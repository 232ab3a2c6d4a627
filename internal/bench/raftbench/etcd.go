package raftbench

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

var etcd = kind{
	name:          "etcd",
	settings:      "etcd v3.7 embedded, called in process; defaults (tick 100 ms, election 1 s, snapshot every 10,000), quota 8 GiB, fsync on",
	open:          func(p place) (node, error) { return openEtcd(p, false) },
	followerReads: true,
}

var etcdClient = kind{
	name:          "etcd-client",
	settings:      "the same through clientv3 over gRPC on loopback",
	open:          func(p place) (node, error) { return openEtcd(p, true) },
	followerReads: true,
}

type etcdNode struct {
	e *embed.Etcd
	c *clientv3.Client // nil: called in process
}

func openEtcd(p place, byClient bool) (node, error) {
	cfg := embed.NewConfig()
	cfg.Name = fmt.Sprintf("n%d", p.Self)
	cfg.Dir = p.dir()
	cfg.LogLevel = "error"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.QuotaBackendBytes = 8 << 30
	one := func(address string) []url.URL { return []url.URL{{Scheme: "http", Host: address}} }
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = one(p.Peers[p.Self]), one(p.Peers[p.Self])
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = one(p.Client[p.Self]), one(p.Client[p.Self])
	var members []string
	for i, peer := range p.Peers {
		members = append(members, fmt.Sprintf("n%d=http://%s", i, peer))
	}
	cfg.InitialCluster = strings.Join(members, ",")
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	n := &etcdNode{e: e}
	if byClient {
		n.c, err = clientv3.New(clientv3.Config{Endpoints: []string{p.Client[p.Self]}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			e.Close()
			return nil, err
		}
	}
	return n, nil
}

func (n *etcdNode) Put(ctx context.Context, key, value []byte) error {
	if n.c != nil {
		_, err := n.c.Put(ctx, string(key), string(value))
		return err
	}
	_, err := n.e.Server.Put(ctx, &pb.PutRequest{Key: key, Value: value})
	return err
}

func (n *etcdNode) PutAll(ctx context.Context, keys [][]byte, value []byte) error {
	tx := &pb.TxnRequest{}
	for _, k := range keys {
		tx.Success = append(tx.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k, Value: value}}})
	}
	_, err := n.e.Server.Txn(ctx, tx)
	return err
}

func (n *etcdNode) Get(ctx context.Context, key []byte) error {
	if n.c != nil {
		_, err := n.c.Get(ctx, string(key))
		return err
	}
	_, err := n.e.Server.Range(ctx, &pb.RangeRequest{Key: key})
	return err
}

func (n *etcdNode) GetLocal(key []byte) ([]byte, error) {
	r, err := n.e.Server.Range(context.Background(), &pb.RangeRequest{Key: key, Serializable: true})
	if err != nil || len(r.Kvs) == 0 {
		return nil, err
	}
	return r.Kvs[0].Value, nil
}

func (n *etcdNode) Leading() bool {
	return n.e.Server.Leader() == n.e.Server.MemberID()
}

func (n *etcdNode) Term() uint64 { return n.e.Server.Term() }

func (n *etcdNode) Close() error {
	if n.c != nil {
		n.c.Close()
	}
	n.e.Close()
	return nil
}
