package formation

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/raftstore"
)

// simulate runs a scenario in a bubble of its own; what is left of it is ended.
func simulate(t *testing.T, n int, scenario func(t *testing.T, w *world)) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, n)
		defer func() {
			w.killAll()
			time.Sleep(time.Minute)
		}()
		scenario(t, w)
	})
}

// one checks that hosts are in one cluster and returns it.
func (w *world) one(hosts ...*host) uint64 {
	w.t.Helper()
	c := hosts[0].cluster()
	for _, h := range hosts {
		if h.cluster() != c || c == 0 {
			w.t.Fatalf("%s is in cluster %x, %s in %x: %v", hosts[0].address, c, h.address, h.cluster(), h.last.Progress())
		}
	}
	return c
}

// empty checks that hosts are in no cluster and wait for what is said.
func (w *world) waits(h *host, parts ...string) {
	w.t.Helper()
	if c := h.cluster(); c != 0 {
		w.t.Errorf("%s is in cluster %x", h.address, c)
	}
	p := h.last.Progress()
	for _, part := range parts {
		if !strings.Contains(p.String(), part) {
			w.t.Errorf("%s says %q, without %q", h.address, p, part)
		}
	}
}

func TestSimultaneousStart(t *testing.T) {
	for n := 1; n <= 7; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			simulate(t, n, func(t *testing.T, w *world) {
				for _, h := range w.all() {
					time.Sleep(w.delay(2 * time.Second))
					h.start()
				}
				time.Sleep(5 * time.Second)
				c := w.one(w.all()...)
				if got := len(w.members(c)); got != n {
					t.Errorf("%d members", got)
				}
				for _, h := range w.all() {
					if err := <-h.done; err != nil {
						t.Errorf("Run of %s: %v", h.address, err)
					}
					h.done <- nil
					if p := h.last.Progress(); p.Phase != Done || !p.In() || p.Cluster != c {
						t.Errorf("progress of %s: %v", h.address, p)
					}
				}
			})
		})
	}
}

func TestOneAloneFormsAtOnce(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		h := w.all()[0].start()
		synctest.Wait()
		w.one(h)
	})
}

func TestAbsentFounder(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		h[0].start()
		h[1].start()
		time.Sleep(time.Minute)
		w.waits(h[0], "10.0.0.3:8010", "timed out")
		w.waits(h[1], "10.0.0.3:8010")
		h[2].start()
		time.Sleep(5 * time.Second)
		w.one(h...)
	})
}

func TestWithoutTheAbsent(t *testing.T) {
	simulate(t, 5, func(t *testing.T, w *world) {
		h := w.all()
		absent := []string{h[0].address, "http://10.0.0.5:8010"}
		for _, x := range h[1:4] {
			x.without = absent
		}
		h[1].start()
		h[2].start()
		time.Sleep(10 * time.Second)
		w.waits(h[1], "10.0.0.4:8010")
		h[3].start()
		time.Sleep(5 * time.Second)
		c := w.one(h[1:4]...)
		h[0].start() // they come after all, told nothing
		h[4].start()
		time.Sleep(5 * time.Second)
		if got := w.one(h...); got != c || len(w.members(c)) != 5 {
			t.Errorf("cluster %x with %d members", got, len(w.members(got)))
		}
	})
}

func TestNodeNotOnTheListJoins(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		other := w.add("10.0.0.9:8010", "n9").start()
		time.Sleep(10 * time.Second)
		w.waits(other, "not on the list")
		for _, x := range h {
			x.start()
		}
		time.Sleep(10 * time.Second)
		w.one(w.all()...)
	})
}

// The coordinator stops at each step of founding; whatever is durable then, one
// cluster comes of it.
func TestCoordinatorStops(t *testing.T) {
	for _, durable := range []bool{false, true} {
		for _, returns := range []string{"returns", "wiped"} {
			t.Run(fmt.Sprintf("durable=%v %s", durable, returns), func(t *testing.T) {
				simulate(t, 3, func(t *testing.T, w *world) {
					h := w.all()
					h[0].crashes(func(d bool) error {
						if d == durable {
							return errPowerCut
						}
						return nil
					})
					for _, x := range h {
						x.start()
					}
					h[0].dies()
					time.Sleep(20 * time.Second)
					w.waits(h[1], "10.0.0.1:8010")
					w.waits(h[2], "10.0.0.1:8010")
					if returns == "wiped" {
						h[0].wipe()
					}
					h[0].crashes(nil)
					h[0].start()
					time.Sleep(5 * time.Second)
					w.one(h...)
				})
			})
		}
	}
}

// The coordinator dies for good when one other founder has its record: that one
// gives it to the rest.
func TestCoordinatorDiesAfterItsFirstOffer(t *testing.T) {
	simulate(t, 5, func(t *testing.T, w *world) {
		h := w.all()
		for _, x := range h[2:] {
			x.crashes(func(bool) error { return errors.New("not now") })
		}
		for _, x := range h {
			x.start()
		}
		for h[1].cluster() == 0 {
			time.Sleep(time.Millisecond)
		}
		_ = h[0].kill()
		for _, x := range h[2:] {
			_ = x.kill()
			x.crashes(nil)
			x.start()
		}
		time.Sleep(30 * time.Second)
		w.one(h[1:]...)
	})
}

