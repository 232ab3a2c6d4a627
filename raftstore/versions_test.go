package raftstore_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
)

// versioned is a counter of a program that knows commands up to a version. It
// cannot apply those that begin with "v" and a higher one.
type versioned struct {
	counter
	version uint64
}

func (v versioned) CommandVersion() uint64 { return v.version }

func (v versioned) Apply(tx *bbolt.Tx, term, index uint64, cmds [][]byte) ([]any, error) {
	for _, c := range cmds {
		if c[0] == 'v' && uint64(c[1]-'0') > v.version {
			return nil, errors.New("this program does not know the command")
		}
	}
	return v.counter.Apply(tx, term, index, cmds)
}

// mixed starts a cluster of three, whose founding record tells no versions, as
// those of old data directories.
func mixed(t *testing.T, versions ...uint64) (*wire, []string, []node) {
	t.Helper()
	w := &wire{at: map[uint64]*port{}, cut: map[uint64]bool{}}
	founding := raftstore.Founding{Cluster: 42}
	var dirs []string
	var nodes []node
	for i, name := range []string{"a", "b", "c"} {
		dirs = append(dirs, t.TempDir())
		n := startWith(t, w, dirs[i], name, versioned{version: versions[i]})
		nodes = append(nodes, n)
		founding.Founders = append(founding.Founders, raftstore.Founder{Member: uint64(i + 1), Incarnation: n.Identity().Incarnation, Name: name, RaftAddr: name + ":1"})
	}
	for _, n := range nodes {
		if err := n.Found(founding); err != nil {
			t.Fatal(err)
		}
	}
	return w, dirs, nodes
}

func accepts(n node, version uint64) bool { return n.Machine("counter").Accepts(version) == nil }

// INV-17: commands of a version are proposed only when all members know it. Who
// does not is named; a program that is older cannot start or join any more.
func TestCommandVersions(t *testing.T) {
	w, dirs, nodes := mixed(t, 1, 2, 2)
	a, b, c := nodes[0], nodes[1], nodes[2]
	until(t, "all have said what they know", func() bool {
		v := map[string]uint64{}
		for _, n := range []node{a, b} {
			for _, m := range n.Members() {
				v[n.Identity().Name+m.Name] = m.Versions["counter"]
			}
		}
		return v["ab"] == 2 && v["ac"] == 2 && v["bb"] == 2 && v["bc"] == 2
	})
	if !accepts(a, 1) {
		t.Error("version 1 is not accepted")
	}
	err := b.Machine("counter").Accepts(2)
	var behind *raftstore.VersionError
	var known interface{ NotApplied() bool }
	if !errors.As(err, &known) || !known.NotApplied() || !errors.As(err, &behind) {
		t.Fatalf("version 2 with a member of version 1: %v", err)
	}
	if len(behind.Behind) != 1 || behind.Behind[0].Name != "a" || behind.Accepted != 1 || !strings.Contains(err.Error(), "a at a:1 knows version 1") {
		t.Errorf("behind: %+v: %v", behind, err)
	}

	// The last one is upgraded; everyone hears of it.
	a.stop()
	a = startWith(t, w, dirs[0], "a", versioned{version: 3})
	until(t, "version 2 is accepted by all", func() bool { return accepts(a, 2) && accepts(b, 2) && accepts(c, 2) })
	if accepts(a, 3) {
		t.Error("version 3 is accepted, which a alone knows")
	}
	write(t, a, "v2")
	until(t, "all have applied it", func() bool { return has(b, "v2") && has(c, "v2") })

	// Back to the older program: refused before anything is done.
	b.stop()
	for _, machine := range []raftstore.StateMachine{versioned{version: 1}, counter{}} {
		s, err := raftstore.Open(config(w, dirs[1], "b", machine))
		if !errors.Is(err, raftstore.ErrOlder) || !strings.Contains(err.Error(), `"counter" up to version 1, the cluster accepts 2`) {
			t.Errorf("an older program starts: %v, %v", s, err)
		}
	}
	without := config(w, dirs[1], "b", nil)
	without.StateMachines = map[string]raftstore.StateMachine{"other": counter{}}
	if _, err := raftstore.Open(without); !errors.Is(err, raftstore.ErrOlder) {
		t.Errorf("a program without the state machine starts: %v", err)
	}
	rep, err := raftstore.Check(dirs[1])
	if err != nil || rep.Accepted["counter"] != 2 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	b = startWith(t, w, dirs[1], "b", versioned{version: 2})

	// A node that joins must know as much.
	leader := leaderOf(t, map[string]node{"a": a, "b": b, "c": c})
	until(t, "old programs are refused", func() bool {
		leader = leaderOf(t, map[string]node{"a": a, "b": b, "c": c})
		_, err := leader.AddMember(t.Context(), raftstore.Member{Name: "d", RaftAddr: "d:1", Incarnation: 7, Versions: raftstore.Versions{"counter": 1, "raftstore": 1}})
		return errors.Is(err, raftstore.ErrOlder)
	})
	until(t, "new ones are not", func() bool {
		leader = leaderOf(t, map[string]node{"a": a, "b": b, "c": c})
		_, err := leader.AddMember(t.Context(), raftstore.Member{Name: "d", RaftAddr: "d:1", Incarnation: 7, Versions: raftstore.Versions{"counter": 2, "raftstore": 1}})
		return err == nil
	})

	// A backup remembers it.
	var backup bytes.Buffer
	if _, err := leader.Backup(&backup); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "new")
	if _, err := raftstore.Restore(to, &backup); err != nil {
		t.Fatal(err)
	}
	if _, err := raftstore.Open(config(nil, to, "z", counter{})); !errors.Is(err, raftstore.ErrOlder) {
		t.Errorf("an older program starts on a backup: %v", err)
	}
	z := startWith(t, nil, to, "z", versioned{version: 3})
	until(t, "alone it knows enough", func() bool { return accepts(z, 3) })
}

