package agent

import (
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// order is in which an agent tries the servers: its own, so that agents spread
// evenly, and always the same, so that it comes back where it was. The first is
// its home.
func order(name string, servers []string) []string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // it never fails
	out := slices.Clone(servers)
	rnd := rand.New(rand.NewPCG(h.Sum64(), 0))
	rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

var errGoesHome = errors.New("its own server is back")

// dialLoop stays with a server while it serves, and else goes on to the next.
// From another than its own it goes home when that is back.
func (c *Client) dialLoop(ctx context.Context) error {
	servers := order(c.cfg.Name, c.cfg.Servers)
	backoff := c.cfg.MinBackoff
	patience := c.cfg.RebalanceInterval
	for i := 0; ctx.Err() == nil; {
		server := servers[i%len(servers)]
		stream, end := context.WithCancelCause(ctx)
		probing := make(chan struct{})
		go func() {
			defer close(probing)
			if i%len(servers) != 0 {
				c.awaitHome(stream, servers[0], patience, end)
			}
		}()
		served, err := c.follow(stream, server)
		home := errors.Is(context.Cause(stream), errGoesHome)
		end(nil)
		<-probing
		if ctx.Err() != nil {
			break
		}
		c.disconnected(server, err)
		switch {
		case home:
			// If it does not serve after all, it is left alone for longer.
			i, patience = 0, min(2*patience, 8*c.cfg.RebalanceInterval)
			continue
		case served && i%len(servers) == 0:
			patience = c.cfg.RebalanceInterval
		}
		i++
		if served {
			backoff = c.cfg.MinBackoff
		}
		if served || i%len(servers) == 0 {
			pause := backoff/2 + rand.N(backoff)
			if !served {
				backoff = min(2*backoff, c.cfg.MaxBackoff)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
	return nil
}

// awaitHome looks now and then whether the agent's own server takes connections,
// and ends the present stream when it does.
func (c *Client) awaitHome(ctx context.Context, home string, every time.Duration, end context.CancelCauseFunc) {
	if every < 0 {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every/2 + rand.N(every)):
		}
		if c.reachable(ctx, home) {
			end(errGoesHome)
			return
		}
	}
}

// reachable says whether a server takes connections, TLS included.
func (c *Client) reachable(ctx context.Context, server string) bool {
	conn, err := c.dial(server)
	if err != nil {
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	return connects(ctx, conn)
}

func connects(ctx context.Context, conn *grpc.ClientConn) bool {
	conn.Connect()
	for {
		switch state := conn.GetState(); state {
		case connectivity.Ready:
			return true
		case connectivity.TransientFailure, connectivity.Shutdown:
			return false
		default:
			if !conn.WaitForStateChange(ctx, state) {
				return false
			}
		}
	}
}
