package formation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/raftstore"
)

var testList = []string{"10.0.0.1:8010", "10.0.0.2:8010", "10.0.0.3:8010"}

// server is what server i (1, 2, …) of testList says when it is empty.
func server(i int) Info {
	return Info{
		Incarnation: uint64(100 + i), Name: fmt.Sprintf("n%d", i), List: testList,
		HTTPAddr: fmt.Sprintf("10.0.0.%d:8010", i), RaftAddr: fmt.Sprintf("10.0.0.%d:8110", i),
	}
}

func says(i Info, change ...func(*Info)) answer {
	for _, c := range change {
		c(&i)
	}
	return answer{address: i.HTTPAddr, info: &i}
}

func silent(i int) answer {
	return answer{address: fmt.Sprintf("10.0.0.%d:8010", i), err: errors.New("connection refused")}
}

func in(cluster uint64) func(*Info)      { return func(i *Info) { i.Cluster = cluster } }
func without(list ...string) func(*Info) { return func(i *Info) { i.Without = list } }
func listing(list ...string) func(*Info) { return func(i *Info) { i.List = list } }
func named(name string) func(*Info)      { return func(i *Info) { i.Name = name } }
func leader(address string) func(*Info)  { return func(i *Info) { i.Leader = address } }
func incarnated(n uint64) func(*Info)    { return func(i *Info) { i.Incarnation = n } }
func raftAt(address string) func(*Info)  { return func(i *Info) { i.RaftAddr = address } }
func knows(version uint64) func(*Info) {
	return func(i *Info) { i.Versions = raftstore.Versions{"lb": version} }
}

func needs(version uint64) func(*Info) {
	return func(i *Info) { i.Accepted = raftstore.Versions{"lb": version} }
}
func announcing(address string) func(*Info) { return func(i *Info) { i.HTTPAddr = address } }

// at is an answer given at another address than the one it announces.
func at(address string, a answer) answer {
	a.address = address
	return a
}

