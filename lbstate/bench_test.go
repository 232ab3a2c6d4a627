package lbstate

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
)

// benchService is the i-th of many services, with ten backends.
func benchService(i, weight int) Service {
	s := Service{Name: fmt.Sprintf("service-%05d", i), VIP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Port: 80, HealthCheck: &HealthCheck{Type: "tcp"}}
	for b := range 10 {
		s.Backends = append(s.Backends, Backend{Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(b + 1)}), Port: 8080, Weight: &weight})
	}
	return s
}

func benchLoad(b *testing.B, n *node, services int) {
	b.Helper()
	for i := 0; i < services; {
		var ops []Operation
		for ; i < services && len(ops) < 500; i++ {
			s := benchService(i, 100)
			ops = append(ops, Operation{Put: Object{Service: &s}})
		}
		if _, err := n.Transact(context.Background(), ops, WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// Changes of whole services and of single backends at different sizes of the
// state, 64 in a transaction, as a busy log packs them: what the state machine
// takes for one, without the disk.
func BenchmarkApply(b *testing.B) {
	const packed = 64
	for _, size := range []int{100, 1000, 10000} {
		n := newNode(b)
		benchLoad(b, n, size)
		apply := func(b *testing.B, name string, op func(i int) Operation) {
			b.Run(fmt.Sprintf("%s/services=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				var cmds [][]byte
				for i := range b.N {
					tx, _, err := n.transaction(context.Background(), []Operation{op(i)})
					if err != nil {
						b.Fatal(err)
					}
					c := transactionCommand(tx)
					c.Version, c.At = 1, int64(i)
					cmds = append(cmds, must(encode(c)))
				}
				b.ResetTimer()
				for part := range slices.Chunk(cmds, packed) {
					if err := n.local.db.Update(func(tx *bbolt.Tx) error {
						_, err := n.state.Apply(tx, 1, 1, part)
						return err
					}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		weight := 100
		apply(b, "service", func(i int) Operation {
			weight = weight%60000 + 1
			s := benchService(i*7919%size, weight)
			return Operation{Put: Object{Service: &s}}
		})
		apply(b, "backend", func(i int) Operation {
			weight = weight%60000 + 1
			s := benchService(i*7919%size, weight)
			return Operation{PutBackend: &BackendPut{s.Name, s.Backends[i%10]}}
		})
	}
}

func BenchmarkPropose(b *testing.B) {
	n := newNode(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := benchService(i%1000, i%60000)
		tx, _, err := n.transaction(context.Background(), []Operation{{Put: Object{Service: &s}}})
		if err != nil {
			b.Fatal(err)
		}
		must(encode(transactionCommand(tx)))
	}
}

func BenchmarkList(b *testing.B) {
	n := newNode(b)
	benchLoad(b, n, 10000)
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			n.state.cache.mu.Lock()
			n.state.cache.statuses = nil
			n.state.cache.mu.Unlock()
			if _, _, err := n.Services(context.Background(), ReadOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := n.Services(context.Background(), ReadOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWake is the time from a change to the last of many watchers having
// its bytes.
func BenchmarkWake(b *testing.B) {
	n := newNode(b)
	benchLoad(b, n, 10000)
	const watchers = 10000
	ctx, cancel := context.WithCancel(context.Background())
	var all, round sync.WaitGroup
	round.Add(watchers)
	for range watchers {
		all.Go(func() {
			w := n.Watch(WatchOptions{From: must(n.Revision(ctx, ReadOptions{})), Labels: map[string]string{}})
			round.Done()
			for {
				u, err := w.Next(ctx)
				if err != nil {
					return
				}
				must(u.Services[0].EncodedDesired())
				round.Done()
			}
		})
	}
	round.Wait()
	for i := 0; b.Loop(); i++ {
		round.Add(watchers)
		if _, err := n.PutService(ctx, benchService(i%10000, i%1000+1), WriteOptions{}); err != nil {
			b.Fatal(err)
		}
		round.Wait()
	}
	cancel()
	all.Wait()
}

// One change after the other through a Store, each in a transaction of its own:
// what a lone writer pays, without the disk.
func BenchmarkChange(b *testing.B) {
	const size = 10_000
	n := newNode(b)
	benchLoad(b, n, size)
	change := func(name string, write func(i, weight int) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if err := write(i, i%60000+101); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	ctx := context.Background()
	change("service", func(i, weight int) error {
		_, err := n.PutService(ctx, benchService(i*7919%size, weight), WriteOptions{})
		return err
	})
	change("backend", func(i, weight int) error {
		s := benchService(i*7919%size, weight)
		_, err := n.PutBackend(ctx, s.Name, s.Backends[i%10], WriteOptions{})
		return err
	})
}
