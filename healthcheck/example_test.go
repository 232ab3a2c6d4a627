package healthcheck_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
)

// Two targets, one of which nobody serves.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	closed.Close()

	told := make(chan healthcheck.Transition)
	engine, err := healthcheck.New(healthcheck.Config{
		Sink: healthcheck.SinkFunc(func(ctx context.Context, batch []healthcheck.Transition) error {
			for _, t := range batch {
				select {
				case told <- t:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}),
	})
	if err != nil {
		panic(err)
	}
	tcp, err := probe.NewTCP(probe.TCPConfig{})
	if err != nil {
		panic(err)
	}
	at := func(l net.Listener) netip.AddrPort { return netip.MustParseAddrPort(l.Addr().String()) }
	err = engine.Update([]healthcheck.Check{
		{ID: "web", Target: at(l), Probe: tcp, Interval: 100 * time.Millisecond},
		{ID: "mail", Target: at(closed), Probe: tcp, Interval: 100 * time.Millisecond, Fall: 3},
	}, nil)
	if err != nil {
		panic(err)
	}
	done := make(chan error)
	go func() { done <- engine.Run(context.Background()) }()
	for range 2 {
		t := <-told
		fmt.Println(t.ID, t.From, "→", t.To, "by", t.Result.Class)
	}
	engine.Close()
	if err := <-done; err != nil {
		panic(err)
	}
	// Output:
	// web unknown → up by ok
	// mail unknown → down by refused
}

// A dry run of a check that no engine knows.
func ExampleOnce() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	l.Close() // nobody serves it now
	http, err := probe.NewHTTP(probe.HTTPConfig{URL: "http://" + l.Addr().String() + "/healthz"})
	if err != nil {
		panic(err)
	}
	res, err := healthcheck.Once(context.Background(), healthcheck.Check{ID: "dry run", Probe: http})
	if err != nil {
		panic(err)
	}
	fmt.Println(res.Class, "in", res.Phase)
	fmt.Println(res.Advice)
	// Output:
	// refused in connect
	// check that the service runs and listens on this address and port
}

// An onlooker follows the events at its own pace.
func ExampleEngine_Events() {
	engine, err := healthcheck.New(healthcheck.Config{})
	if err != nil {
		panic(err)
	}
	well := healthcheck.ProbeFunc(func(context.Context, netip.AddrPort) healthcheck.Result {
		return healthcheck.Result{Warning: "the certificate ends in 3 days"}
	})
	if err := engine.Update([]healthcheck.Check{{ID: "shop", Probe: well}}, nil); err != nil {
		panic(err)
	}
	go engine.Run(context.Background()) //nolint:errcheck // it returns nil once closed
	defer engine.Close()

	seen := uint64(0)
	for seen < 2 {
		events, more := engine.Events(seen)
		for _, ev := range events {
			fmt.Println(ev.Kind, ev.Check, ev.To, ev.Result.Warning)
			seen = ev.Seq
		}
		if len(events) == 0 {
			<-more
		}
	}
	// Output:
	// warning shop unknown the certificate ends in 3 days
	// transition shop up the certificate ends in 3 days
}