func TestWipedDisk(t *testing.T) {
	t.Run("before it accepted", func(t *testing.T) {
		simulate(t, 3, func(t *testing.T, w *world) {
			h := w.all()
			h[2].crashes(func(bool) error { return errPowerCut })
			for _, x := range h {
				x.start()
			}
			for h[1].cluster() == 0 {
				time.Sleep(time.Millisecond)
			}
			record, _ := h[1].disk.Founding()
			lost := h[2].disk.Identity().Incarnation
			h[2].wipe()
			h[2].start()
			time.Sleep(20 * time.Second)
			c := w.one(h...)
			// The record comes late: it was made for a disk that is gone.
			if err := acceptable(record, h[2].disk.Identity()); err == nil || !strings.Contains(err.Error(), "lost its disk") {
				t.Errorf("the late record: %v", err)
			}
			for _, m := range w.members(c) {
				if m.Incarnation == lost {
					t.Errorf("the lost disk is still a member: %+v", m)
				}
			}
			if _, founded := h[2].disk.Founding(); founded {
				t.Error("the wiped node is a founder")
			}
			if p := h[0].last.Progress(); p.Phase != Done {
				t.Errorf("a founder still waits: %v", p)
			}
		})
	})
	t.Run("after it accepted", func(t *testing.T) {
		simulate(t, 3, func(t *testing.T, w *world) {
			h := w.all()
			for _, x := range h {
				x.start()
			}
			time.Sleep(5 * time.Second)
			c, was := w.one(h...), h[0].disk.Identity()
			h[0].wipe()
			h[0].start()
			time.Sleep(5 * time.Second)
			if got := w.one(h...); got != c {
				t.Errorf("cluster %x became %x", c, got)
			}
			if is := h[0].disk.Identity(); is.Member == was.Member {
				t.Errorf("the wiped node is member %x again", is.Member)
			}
		})
	})
	t.Run("two of three", func(t *testing.T) {
		simulate(t, 3, func(t *testing.T, w *world) {
			h := w.all()
			for _, x := range h {
				x.start()
			}
			time.Sleep(5 * time.Second)
			h[0].wipe()
			h[1].wipe()
			_ = h[2].kill()
			for _, x := range h {
				x.start()
			}
			time.Sleep(30 * time.Second)
			w.waits(h[0], "no leader")
			w.waits(h[1], "no leader")
			if p := h[2].last.Progress(); !strings.Contains(p.Problem, "cannot get a quorum") {
				t.Errorf("the last one with a disk says %q", p)
			}
		})
	})
}

// A record that never got a quorum, while the others are in another cluster:
// its holder says so, and joins once a person has wiped it.
func TestStuckRecord(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		h[0].crashes(func(durable bool) error {
			if durable {
				return errPowerCut
			}
			return nil
		})
		for _, x := range h {
			x.start()
		}
		h[0].dies()
		h[0].crashes(nil)
		for _, x := range h[1:] {
			_ = x.kill()
			x.without = []string{h[0].address}
			x.start()
		}
		time.Sleep(10 * time.Second)
		c := w.one(h[1:]...)
		h[0].start()
		time.Sleep(10 * time.Second)
		if p := h[0].last.Progress(); !strings.Contains(p.Problem, "cannot get a quorum") || !strings.Contains(p.String(), fmt.Sprintf("another cluster, %x", c)) {
			t.Errorf("the stuck one says %q", p)
		}
		h[0].wipe()
		h[0].start()
		time.Sleep(10 * time.Second)
		w.one(h...)
	})
}

func TestConfusedServersStop(t *testing.T) {
	tests := []struct {
		name  string
		setup func(w *world, h []*host)
		stops []int // hosts whose Run ends with an error
		says  []string
	}{
		{name: "two names equal", setup: func(_ *world, h []*host) {
			h[1].disk.id.Name = h[0].name
		}, stops: []int{0, 1}, says: []string{"same name", "10.0.0.1:8010", "10.0.0.2:8010"}},
		{name: "two clusters", setup: func(w *world, h []*host) {
			h[0].list = []string{h[0].address}
			h[1].list = []string{h[1].address}
		}, stops: []int{2}, says: []string{"two clusters", "10.0.0.1:8010", "10.0.0.2:8010"}},
		{name: "a host name for this node", setup: func(w *world, h []*host) {
			w.hosts["node1:8010"] = h[0]
			h[0].list = []string{"node1:8010", h[0].address, h[1].address, h[2].address}
		}, stops: []int{0}, says: []string{"node1:8010", "this node itself"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, 3, func(t *testing.T, w *world) {
				h := w.all()
				tt.setup(w, h)
				for _, x := range h {
					x.start()
					time.Sleep(10 * time.Millisecond)
				}
				for _, i := range tt.stops {
					err := <-h[i].done
					h[i].done <- nil
					for _, part := range tt.says {
						if err == nil || !strings.Contains(err.Error(), part) {
							t.Errorf("%s ends with %v, which does not say %q", h[i].address, err, part)
						}
					}
					if p := h[i].last.Progress(); p.Phase != Stopped || p.Problem == "" {
						t.Errorf("progress %v", p)
					}
				}
			})
		})
	}
}

