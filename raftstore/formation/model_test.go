package formation

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag  = flag.Uint64("formation.seed", 0, "first seed of the model test; 0 takes one at random")
	seedsFlag = flag.Int("formation.seeds", 40, "number of seeds of the model test")
)

// TestNeverTwoClusters drives servers of one list through crashes, wiped disks,
// partitions, and a network that loses, doubles and delays requests. At no time
// may two clusters have a quorum of living disks. When the faults end, all are
// in one cluster, or those that cannot be say why.
func TestNeverTwoClusters(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf("seeds %d to %d (-formation.seed, -formation.seeds)", seed, seed+uint64(*seedsFlag)-1)
	for i := range uint64(*seedsFlag) {
		s := seed + i
		synctest.Test(t, func(t *testing.T) {
			if violation := runModel(t, s, nil); violation != "" {
				t.Fatalf("seed %d: %s", s, violation)
			}
		})
	}
}

// The model test notices when the rules are broken.
func TestModelCatchesBrokenRules(t *testing.T) {
	broken := map[string]func(n *Node){
		"forms with those that answer": func(n *Node) {
			n.decide = func(self Info, own string, answers []answer) decision {
				answers = slices.DeleteFunc(answers, func(a answer) bool { return a.info == nil })
				self.List = []string{own}
				for _, a := range answers {
					self.List = append(self.List, a.address)
				}
				slices.Sort(self.List)
				for _, a := range answers {
					a.info.List = self.List
				}
				return decide(self, own, answers)
			}
		},
		"forms although a cluster is known": func(n *Node) {
			n.decide = func(self Info, own string, answers []answer) decision {
				if d := decide(self, own, answers); d.action != join {
					return d
				}
				return decision{action: found, founders: []Info{self}}
			}
		},
	}
	for name, breakIt := range broken {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				caught := false
				synctest.Test(t, func(t *testing.T) { caught = runModel(t, seed, breakIt) != "" })
				if caught {
					t.Logf("caught with seed %d", seed)
					return
				}
			}
			t.Error("not caught within 100 seeds")
		})
	}
}

// runModel returns what went wrong, or nothing.
func runModel(t *testing.T, seed uint64, breakIt func(*Node)) string {
	rng := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, seed, 3+2*rng.IntN(2))
	w.breakIt = breakIt
	defer func() {
		w.killAll()
		time.Sleep(time.Minute) // what is still on its way arrives
	}()
	w.faults = faults{drop: 0.2 * rng.Float64(), duplicate: 0.2 * rng.Float64(), delay: 0.3 * rng.Float64(), maxDelay: 10 * time.Second, cut: map[string]bool{}}
	wipes := 0.06 * rng.Float64()

	crash := func(h *host) {
		// The process ends at a step of accepting a record, half of the time.
		at := rng.IntN(4)
		h.crashes(func(durable bool) error {
			if (at == 0 && !durable) || (at == 1 && durable) {
				return errPowerCut
			}
			return nil
		})
	}
	start := func(h *host) {
		crash(h)
		h.start()
	}
	hosts := w.all()
	began := time.Now()
	var trouble string
	check := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if q := w.quorate(); len(q) > 1 && trouble == "" {
			trouble = fmt.Sprintf("after %v two clusters have a quorum: %x, members %+v", time.Since(began), q, w.clusters)
		}
	}
	for range 150 {
		time.Sleep(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		h := hosts[rng.IntN(len(hosts))]
		switch p := rng.Float64(); {
		case p < wipes:
			h.wipe()
		case p < 0.12:
			_ = h.kill()
		case p < 0.22:
			w.mu.Lock()
			w.faults.cut[h.address] = !w.faults.cut[h.address]
			w.mu.Unlock()
		case p < 0.6:
			if !h.up() {
				_ = h.kill()
				start(h)
			}
		}
		check()
		if trouble != "" {
			return trouble
		}
	}
	w.mu.Lock()
	w.faults = faults{}
	w.mu.Unlock()
	for _, h := range hosts {
		_ = h.kill()
		h.crashes(nil)
		h.start()
	}
	for range 120 {
		time.Sleep(500 * time.Millisecond)
		check()
	}
	if trouble == "" {
		trouble = judgeEnd(w)
	}
	return trouble
}

// judgeEnd says what is wrong after all is well again.
func judgeEnd(w *world) string {
	w.mu.Lock()
	alive := w.quorate()
	records := map[uint64]bool{}
	for _, h := range w.hosts {
		if c := h.disk.id.Cluster; c != 0 {
			records[c] = true
		}
	}
	w.mu.Unlock()
	if len(records) == 0 {
		return "no cluster was formed though all are up"
	}
	for _, h := range w.all() {
		p := h.last.Progress()
		if len(alive) == 1 && h.cluster() == alive[0] {
			continue
		}
		if p.Phase == Done && !slices.Contains(alive, h.cluster()) {
			continue // all had the record once: who lost their disks since is not for formation to say
		}
		// Not in the cluster that works: another one's record is in the way, here
		// or elsewhere, and the node must say so.
		if len(alive) == 1 && len(records) == 1 {
			return fmt.Sprintf("%s is not in cluster %x, the only one: %v", h.address, alive[0], p)
		}
		if p.Problem == "" {
			return fmt.Sprintf("%s is stuck and does not say why: %v (clusters with a quorum: %x)", h.address, p, alive)
		}
	}
	return ""
}
