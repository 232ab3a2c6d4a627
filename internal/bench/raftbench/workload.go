package raftbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
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

// job is what a child process is told to do.
type job struct {
	Kind    string
	Task    string // cluster | restart | node
	Dir     string
	Keys    int
	Callers []int // of writes
	Readers int
	For     time.Duration
	Entries int
	Place   place // of node alone
}

// rate is what many callers of one operation saw.
type rate struct {
	PerSecond float64
	P50, P99  float64 // microseconds
	CPU       float64 // microseconds of CPU an operation, whole process: all three nodes and the callers
}

// result is what a child answers.
type result struct {
	Writes       map[int]rate // by callers
	ReadLeader   rate
	ReadFollower rate
	Memory       uint64 // bytes at rest, whole process
	Elections    uint64 // while 512 callers and two busy loops had the machine
	Seconds      float64
}

// ChildEnv carries a job to a child process; Child runs it and does not return
// where there is one.
const ChildEnv = "IPVSKIT_BENCH_JOB"

// profileEnv names a directory that gets a CPU profile of each child.
const profileEnv = "IPVSKIT_BENCH_PROFILES"

// Child carries out the job in the environment, if there is one.
func Child() {
	text := os.Getenv(ChildEnv)
	if text == "" {
		return
	}
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err == nil {
		err = j.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (j job) run() error {
	k, err := kindNamed(j.Kind)
	if err != nil {
		return err
	}
	if dir := os.Getenv(profileEnv); dir != "" {
		f, err := os.Create(filepath.Join(dir, j.Kind+"-"+j.Task+".cpu"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var r result
	switch j.Task {
	case "cluster":
		r, err = j.cluster(k)
	case "restart":
		r, err = j.restart(k)
	case "node":
		return j.node(k)
	default:
		err = fmt.Errorf("no such task: %q", j.Task)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// spawn runs a job in a child process and returns its result.
func spawn(ctx context.Context, j job) (result, error) {
	cmd, err := command(ctx, j)
	if err != nil {
		return result{}, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("%s of %s: %w", j.Task, j.Kind, err)
	}
	var r result
	return r, json.Unmarshal(out, &r)
}

func command(ctx context.Context, j job) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), ChildEnv+"="+string(text))
	return cmd, nil
}

// openCluster opens n nodes in this process and waits for a leader, which it
// puts first.
func openCluster(k kind, dir string, n int) ([]node, error) {
	p, err := places(dir, n)
	if err != nil {
		return nil, err
	}
	nodes := make([]node, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { nodes[i], errs[i] = k.open(p[i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return nodes, awaitLeader(nodes)
}

func awaitLeader(nodes []node) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for i, n := range nodes {
			if !n.Leading() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := n.Put(ctx, keyOf(0), make([]byte, valueSize))
			cancel()
			if err == nil {
				nodes[0], nodes[i] = nodes[i], nodes[0]
				return nil
			}
		}
	}
	return errors.New("no leader within 30 s")
}

// await polls: what is measured is not to be disturbed by more than that.
func await(what string, ok func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return nil
		}
	}
	return fmt.Errorf("not within 30 s: %s", what)
}

// places picks free ports below those that systems give to outgoing connections:
// a node that starts again needs its own.
func places(dir string, n int) ([]place, error) {
	var addrs []string
	for tries := 0; len(addrs) < 2*n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 15_000+rand.IntN(15_000)))
		if err != nil {
			if tries > 100 {
				return nil, err
			}
			continue
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	ps := make([]place, n)
	for i := range ps {
		ps[i] = place{Dir: dir, Self: i, Peers: addrs[:n], Client: addrs[n:]}
	}
	return ps, nil
}

func closeAll(nodes []node) {
	for _, n := range nodes {
		n.Close()
	}
}

// drive calls do from many goroutines for a time and returns what it saw.
func drive(callers int, d time.Duration, do func(ctx context.Context, r *rand.Rand) error) (rate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d+20*time.Second)
	defer cancel()
	var stop atomic.Bool
	lat := make([][]float64, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	cpu, start := cpuTime(), time.Now()
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
	used := cpuTime() - cpu
	var all []float64
	for _, l := range lat {
		all = append(all, l...)
	}
	if err := errors.Join(errs...); err != nil {
		return rate{}, err
	}
	return rate{
		PerSecond: float64(len(all)) / took.Seconds(),
		P50:       figures.Quantile(all, 0.50),
		P99:       figures.Quantile(all, 0.99),
		CPU:       float64(used.Microseconds()) / float64(max(1, len(all))),
	}, nil
}

// cluster measures writes and reads of three nodes in this process.
func (j job) cluster(k kind) (result, error) {
	nodes, err := openCluster(k, j.Dir, 3)
	if err != nil {
		return result{}, err
	}
	defer closeAll(nodes)
	r := result{Writes: map[int]rate{}}
	value := make([]byte, valueSize)
	put := func(ctx context.Context, r *rand.Rand) error {
		return nodes[0].Put(ctx, keyOf(r.IntN(j.Keys)), value)
	}
	if err := load(nodes[0], j.Keys); err != nil {
		return r, err
	}
	for _, callers := range j.Callers {
		if _, err := drive(callers, j.For/4, put); err != nil { // warm
			return r, err
		}
		if r.Writes[callers], err = drive(callers, j.For, put); err != nil {
			return r, err
		}
	}
	if r.Elections, err = elections(nodes, j.For, put); err != nil {
		return r, err
	}
	if j.Readers > 0 {
		get := func(n node) func(context.Context, *rand.Rand) error {
			return func(ctx context.Context, r *rand.Rand) error { return n.Get(ctx, keyOf(r.IntN(j.Keys))) }
		}
		if r.ReadLeader, err = drive(j.Readers, j.For, get(nodes[0])); err != nil {
			return r, err
		}
		if k.followerReads {
			if r.ReadFollower, err = drive(j.Readers, j.For, get(nodes[1])); err != nil {
				return r, err
			}
		}
	}
	_, r.Memory = figures.Settled()
	return r, nil
}

// elections counts those that are held because the machine has much to do: none
// should be.
func elections(nodes []node, d time.Duration, put func(context.Context, *rand.Rand) error) (uint64, error) {
	before := nodes[0].Term()
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			for n := uint64(1); !stop.Load(); n = n*2862933555777941757 + 1 {
			}
		})
	}
	_, err := drive(512, d, put)
	stop.Store(true)
	busy.Wait()
	return nodes[0].Term() - before, err
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
	time.Sleep(1500 * time.Millisecond) // what that leaves to sync and to cut
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

// restart measures the time from opening a cluster of one to having applied
// all that its log holds.
func (j job) restart(k kind) (result, error) {
	p, err := places(j.Dir, 1)
	if err != nil {
		return result{}, err
	}
	n, err := k.open(p[0])
	if err != nil {
		return result{}, err
	}
	if err := awaitLeader([]node{n}); err != nil {
		return result{}, err
	}
	if err := fill(n, keySpace, j.Entries); err != nil {
		return result{}, err
	}
	last := []byte("key/the-last-one")
	if err := n.Put(context.Background(), last, []byte("written")); err != nil {
		return result{}, err
	}
	if err := n.Close(); err != nil {
		return result{}, err
	}
	start := time.Now()
	if n, err = k.open(p[0]); err != nil {
		return result{}, err
	}
	defer n.Close()
	for time.Since(start) < time.Minute {
		if v, err := n.GetLocal(last); err == nil && string(v) == "written" {
			return result{Seconds: time.Since(start).Seconds()}, nil
		}
		time.Sleep(time.Millisecond)
	}
	return result{}, errors.New("the last write was not there a minute after the restart")
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