func TestDifferentListsWait(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		h[2].list = []string{h[0].address, h[2].address}
		for _, x := range h {
			x.start()
		}
		time.Sleep(10 * time.Second)
		w.waits(h[0], "10.0.0.3:8010", "another list")
		w.waits(h[2], "10.0.0.1:8010", "another list")
		_ = h[2].kill()
		h[2].list = nil
		h[2].start()
		time.Sleep(10 * time.Second)
		w.one(h...)
	})
}

// A name that is in use is not given away, and the one that asks says why it
// waits; when the other is gone it gets its place.
func TestNameInUse(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		for _, x := range h {
			x.start()
		}
		time.Sleep(5 * time.Second)
		late := w.add("10.0.0.9:8010", "n2").start()
		time.Sleep(10 * time.Second)
		w.waits(late, "n2", "in use by 10.0.0.2:8010")
		_ = h[1].kill()
		time.Sleep(10 * time.Second)
		w.one(h[0], h[2], late)
	})
}

// What a node's program knows goes with it, into the founding record and to the
// leader; one that does not know enough ends with the reason.
func TestVersionsAreTold(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		h := w.all()
		for i, x := range h {
			x.disk.id.Versions = raftstore.Versions{"lb": uint64(i + 1)}
			x.start()
		}
		time.Sleep(5 * time.Second)
		late := w.add("10.0.0.9:8010", "n9")
		late.disk.id.Versions = raftstore.Versions{"lb": 9}
		late.start()
		time.Sleep(5 * time.Second)
		told := map[string]uint64{}
		for _, m := range w.members(w.one(w.all()...)) {
			told[m.Name] = m.Versions["lb"]
		}
		if want := map[string]uint64{"n1": 1, "n2": 2, "n3": 3, "n9": 9}; !maps.Equal(told, want) {
			t.Errorf("versions %v, want %v", told, want)
		}
		w.accepted = raftstore.Versions{"lb": 2}
		old := w.add("10.0.0.10:8010", "n10")
		old.disk.id.Versions = raftstore.Versions{"lb": 1}
		old.start()
		err := <-old.done
		old.done <- nil
		if !errors.Is(err, raftstore.ErrOlder) {
			t.Errorf("a program that is too old: %v", err)
		}
	})
}

// A store that cannot write ends Run.
func TestDiskFails(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		h := w.all()[0]
		full := errors.New("no space left on device")
		h.crashes(func(bool) error { return full })
		h.start()
		if err := <-h.done; !errors.Is(err, full) {
			t.Errorf("Run: %v", err)
		}
		h.done <- nil
	})
}

func TestConfigIsChecked(t *testing.T) {
	store := &disk{w: newWorld(t, 1, 0), id: raftstore.Identity{Incarnation: 1, Name: "n", HTTPAddr: "10.0.0.1:8010", RaftAddr: "10.0.0.1:8110"}}
	list := []string{"10.0.0.1:8010", "10.0.0.2:8010", "10.0.0.3:8010"}
	many := list
	for i := range maxServers {
		many = append(many, fmt.Sprintf("10.0.1.%d:8010", i))
	}
	for name, tt := range map[string]struct {
		cfg Config
		say string
	}{
		"no store":           {Config{}, "Store"},
		"other self":         {Config{Store: store, Self: "10.0.0.2:8010"}, "10.0.0.2:8010"},
		"bad self":           {Config{Store: store, Self: "here"}, "host:port"},
		"bad list":           {Config{Store: store, List: []string{"10.0.0.1"}}, "host:port"},
		"long list":          {Config{Store: store, List: many}, "at most"},
		"scheme":             {Config{Store: store, Scheme: "gopher"}, "gopher"},
		"absent itself":      {Config{Store: store, List: list, Without: list[:1]}, "is this node"},
		"absent, not listed": {Config{Store: store, List: list, Without: []string{"10.0.0.4:8010"}}, "not on the list"},
		"absent half":        {Config{Store: store, List: list, Without: list[1:]}, "fewer than half"},
		"absent, unreadable": {Config{Store: store, List: list, Without: []string{"x"}}, "host:port"},
		"negative time":      {Config{Store: store, PollInterval: -1}, "negative"},
	} {
		if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v, which does not say %q", name, err, tt.say)
		}
	}
	n, err := New(Config{Store: store})
	if err != nil || len(n.list) != 1 || n.list[0] != "10.0.0.1:8010" {
		t.Errorf("the least that is needed: %v", err)
	}
}
