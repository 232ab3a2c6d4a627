package fanoutbench

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	etcdPrefix = "services/"
	etcdEnd    = "services0" // the key after all that begin with the prefix
)

type etcdCluster struct {
	members []*embed.Etcd
	addrs   []string
	values  map[string][]byte // by service and weight
}

// openEtcd starts three members with TLS for clients and peers. pemFile has a
// certificate with its key, caFile the authority.
func openEtcd(dir, pemFile, caFile string) (cluster, error) {
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	secure := transport.TLSInfo{CertFile: pemFile, KeyFile: pemFile, TrustedCAFile: caFile, ClientCertAuth: true}
	one := func(port int) []url.URL {
		return []url.URL{{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
	}
	var names []string
	for i := range 3 {
		names = append(names, fmt.Sprintf("n%d=https://127.0.0.1:%d", i, ports[i]))
	}
	c := &etcdCluster{}
	for i := range 3 {
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir = fmt.Sprintf("n%d", i), filepath.Join(dir, fmt.Sprintf("etcd%d", i))
		cfg.LogLevel = "error"
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		cfg.PeerTLSInfo, cfg.ClientTLSInfo = secure, secure
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = one(ports[i]), one(ports[i])
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = one(ports[3+i]), one(ports[3+i])
		cfg.InitialCluster = strings.Join(names, ",")
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, e)
		c.addrs = append(c.addrs, fmt.Sprintf("127.0.0.1:%d", ports[3+i]))
	}
	for _, e := range c.members {
		select {
		case <-e.Server.ReadyNotify():
		case <-time.After(30 * time.Second):
			return nil, fmt.Errorf("etcd: %s is not ready", e.Config().Name)
		}
	}
	return c, nil
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// order has a follower first, and the leader last.
func (c *etcdCluster) order() []int {
	out := []int{0, 1, 2}
	for i, e := range c.members {
		if e != nil && e.Server.Leader() == e.Server.MemberID() {
			out[i], out[2] = out[2], out[i]
			break
		}
	}
	return out
}

func (c *etcdCluster) addresses() []string {
	var out []string
	for _, i := range c.order() {
		out = append(out, c.addrs[i])
	}
	return out
}

func valueKey(s lbstate.Service) string { return fmt.Sprint(s.Name, " ", *s.Backends[0].Weight) }

// prepare works out what lbstate has a director sent of each service, so that
// both kinds carry the same bytes.
func (c *etcdCluster) prepare(ctx context.Context, dir string, all []lbstate.Service) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(dir, state)
	if err != nil {
		return err
	}
	defer local.Close()
	store := lbstate.NewStore(state, local)
	c.values = map[string][]byte{}
	for _, s := range all {
		if _, err := store.PutService(ctx, s, lbstate.WriteOptions{}); err != nil {
			return err
		}
		got, err := store.Service(ctx, s.Name, lbstate.ReadOptions{})
		if err != nil {
			return err
		}
		if c.values[valueKey(s)], err = got.EncodedDesired(); err != nil {
			return err
		}
	}
	return nil
}

// put writes what a director is sent of the service, under its name.
func (c *etcdCluster) put(ctx context.Context, s lbstate.Service) (uint64, error) {
	order := c.order()
	r, err := c.members[order[2]].Server.Put(ctx, &pb.PutRequest{Key: []byte(etcdPrefix + s.Name), Value: c.values[valueKey(s)]})
	if err != nil {
		return 0, err
	}
	return uint64(r.Header.Revision), nil
}

func (c *etcdCluster) list(ctx context.Context) (int, error) {
	r, err := c.members[0].Server.Range(ctx, &pb.RangeRequest{Key: []byte(etcdPrefix), RangeEnd: []byte(etcdEnd)})
	if err != nil {
		return 0, err
	}
	return proto.Size(r), nil
}

func (c *etcdCluster) kill() error {
	i := c.order()[0]
	c.members[i].Close()
	c.members[i] = nil
	return nil
}

// etcdAgent is a simulated agent that gets the state from etcd: it lists, and
// then watches.
type etcdAgent struct{ revision int64 }

func (a *etcdAgent) follow(ctx context.Context, conn *grpc.ClientConn, had func(uint64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.revision == 0 {
		r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(etcdPrefix), RangeEnd: []byte(etcdEnd)})
		if err != nil {
			return err
		}
		a.revision = r.Header.Revision
		had(uint64(a.revision))
	}
	watch, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	err = watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(etcdPrefix), RangeEnd: []byte(etcdEnd), StartRevision: a.revision + 1,
	}}})
	if err != nil {
		return err
	}
	for {
		r, err := watch.Recv()
		if err != nil {
			return err
		}
		for _, e := range r.Events {
			a.revision = e.Kv.ModRevision
			had(uint64(a.revision))
		}
	}
}
