package statebench

import (
	"context"
	"fmt"
	"net"
	"net/url"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

const prefix = "/services/"

// rival is etcd in this process, alone and without sync.
type rival struct {
	e *embed.Etcd
	c *clientv3.Client
}

func openRival(ctx context.Context, dir string) (*rival, error) {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.LogLevel = "error"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true
	cfg.QuotaBackendBytes = 8 << 30
	peer, err := loopback()
	if err != nil {
		return nil, err
	}
	client, err := loopback()
	if err != nil {
		return nil, err
	}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, peer
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, client
	cfg.InitialCluster = fmt.Sprintf("%s=%s", cfg.Name, cfg.AdvertisePeerUrls[0].String())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	}
	return &rival{e, v3client.New(e.Server)}, nil
}

// loopback is a URL with a port that is free. Nothing is sent to it.
func loopback() ([]url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return []url.URL{{Scheme: "http", Host: l.Addr().String()}}, nil
}

func (r *rival) close() {
	r.c.Close()
	r.e.Close()
}

func (r *rival) put(ctx context.Context, name string, value []byte) error {
	_, err := r.c.Put(ctx, prefix+name, string(value))
	return err
}

func (r *rival) list(ctx context.Context) (int, error) {
	resp, err := r.c.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	return len(resp.Kvs), nil
}
