//go:build linux

package processes

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/raftstore"
)

// cluster is several processes and what is done to them.
type cluster struct {
	t     *testing.T
	rng   *rand.Rand
	nodes []*process
	// cut takes a node off the network, or brings it back; nil: it cannot be done
	// here.
	cut func(node int, off bool)

	history history
	writes  atomic.Int64

	kills, pauses, cuts int
}

// newCluster starts one process for each address and lets them found a cluster.
func newCluster(t *testing.T, dir string, addrs []string, wrap func(node int) []string) *cluster {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("IPVSKIT_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (IPVSKIT_SEED)", seed)
	c := &cluster{t: t, rng: rand.New(rand.NewPCG(seed, 0)), history: history{began: time.Now()}}
	founding := raftstore.Founding{Cluster: 1 + seed>>1}
	for i, addr := range addrs {
		name := fmt.Sprint("n", i)
		p := &process{
			cfg: nodeConfig{Dir: filepath.Join(dir, name), Name: name, Addr: addr}, wrap: wrap(i), errs: filepath.Join(dir, name+".errors"),
		}
		p.start(t)
		t.Cleanup(p.kill)
		c.nodes = append(c.nodes, p)
		incarnation, err := p.incarnation()
		if err != nil {
			t.Fatal(err)
		}
		founding.Founders = append(founding.Founders, raftstore.Founder{Member: uint64(i + 1), Incarnation: incarnation, Name: name, RaftAddr: addr})
	}
	record, err := json.Marshal(founding)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.nodes {
		if err := p.send("found " + string(record)); err != nil {
			t.Fatal(err)
		}
	}
	c.until("the cluster is founded", func() bool { return strings.HasPrefix(c.put(0, 0, "first", "x"), "ok") })
	return c
}

func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			c.explain()
			c.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// explain logs what each node says of itself: its state, what it has logged, and
// its goroutines, which end it.
func (c *cluster) explain() {
	for _, p := range c.nodes {
		status := make(chan string, 1)
		go func() {
			text, err := p.ask("status")
			status <- fmt.Sprint(text, " ", err)
		}()
		select {
		case text := <-status:
			c.t.Logf("%s: %s", p.cfg.Name, text)
		case <-time.After(5 * time.Second):
			c.t.Logf("%s says nothing", p.cfg.Name)
		}
		p.signal(syscall.SIGQUIT)
	}
	for _, p := range c.nodes {
		p.kill()
		said, err := os.ReadFile(p.errs)
		c.t.Logf("%s: %.40000s %v", p.cfg.Name, said, err)
	}
}

func (c *cluster) put(caller, node int, key, value string) string {
	call := c.history.now()
	answer, err := c.nodes[node].ask("put", key, value)
	if err != nil {
		return ""
	}
	c.history.add(caller, input{key, value}, call, answer)
	return answer
}

func (c *cluster) get(caller, node int, key string) string {
	call := c.history.now()
	answer, err := c.nodes[node].ask("get", key)
	if err != nil {
		return ""
	}
	c.history.add(caller, input{key: key}, call, answer)
	return answer
}

// key is one of a few that change as time passes: too many operations on one key,
// above all without a known outcome, cannot be checked.
func (c *cluster) key(rng *rand.Rand) string {
	return fmt.Sprintf("k%d.%d", c.writes.Load()/100, rng.IntN(4))
}

// load calls from several goroutines until stop is closed.
func (c *cluster) load(callers int, stop <-chan struct{}) *sync.WaitGroup {
	var all sync.WaitGroup
	for caller := 1; caller <= callers; caller++ {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1))
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				node := rng.IntN(len(c.nodes))
				var answer string
				if rng.IntN(3) == 0 {
					answer = c.get(caller, node, c.key(rng))
				} else {
					answer = c.put(caller, node, c.key(rng), fmt.Sprint("v", c.writes.Add(1)))
				}
				if answer == "" || answer == "no" { // it is down or has no leader: no use to ask at once
					timer := time.NewTimer(10 * time.Millisecond)
					select {
					case <-stop:
					case <-timer.C:
					}
					timer.Stop()
				}
			}
		})
	}
	return &all
}

