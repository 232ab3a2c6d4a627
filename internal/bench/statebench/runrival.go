package statebench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/lbstate"
)

// values are the bytes of services as agents get them.
func value(i, weight int) ([]byte, error) {
	return lbstate.Effective(service(i, weight).WithDefaults(), nil, nil, 1).EncodedDesired()
}

func measureRival(ctx context.Context, o figures.Options, dir string) (f figuresOf, err error) {
	sub, err := os.MkdirTemp(dir, "etcd")
	if err != nil {
		return f, err
	}
	r, err := openRival(ctx, sub)
	if err != nil {
		return f, err
	}
	defer r.close()
	var values [][]byte
	for i := range services {
		v, err := value(i, 100)
		if err != nil {
			return f, err
		}
		values = append(values, v)
	}
	// Ours loads 500 services a transaction, etcd as many as it allows.
	if f.load, err = timed(func() error {
		for i := 0; i < services; i += 100 {
			var ops []clientv3.Op
			for j := i; j < i+100; j++ {
				ops = append(ops, clientv3.OpPut(prefix+fmt.Sprintf("service-%05d", j), string(values[j])))
			}
			if _, err := r.c.Txn(ctx).Then(ops...).Commit(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return f, err
	}
	lists := func() error {
		n, err := r.list(ctx)
		if err == nil && n != services {
			err = errors.New("etcd lists something else")
		}
		return err
	}
	if f.list, err = timed(lists); err != nil {
		return f, err
	}
	if f.again, err = timed(lists); err != nil {
		return f, err
	}
	put := func(i int) error {
		v, err := value(i*7919%services, i+101)
		if err != nil {
			return err
		}
		return r.put(ctx, fmt.Sprintf("service-%05d", i*7919%services), v)
	}
	var changes []time.Duration
	for i := range 1000 {
		d, err := timed(func() error { return put(i) })
		if err != nil {
			return f, err
		}
		changes = append(changes, d)
	}
	f.change = figures.Median(changes)
	if f.busy, err = together(func(i int) error { return put(1000 + i) }); err != nil {
		return f, err
	}

	before, _ := figures.Settled()
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	c := v3client.New(r.e.Server)
	defer c.Close()
	var turn, all sync.WaitGroup
	f.start, _ = timed(func() error {
		turn.Add(watchers)
		for range watchers {
			all.Go(func() {
				ch := c.Watch(watching, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
				for { // its own end takes etcd minutes
					select {
					case <-ch: // first: created
						turn.Done()
					case <-watching.Done():
						return
					}
				}
			})
		}
		turn.Wait()
		return nil
	})
	after, _ := figures.Settled()
	f.perWatcher = (int64(after) - int64(before)) / watchers
	var wakes []time.Duration
	for i := range 3 * o.Rounds() {
		turn.Add(watchers)
		d, err := timed(func() error {
			if err := put(20_000 + i); err != nil {
				return err
			}
			turn.Wait()
			return nil
		})
		if err != nil {
			return f, err
		}
		wakes = append(wakes, d)
	}
	f.wake = figures.Median(wakes)
	cancel()
	all.Wait()
	return f, nil
}
