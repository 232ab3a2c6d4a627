package fanoutbench

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// question is what the servers ask of the agents' process: to connect, or when
// they had a change.
type question struct {
	Servers []string `json:"servers,omitempty"` // connect to the first; later to the others
	Agents  int      `json:"agents,omitempty"`  // until there are so many
	Change  uint64   `json:"change,omitempty"`  // wait until all have it
}

type answer struct {
	Times []int64 `json:"times"` // Unix nanoseconds, of each agent
	Bytes int64   `json:"bytes"` // that all have received since the start
}

// simulated is one agent.
type simulated interface {
	// follow dials a server and calls had for each change until it fails. It
	// goes on where it was with another server.
	follow(ctx context.Context, conn *grpc.ClientConn, had func(change uint64)) error
}

// crowd is all agents of a process.
type crowd struct {
	received atomic.Int64 // bytes, TLS included

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond
	had     [][]moment // by agent, in order
}

type moment struct {
	change uint64
	at     int64
}

func (j job) agents(ctx context.Context) error {
	bundle, _, err := identity.Read(filepath.Join(j.Dir, "cluster.key"))
	if err != nil {
		return err
	}
	c := &crowd{}
	c.changed = sync.NewCond(&c.mu)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q question
		if err := in.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(q.Servers) > 0 {
			if err := c.connect(ctx, j, bundle, q.Servers, q.Agents); err != nil {
				return err
			}
		}
		if err := out.Encode(c.wait(q.Change)); err != nil {
			return err
		}
	}
}

func (c *crowd) connect(ctx context.Context, j job, bundle *identity.Bundle, servers []string, until int) error {
	for i := len(c.had); i < until; i++ {
		name := fmt.Sprintf("agent-%d", i)
		credential, err := bundle.Issue(identity.ID{Role: identity.RoleAgent, Name: name}, nil, 24*time.Hour, time.Now())
		if err != nil {
			return err
		}
		data, err := credential.Encode()
		if err != nil {
			return err
		}
		pair, err := tls.X509KeyPair(data, data)
		if err != nil {
			return err
		}
		// Whom it meets is not what is measured.
		secure := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
		var agent simulated = &ourAgent{name: name}
		if j.Kind == etcdKind {
			agent = &etcdAgent{}
		}
		c.mu.Lock()
		c.had = append(c.had, nil)
		c.mu.Unlock()
		go c.live(ctx, i, agent, servers, secure)
	}
	return nil
}

// live keeps one agent connected.
func (c *crowd) live(ctx context.Context, i int, a simulated, servers []string, secure credentials.TransportCredentials) {
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &counted{conn, &c.received}, nil
	}
	for n := 0; ctx.Err() == nil; n++ {
		server := servers[0]
		if n > 0 {
			server = servers[(i+n)%len(servers)]
			time.Sleep(rand.N(100 * time.Millisecond)) // back-off with jitter, as agents have
		}
		conn, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(secure), grpc.WithContextDialer(dialer),
			grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20), // as agents have
			grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			return
		}
		_ = a.follow(ctx, conn, func(change uint64) { c.note(i, change) }) // the next server is tried
		conn.Close()
	}
}

func (c *crowd) note(agent int, change uint64) {
	now := time.Now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.had[agent] = append(c.had[agent], moment{change, now})
	c.changed.Broadcast()
}

// wait returns when all agents have the change, or something where it is 0.
func (c *crowd) wait(change uint64) answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	times := make([]int64, len(c.had))
	for i := range c.had {
		for times[i] == 0 {
			for _, m := range c.had[i] {
				if m.change >= change {
					times[i] = m.at
					break
				}
			}
			if times[i] == 0 {
				c.changed.Wait()
			}
		}
	}
	return answer{times, c.received.Load()}
}

// counted counts what is read.
type counted struct {
	net.Conn
	received *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	return n, err
}