func TestDecide(t *testing.T) {
	record := func(incarnations ...uint64) func(*Info) {
		return func(i *Info) {
			i.Founding = &raftstore.Founding{Cluster: i.Cluster}
			for n, inc := range incarnations {
				i.Founding.Founders = append(i.Founding.Founders, raftstore.Founder{Member: uint64(n + 1), Incarnation: inc})
			}
		}
	}
	members := func(ids ...uint64) func(*Info) {
		return func(i *Info) {
			for _, id := range ids {
				i.Members = append(i.Members, raftstore.Member{ID: id})
			}
		}
	}
	me := server(1)
	tests := []struct {
		name    string
		self    Info // the zero value: server 1
		answers []answer
		action  action
		cluster uint64
		ask     string   // joined by commas
		waiting []string // parts of what it waits for
		err     []string // parts of the error
	}{
		{name: "all are empty", answers: []answer{says(server(2)), says(server(3))}, action: found},
		{name: "not the coordinator", self: server(2), answers: []answer{says(server(1)), says(server(3))}, waiting: []string{"10.0.0.1:8010", "makes the founding record"}},
		{name: "one is absent", answers: []answer{says(server(2)), silent(3)}, waiting: []string{"10.0.0.3:8010", "connection refused"}},
		{name: "all are absent", answers: []answer{silent(2), silent(3)}, waiting: []string{"10.0.0.2:8010", "10.0.0.3:8010"}},
		{name: "another list", answers: []answer{says(server(2)), says(server(3), listing(testList[:2]...))}, waiting: []string{"10.0.0.3:8010", "another list"}},
		{name: "another without", answers: []answer{says(server(2)), says(server(3), without(testList[1]))}, waiting: []string{"10.0.0.3:8010", "without [10.0.0.2:8010]"}},
		{
			name: "without, agreed", self: says(me, without(testList[1])).infoValue(),
			answers: []answer{silent(2), says(server(3), without(testList[1]))}, action: found,
		},
		{
			name: "without the lowest", self: says(server(2), without(testList[0])).infoValue(),
			answers: []answer{silent(1), says(server(3), without(testList[0]))}, action: found,
		},
		{
			name: "without one that is there and empty", self: says(me, without(testList[1])).infoValue(),
			answers: []answer{says(server(2)), says(server(3), without(testList[1]))}, action: found,
		},
		{
			name: "without one that has a cluster", self: says(me, without(testList[1])).infoValue(),
			answers: []answer{says(server(2), in(7)), says(server(3), without(testList[1]))}, action: join, cluster: 7, ask: "10.0.0.2:8010",
		},
		{
			name: "a cluster is known", answers: []answer{says(server(2), in(7), leader("10.0.0.9:8010")), says(server(3))},
			action: join, cluster: 7, ask: "10.0.0.9:8010,10.0.0.2:8010",
		},
		{
			name: "a cluster is known, though others are absent", answers: []answer{says(server(2), in(7)), silent(3)},
			action: join, cluster: 7, ask: "10.0.0.2:8010",
		},
		{name: "a founder without its record", answers: []answer{says(server(2), in(7), record(101, 102)), says(server(3))}, action: accept, cluster: 7},
		{name: "a founder that is a member still", answers: []answer{says(server(2), in(7), record(101, 102), members(1, 2)), silent(3)}, action: accept, cluster: 7},
		{name: "a founder that was removed", answers: []answer{says(server(2), in(7), record(101, 102), members(2, 3)), silent(3)}, action: join, cluster: 7, ask: "10.0.0.2:8010"},
		{name: "a founder that was wiped", answers: []answer{says(server(2), in(7), record(99, 102)), says(server(3))}, action: join, cluster: 7, ask: "10.0.0.2:8010"},
		{name: "two clusters", answers: []answer{says(server(2), in(7)), says(server(3), in(8))}, action: stop, err: []string{"cluster", "7 at 10.0.0.2:8010", "8 at 10.0.0.3:8010"}},
		{
			name: "a cluster that needs a newer program", self: says(me, knows(1)).infoValue(),
			answers: []answer{says(server(2), in(7), needs(2)), silent(3)}, action: stop, err: []string{"7 at 10.0.0.2:8010", "version 1", "accepts 2", "newer"},
		},
		{
			name: "a cluster that needs no newer program", self: says(me, knows(2)).infoValue(),
			answers: []answer{says(server(2), in(7), needs(2)), silent(3)}, action: join, cluster: 7, ask: "10.0.0.2:8010",
		},
		{name: "founders of several versions", self: says(me, knows(1)).infoValue(), answers: []answer{says(server(2), knows(2)), says(server(3))}, action: found},
		{name: "my name", answers: []answer{says(server(2), named("n1")), silent(3)}, action: stop, err: []string{"10.0.0.1:8010", "10.0.0.2:8010", `"n1"`}},
		{name: "others with one name", answers: []answer{says(server(2), named("x")), says(server(3), named("x"))}, waiting: []string{"10.0.0.2:8010", "10.0.0.3:8010", `"x"`}},
		{name: "my raft address", answers: []answer{says(server(2), raftAt(me.RaftAddr)), says(server(3))}, action: stop, err: []string{"same raft address 10.0.0.1:8110"}},
		{name: "copied data directory", answers: []answer{says(server(2), incarnated(101)), says(server(3))}, action: stop, err: []string{"copy"}},
		{name: "others with one data directory", answers: []answer{says(server(2)), says(server(3), incarnated(102))}, waiting: []string{"copy"}},
		{name: "an address that is this node", answers: []answer{at("node1:8010", says(me)), says(server(2))}, action: stop, err: []string{"node1:8010", "this node itself", "10.0.0.1:8010"}},
		{name: "an address that is another one's", answers: []answer{says(server(2)), at("10.0.0.3:8010", says(server(3), announcing("n3:8010")))}, waiting: []string{"10.0.0.3:8010", "announces itself as n3:8010"}},
		{
			name: "not on the list, no cluster", self: says(server(4), listing(testList...)).infoValue(),
			answers: []answer{says(server(1)), says(server(2)), says(server(3))}, waiting: []string{"not on the list"},
		},
		{
			name: "not on the list, a cluster", self: says(server(4), listing(testList...)).infoValue(),
			answers: []answer{silent(1), says(server(2), in(7)), silent(3)}, action: join, cluster: 7, ask: "10.0.0.2:8010",
		},
		{name: "alone", self: says(me, listing(testList[0])).infoValue(), action: found},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			self := tt.self
			if self.Name == "" {
				self = me
			}
			d := decide(self, self.HTTPAddr, tt.answers)
			if d.action != tt.action || d.cluster != tt.cluster {
				t.Errorf("action %d cluster %d, want %d %d (%+v)", d.action, d.cluster, tt.action, tt.cluster, d)
			}
			if tt.action == join && strings.Join(d.ask, ",") != tt.ask {
				t.Errorf("asks %v, want %s", d.ask, tt.ask)
			}
			if tt.action == accept && d.founding.Cluster != tt.cluster {
				t.Errorf("accepts %+v", d.founding)
			}
			if tt.action == found {
				want := len(self.List) - len(self.Without)
				if f, err := newFounding(d.founders); err != nil || len(f.Founders) != want {
					t.Errorf("founders %+v, %v, want %d", f, err, want)
				}
			}
			if (tt.action == wait) != (len(d.waiting) > 0) {
				t.Errorf("waiting %v", d.waiting)
			}
			text := fmt.Sprint(d.waiting)
			for _, part := range tt.waiting {
				if !strings.Contains(text, part) {
					t.Errorf("waiting %s does not say %q", text, part)
				}
			}
			for _, part := range tt.err {
				if d.err == nil || !strings.Contains(d.err.Error(), part) {
					t.Errorf("error %v does not say %q", d.err, part)
				}
			}
		})
	}
}

func (a answer) infoValue() Info { return *a.info }

// Of all servers of one list that see each other empty exactly one founds.
func TestOneCoordinator(t *testing.T) {
	var founders []string
	for i := 1; i <= 3; i++ {
		var others []answer
		for j := 1; j <= 3; j++ {
			if j != i {
				others = append(others, says(server(j)))
			}
		}
		if d := decide(server(i), server(i).HTTPAddr, others); d.action == found {
			founders = append(founders, server(i).Name)
		}
	}
	if !slices.Equal(founders, []string{"n1"}) {
		t.Errorf("%v make a founding record", founders)
	}
}
