package raftbench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/figures"
)

// The workload: 256-byte commands to keys uniform over keySpace.
const (
	keySpace  = 100_000
	keyBytes  = 16
	valueSize = 256 - keyBytes
)

func keyOf(i int) []byte { return fmt.Appendf(nil, "key/%012d", i) }

// rate is what many callers of one operation saw.
type rate struct {
	Done      int
	PerSecond float64
	P50, P99  float64 // microseconds
	CPU       float64 // microseconds of CPU an operation, of all three nodes and the callers
}

// drive calls do from many goroutines for a time and returns what it saw.
func drive(callers int, d time.Duration, do func(ctx context.Context, r *rand.Rand) error) (rate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d+20*time.Second)
	defer cancel()
	var stop atomic.Bool
	lat := make([][]float64, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	start := time.Now()
	for c := range callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(c), uint64(start.UnixNano())))
			for !stop.Load() {
				t := time.Now()
				if err := do(ctx, r); err != nil {
					errs[c] = err
					return
				}
				lat[c] = append(lat[c], float64(time.Since(t).Nanoseconds())/1e3)
			}
		})
	}
	time.Sleep(d)
	stop.Store(true)
	wg.Wait()
	took := time.Since(start)
	var all []float64
	for _, l := range lat {
		all = append(all, l...)
	}
	if err := errors.Join(errs...); err != nil {
		return rate{}, err
	}
	return rate{
		Done:      len(all),
		PerSecond: float64(len(all)) / took.Seconds(),
		P50:       figures.Quantile(all, 0.50),
		P99:       figures.Quantile(all, 0.99),
	}, nil
}

// load writes every key once, many in one command: it is not what is measured.
func load(to node, keys int) error {
	const each = 100
	err := fromMany(32, (keys+each-1)/each, func(i int) error {
		var some [][]byte
		for k := i * each; k < min((i+1)*each, keys); k++ {
			some = append(some, keyOf(k))
		}
		return to.PutAll(context.Background(), some, make([]byte, valueSize))
	})
	time.Sleep(time.Duration(max(keys, keySpace)) * 15 * time.Microsecond) // what that leaves to sync and to cut
	return err
}

// fill writes n keys, spread over the key space, one in a command.
func fill(to node, keys, n int) error {
	return fromMany(256, n, func(i int) error {
		return to.Put(context.Background(), keyOf((i+1)*keys/n%keys), make([]byte, valueSize))
	})
}

// fromMany does n things, so many at once.
func fromMany(callers, n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for c := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if errs[c] = do(i - 1); errs[c] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// cpuTime is the CPU that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rawSync returns how many 4 KiB writes, each synced, the disk takes a second.
func rawSync(dir string) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "raw"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, start := 0, time.Now()
	for ; time.Since(start) < 500*time.Millisecond; n++ {
		if _, err := f.WriteAt(buf, int64(n%256)*4096); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
