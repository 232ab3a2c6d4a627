package fanoutbench

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/child"
	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/identity"
)

const (
	oursKind = "ipvskit"
	etcdKind = "etcd"

	services = 1000
	backends = 10
)

// cluster is three servers of one kind, in this process.
type cluster interface {
	// addresses are those of the agents' ports; the first is of a follower.
	addresses() []string
	// prepare is told all that will be put, before anything is measured.
	prepare(ctx context.Context, dir string, all []lbstate.Service) error
	// put makes a change and returns its revision once it is committed.
	put(context.Context, lbstate.Service) (uint64, error)
	// list is the size in bytes of the whole state as it is sent to one agent.
	list(context.Context) (int, error)
	// kill ends the first of addresses.
	kill() error
}

// result is what one run of one kind has measured.
type result struct {
	PerAgent float64   // bytes of the server's memory for each connected agent
	Latency  []float64 // ms from before a change's commit to each agent, of all changes
	Wire     float64   // bytes received, of each agent for each change, TLS included
	List     int       // bytes of the whole state
	CPU      float64   // ms of the servers' process for each change
	Connect  float64   // s until nine tenths of the agents are connected and have the whole state
	Storm    float64   // s from a server's death until all agents have a change made after it
	Peak     float64   // bytes of memory more than before, at most, during the storm
}

func (j job) servers(ctx context.Context) error {
	r, err := j.measure(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func service(i, weight int) lbstate.Service {
	s := lbstate.Service{Name: fmt.Sprintf("service-%04d", i), VIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 250)}), Port: 1000 + i}
	for b := range backends {
		w := 100
		if b == 0 {
			w = weight
		}
		s.Backends = append(s.Backends, lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, 1, byte(b), byte(1 + i%250)}), Port: 8080, Weight: &w})
	}
	return s
}

// change is the i-th change that is measured.
func change(i int) lbstate.Service { return service((i*37)%services, 50+i%40) }

var stormChange = service(7, 11)

func (j job) open() (cluster, error) {
	bundle, err := identity.NewBundle("bench", time.Now())
	if err != nil {
		return nil, err
	}
	store := func(name string, e interface{ Encode() ([]byte, error) }) (string, error) {
		data, err := e.Encode()
		if err != nil {
			return "", err
		}
		path := filepath.Join(j.Dir, name)
		return path, identity.Create(path, data)
	}
	key, err := store("cluster.key", bundle)
	if err != nil {
		return nil, err
	}
	if j.Kind == etcdKind {
		c, err := bundle.Issue(identity.ID{Role: identity.RoleServer, Name: "etcd"}, []string{"127.0.0.1"}, 24*time.Hour, time.Now())
		if err != nil {
			return nil, err
		}
		file, err := store("etcd.pem", c)
		if err != nil {
			return nil, err
		}
		ca := filepath.Join(j.Dir, "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bundle.Authorities()[0].Raw}), 0o600); err != nil {
			return nil, err
		}
		return openEtcd(j.Dir, file, ca)
	}
	source, err := identity.Open(identity.Config{KeyFile: key, Role: identity.RoleServer, Name: "bench"})
	if err != nil {
		return nil, err
	}
	return openOurs(j.Dir, source)
}

// put tries again while the cluster looks for a leader, on a machine that is busy.
func put(ctx context.Context, c cluster, s lbstate.Service) (revision uint64, err error) {
	for range 100 {
		if revision, err = c.put(ctx, s); err == nil || ctx.Err() != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return revision, err
}

func (j job) measure(ctx context.Context) (r result, err error) {
	c, err := j.open()
	if err != nil {
		return r, err
	}
	all := []lbstate.Service{stormChange}
	for i := range services {
		all = append(all, service(i, 100))
	}
	for i := range j.Changes {
		all = append(all, change(i))
	}
	if err := c.prepare(ctx, filepath.Join(j.Dir, "prepared"), all); err != nil {
		return r, err
	}
	last := uint64(0)
	for i := range services {
		if last, err = put(ctx, c, service(i, 100)); err != nil {
			return r, err
		}
	}
	if r.List, err = c.list(ctx); err != nil {
		return r, err
	}
	crowd, err := child.Start(ctx, childEnv, job{Role: "agents", Kind: j.Kind, Dir: j.Dir, Agents: j.Agents})
	if err != nil {
		return r, err
	}
	defer func() {
		if e := crowd.End(); err == nil {
			err = e
		}
	}()
	var a answer
	// What an agent costs is the slope: the first tenth pays for what all share.
	var held [2]uint64
	for i, n := range [2]int{j.Agents / 10, j.Agents} {
		began := time.Now()
		if err := crowd.Ask(question{Servers: c.addresses(), Agents: n, Change: last}, &a); err != nil {
			return r, err
		}
		r.Connect = time.Since(began).Seconds()
		time.Sleep(4 * time.Second) // what was kept for the arrival of all is let go
		_, held[i] = figures.Settled()
		profile()
	}
	r.PerAgent = float64(int64(held[1])-int64(held[0])) / float64(j.Agents-j.Agents/10)

	if err := crowd.Ask(question{}, &a); err != nil {
		return r, err
	}
	bytes, cpu := a.Bytes, cpuTime()
	for i := range j.Changes {
		at := time.Now().UnixNano()
		revision, err := put(ctx, c, change(i))
		if err != nil {
			return r, err
		}
		if err := crowd.Ask(question{Change: revision}, &a); err != nil {
			return r, err
		}
		for _, t := range a.Times {
			r.Latency = append(r.Latency, float64(t-at)/1e6)
		}
	}
	r.CPU = float64((cpuTime() - cpu).Microseconds()) / 1e3 / float64(j.Changes)
	r.Wire = float64(a.Bytes-bytes) / float64(j.Changes) / float64(j.Agents)
	if j.Storm {
		err = j.storm(ctx, c, crowd, &r)
	}
	return r, err
}

// storm kills the server that has all agents, and times until each has a change
// that was made after.
func (j job) storm(ctx context.Context, c cluster, crowd *child.Process, r *result) error {
	before := memory()
	peak, stop, sampled := before, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				peak = max(peak, memory())
			}
		}
	}()
	at := time.Now()
	if err := c.kill(); err != nil {
		return err
	}
	revision, err := put(ctx, c, stormChange)
	if err != nil {
		return err
	}
	var a answer
	if err := crowd.Ask(question{Change: revision}, &a); err != nil {
		return err
	}
	for _, t := range a.Times {
		r.Storm = max(r.Storm, float64(t-at.UnixNano())/1e9)
	}
	close(stop)
	<-sampled
	r.Peak = float64(peak) - float64(before)
	return nil
}

func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func profile() {
	to := os.Getenv("FANOUT_PROFILE") + fmt.Sprint(time.Now().Unix())
	if os.Getenv("FANOUT_PROFILE") == "" {
		return
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Fprintf(os.Stderr, "heap inuse %d idle %d released %d alloc %d stack %d sys %d buckhash %d gcsys %d other %d mspan %d goroutines %d\n", m.HeapInuse>>10, m.HeapIdle>>10, m.HeapReleased>>10, m.HeapAlloc>>10, m.StackInuse>>10, m.Sys>>10, m.BuckHashSys>>10, m.GCSys>>10, m.OtherSys>>10, m.MSpanInuse>>10, runtime.NumGoroutine())
	f, _ := os.Create(to + ".heap")
	_ = pprof.Lookup("heap").WriteTo(f, 0)
	f.Close()
	f, _ = os.Create(to + ".goroutines")
	_ = pprof.Lookup("goroutine").WriteTo(f, 1)
	f.Close()
}
