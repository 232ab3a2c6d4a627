package agent_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// writer makes one change after the other, and so knows each state that the
// store ever had.
type writer struct {
	w        *world
	rnd      *rand.Rand
	revision uint64
	versions map[string]uint64 // of the present state
	states   map[uint64]uint64 // digests, by revision
	unknown  int
}

func digestOf(revision uint64, versions map[string]uint64) uint64 {
	v := lbstate.View{Cluster: 7, Revision: revision}
	for name, version := range versions {
		v.Services = append(v.Services, lbstate.DesiredService{Name: name, Version: version})
	}
	return lbstate.Digest(v)
}

// server is one that lives, mostly one that can be answered.
func (wr *writer) server() *server {
	for {
		i := wr.rnd.IntN(places)
		wr.w.mu.Lock()
		s, away := wr.w.nodes[i], wr.w.away[i]
		wr.w.mu.Unlock()
		if s != nil && (!away || wr.rnd.IntN(8) == 0) {
			return s
		}
	}
}

// change tries one change until it is known to be made. Its precondition sees to
// it that an attempt whose outcome is unknown, and which is made late, changes
// nothing after the one that follows it.
func (wr *writer) change() {
	name := fmt.Sprint("service-", wr.rnd.IntN(12))
	before, exists := wr.versions[name]
	remove := exists && wr.rnd.IntN(4) == 0
	o := lbstate.WriteOptions{IfRevision: &before}
	weight := wr.rnd.IntN(60000)
	next := wr.revision + 1
	for {
		s := wr.server()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		r, err := wr.try(ctx, s.lb, name, remove, weight, o)
		cancel()
		if err == nil && r.Revision != next {
			wr.w.t.Fatalf("a change became revision %d, %d was expected", r.Revision, next)
		}
		if err == nil {
			break
		}
		if !lbstate.NotApplied(err) {
			wr.unknown++
		}
		if wr.made(next) {
			break
		}
	}
	wr.revision = next
	if remove {
		delete(wr.versions, name)
	} else {
		wr.versions[name] = next
	}
	wr.states[next] = digestOf(next, wr.versions)
}

// made asks the servers until one knows for sure whether there is a revision.
func (wr *writer) made(revision uint64) bool {
	for {
		s := wr.server()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		at, err := s.lb.Revision(ctx, lbstate.ReadOptions{})
		cancel()
		if err == nil {
			return at >= revision
		}
	}
}

func (wr *writer) try(ctx context.Context, lb *lbstate.Store, name string, remove bool, weight int, o lbstate.WriteOptions) (lbstate.WriteResult, error) {
	if remove {
		return lb.DeleteService(ctx, name, o)
	}
	port, err := strconv.Atoi(name[len("service-"):])
	if err != nil {
		return lbstate.WriteResult{}, err
	}
	return lb.PutService(ctx, lbstate.Service{
		Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Port: 1000 + port,
		Backends: []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1"), Weight: &weight}, {Address: netip.MustParseAddr("10.1.0.2")}},
	}, o)
}

func (wr *writer) changes(n int) {
	for range n {
		wr.change()
	}
}

// INV-10, INV-13, INV-14: servers die, are cut off, added, removed and replaced,
// leadership moves, agents restart; every agent ends equal to the store, none
// ever held a state that the store never had, and none went back. CHAOS is how long it lasts, as in 10m, CHAOS_SEED what
// it begins with.
func TestChaos(t *testing.T) {
	agents, length := 8, 5*time.Second
	if text := os.Getenv("CHAOS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		agents = 50
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, agents)
	wr := &writer{w: w, rnd: rnd, versions: map[string]uint64{}, states: map[uint64]uint64{0: digestOf(0, nil)}}
	stop := w.watch()
	defer stop()
	done := map[string]int{}
	for end := time.Now().Add(length); time.Now().Before(end); {
		taken, free := w.taken()
		i := taken[rnd.IntN(len(taken))]
		what := []string{"kill", "partition", "restart of an agent", "handover", "replacement", "addition and removal", "no fault"}[rnd.IntN(7)]
		done[what]++
		w.now("%s, at %d", what, i)
		switch what {
		case "kill":
			w.kill(i)
			wr.changes(rnd.IntN(5))
			w.start(i)
		case "partition":
			w.cut(i, true)
			wr.changes(rnd.IntN(5))
			w.cut(i, false)
		case "restart of an agent":
			d := w.refs[rnd.IntN(len(w.refs))]
			d.stop()
			wr.changes(rnd.IntN(3))
			w.startDirector(d)
		case "handover":
			w.change(func(ctx context.Context, leader *server) error {
				return leader.store.TransferLeadership(ctx, nameOf(i))
			})
			wr.changes(rnd.IntN(3))
		case "replacement": // of a server whose disk is lost
			w.wipe(i)
			wr.changes(rnd.IntN(3))
			w.join(w.open(i), nameOf(i))
		case "addition and removal":
			w.join(w.open(free), "")
			wr.changes(rnd.IntN(3))
			w.remove(i)
			wr.changes(rnd.IntN(3)) // what was removed goes on to run, and must not serve
			w.wipe(i)
		}
		w.now("changes")
		wr.changes(1 + rnd.IntN(5))
	}
	w.now("the last change")
	wr.changes(1)
	want := given{wr.revision, digestOf(wr.revision, wr.versions)}
	for _, d := range w.refs {
		w.now("%s gets the last state", d.name)
		for d.last() != want {
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Logf("%d changes, %d of unknown outcome, %v", wr.revision, wr.unknown, done)
	for _, d := range w.refs {
		var before uint64
		for _, v := range d.views {
			if v.revision < before {
				t.Errorf("%s went back from revision %d to %d", d.name, before, v.revision)
			}
			before = v.revision
			if digest, ok := wr.states[v.revision]; !ok || digest != v.digest {
				t.Errorf("%s was given a state at revision %d that the store never had", d.name, v.revision)
			}
		}
	}
	w.now("all kernels become equal")
	for !w.equal() {
		time.Sleep(5 * time.Millisecond)
	}
}