// torment breaks one node after the other for a time, now and then so many of
// them together that there is no quorum, and mends all.
func (c *cluster) torment(d time.Duration) {
	var mending sync.WaitGroup
	var broken atomic.Int64
	busy := make([]atomic.Bool, len(c.nodes))
	for end := time.Now().Add(d); time.Now().Before(end); {
		i := c.rng.IntN(len(c.nodes))
		pause := time.Duration(20+c.rng.IntN(200)) * time.Millisecond
		long := time.Duration(50+c.rng.IntN(1000)) * time.Millisecond
		kind, many := c.rng.IntN(3), c.rng.IntN(8) == 0
		if (many || int(broken.Load()) < (len(c.nodes)-1)/2) && busy[i].CompareAndSwap(false, true) {
			broken.Add(1)
			mend := c.damage(i, kind)
			mending.Go(func() {
				defer busy[i].Store(false)
				defer broken.Add(-1)
				timer := time.NewTimer(long)
				defer timer.Stop()
				<-timer.C
				mend()
			})
		}
		timer := time.NewTimer(pause)
		<-timer.C
	}
	mending.Wait()
}

// damage kills a node, pauses it, or cuts it off, and returns what mends it.
func (c *cluster) damage(i, kind int) (mend func()) {
	p := c.nodes[i]
	switch {
	case kind == 0:
		c.kills++
		p.kill()
		return func() {
			p.start(c.t)
			if _, err := p.incarnation(); err != nil {
				c.t.Error(err)
			}
		}
	case kind == 1 && c.cut != nil:
		c.cuts++
		c.cut(i, true)
		return func() { c.cut(i, false) }
	default:
		c.pauses++
		p.signal(syscall.SIGSTOP)
		return func() { p.signal(syscall.SIGCONT) }
	}
}

// finish ends the load, reads every key once more, and compares the nodes.
func (c *cluster) finish() {
	c.t.Helper()
	var keys []string
	for _, op := range c.history.ops {
		keys = append(keys, op.Input.(input).key)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for i := range c.nodes {
		c.until(fmt.Sprintf("n%d answers", i), func() bool { return strings.HasPrefix(c.get(0, i, "first"), "ok") })
	}
	// INV-1: what was acknowledged is there.
	for i, key := range keys {
		c.until("a last read of "+key, func() bool { return strings.HasPrefix(c.get(0, i%len(c.nodes), key), "ok") })
	}
	if err := c.history.check(); err != nil {
		c.t.Error(err)
	}
	c.until("all hold the same", func() bool {
		first, err := c.nodes[0].ask("dump")
		same := err == nil
		for _, p := range c.nodes[1:] {
			text, err := p.ask("dump")
			same = same && err == nil && text == first
		}
		return same
	})
	for _, p := range c.nodes {
		p.kill()
		if _, err := raftstore.Check(p.cfg.Dir); err != nil {
			c.t.Errorf("%s: %v", p.cfg.Name, err)
		}
		if said, err := os.ReadFile(p.errs); err != nil || len(said) > 0 {
			c.t.Errorf("%s says %q, %v", p.cfg.Name, said, err)
		}
	}
	h := &c.history
	c.t.Logf("%d nodes: %d kills, %d pauses, %d cut off; %d writes acknowledged, %d unknown, %d reads: linearizable, nothing lost",
		len(c.nodes), c.kills, c.pauses, c.cuts, h.acked, h.unsure, h.reads)
}

// duration is how long a cluster is tormented: a few seconds, or what
// RAFTSTORE_SOAK says.
func duration(t *testing.T, usual time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("RAFTSTORE_SOAK")
	if text == "" {
		return usual
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// run is a whole test.
func (c *cluster) run(d time.Duration) {
	c.t.Helper()
	stop := make(chan struct{})
	load := c.load(24, stop)
	c.torment(d)
	close(stop)
	load.Wait()
	c.finish()
}