// A member that is behind and gone for good does not hold the others back once it
// is removed.
func TestRemovalRaisesTheVersion(t *testing.T) {
	_, _, nodes := mixed(t, 1, 2, 2)
	until(t, "a alone is behind", func() bool {
		var behind *raftstore.VersionError
		return errors.As(nodes[1].Machine("counter").Accepts(2), &behind) && len(behind.Behind) == 1
	})
	nodes[0].stop()
	rest := map[string]node{"b": nodes[1], "c": nodes[2]}
	until(t, "a is removed", func() bool {
		err := leaderOf(t, rest).RemoveMember(t.Context(), "a")
		return err == nil || errors.Is(err, raftstore.ErrNoMember)
	})
	until(t, "version 2 is accepted", func() bool { return accepts(nodes[1], 2) && accepts(nodes[2], 2) })
}

// A program that was set back before the others agreed on what it knew stops
// where they did, and not at the first command that it cannot apply.
func TestSetBackBeforeItWasAccepted(t *testing.T) {
	for name, writes := range map[string]int{"by the log": 1, "by a snapshot": 200} {
		t.Run(name, func(t *testing.T) {
			w, dirs, nodes := mixed(t, 2, 1, 2)
			a, b, c := nodes[0], nodes[1], nodes[2]
			until(t, "a and c have said what they know", func() bool {
				var behind *raftstore.VersionError
				return errors.As(a.Machine("counter").Accepts(2), &behind) && len(behind.Behind) == 1
			})
			a.stop()
			b.stop()
			b = startWith(t, w, dirs[1], "b", versioned{version: 2})
			until(t, "version 2 is accepted", func() bool { return accepts(b, 2) && accepts(c, 2) })
			for range writes {
				write(t, b, "v2")
			}
			a = startWith(t, w, dirs[0], "a", versioned{version: 1})
			until(t, "it stops", func() bool { return a.Err() != nil })
			if err := a.Err(); !errors.Is(err, raftstore.ErrOlder) {
				t.Errorf("it stops with %v", err)
			}
		})
	}
}

// A state machine that not every member has takes no commands.
func TestNewStateMachine(t *testing.T) {
	w, dirs, nodes := mixed(t, 1, 1, 1)
	write(t, leaderOf(t, map[string]node{"a": nodes[0], "b": nodes[1], "c": nodes[2]}), "x")
	propose := func(n node) error {
		_, _, err := n.Machine("more").Propose(t.Context(), []byte("x"))
		return err
	}
	until(t, "all have said what they have", func() bool {
		for _, m := range nodes[0].Members() {
			if m.Versions == nil {
				return false
			}
		}
		return true
	})
	for i := range nodes {
		nodes[i].stop()
		cfg := config(w, dirs[i], nodes[i].Identity().Name, counter{})
		cfg.StateMachines["more"] = versioned{version: 1}
		nodes[i] = run(t, cfg)
		var behind *raftstore.VersionError
		switch {
		case i == 2:
			until(t, "all have it", func() bool { return propose(nodes[0]) == nil })
		case !errors.As(propose(nodes[0]), &behind) || len(behind.Behind) < 2-i:
			t.Errorf("after %d of 3: %v", i+1, behind)
		}
	}
}
