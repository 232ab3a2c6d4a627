package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
)

// three starts a cluster of three on a wire and returns it with its leader.
func three(t *testing.T) (w *wire, dirs map[string]string, nodes map[string]node) {
	t.Helper()
	w = &wire{at: map[uint64]*port{}, cut: map[uint64]bool{}}
	dirs, nodes = map[string]string{}, map[string]node{}
	founding := raftstore.Founding{Cluster: 42}
	for i, name := range []string{"a", "b", "c"} {
		dirs[name] = t.TempDir()
		nodes[name] = start(t, w, dirs[name], name)
		founding.Founders = append(founding.Founders, raftstore.Founder{Member: uint64(i + 1), Incarnation: nodes[name].Identity().Incarnation, Name: name, RaftAddr: name + ":1"})
	}
	for _, n := range nodes {
		if err := n.Found(founding); err != nil {
			t.Fatal(err)
		}
	}
	return w, dirs, nodes
}

func leaderOf(t *testing.T, nodes map[string]node) node {
	t.Helper()
	var leader node
	until(t, "a leader", func() bool {
		for _, n := range nodes {
			if leading, _, _ := n.Leadership(); leading {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func count(t *testing.T, n node) (sum uint64) {
	t.Helper()
	if err := n.Read(t.Context(), func(tx *bbolt.Tx) error {
		sum = tx.Bucket(bucket).Sequence()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestBackupAndRestore(t *testing.T) {
	dir := t.TempDir()
	n := start(t, nil, dir, "a")
	for i := range 70 {
		write(t, n, fmt.Sprint("w", i))
	}
	var online, stopped bytes.Buffer
	info, err := n.Backup(&online)
	if err != nil {
		t.Fatal(err)
	}
	if info.Cluster != n.Identity().Cluster || info.Index == 0 || info.Bytes != int64(online.Len()) {
		t.Errorf("backup %+v of %d bytes", info, online.Len())
	}
	if _, err := raftstore.BackupDir(dir, &stopped); err == nil {
		t.Error("a directory that is in use was backed up from the side")
	}
	cluster := n.Identity().Cluster
	n.stop()
	if info, err = raftstore.BackupDir(dir, &stopped); err != nil || info.Behind != 0 {
		t.Fatalf("backup of a stopped node: %+v, %v", info, err)
	}
	for name, data := range map[string][]byte{"online": online.Bytes(), "stopped": stopped.Bytes()} {
		to := filepath.Join(t.TempDir(), "new")
		if _, err := raftstore.Restore(to, bytes.NewReader(data)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := raftstore.Restore(to, bytes.NewReader(data)); err == nil {
			t.Error("restored over a directory that is in use")
		}
		r := start(t, nil, to, "z")
		write(t, r, "after")
		if got := count(t, r); got != 71 {
			t.Errorf("%s: %d commands, want 71", name, got)
		}
		st := r.Status()
		if st.Cluster == cluster || st.Predecessor != cluster || len(r.Members()) != 1 || r.Members()[0].Name != "z" {
			t.Errorf("%s: restored as %+v, members %v", name, st, r.Members())
		}
		r.stop()
		if rep, err := raftstore.Check(to); err != nil || rep.Predecessor != cluster || !rep.Clean {
			t.Errorf("%s: check: %+v, %v", name, rep, err)
		}
	}
	for i := 0; i < online.Len(); i += 1 + online.Len()/200 {
		data := bytes.Clone(online.Bytes())
		data[i] ^= 0x10
		if _, err := raftstore.Restore(filepath.Join(t.TempDir(), "x"), bytes.NewReader(data)); err == nil {
			t.Fatalf("byte %d of a backup is flipped, and it is restored", i)
		}
	}
	if _, err := raftstore.Restore(filepath.Join(t.TempDir(), "x"), bytes.NewReader(online.Bytes()[:online.Len()-9])); err == nil {
		t.Error("a backup that is cut short is restored")
	}
}

// Two of three are lost for ever; the third goes on as a cluster of its own.
func TestRecover(t *testing.T) {
	_, dirs, nodes := three(t)
	leader := leaderOf(t, nodes)
	for i := range 70 {
		write(t, leader, fmt.Sprint("w", i))
	}
	until(t, "all have it", func() bool { return has(nodes["a"], "w69") && has(nodes["b"], "w69") && has(nodes["c"], "w69") })
	for _, n := range nodes {
		n.stop()
	}
	r, err := raftstore.Recover(dirs["b"])
	if err != nil {
		t.Fatal(err)
	}
	if r.Predecessor != 42 || r.Cluster == 42 || len(r.Lost) != 2 || r.Last < r.Commit {
		t.Errorf("recovery %+v", r)
	}
	n := start(t, nil, dirs["b"], "b")
	write(t, n, "after")
	if got := count(t, n); got != 71 {
		t.Errorf("%d commands, want 71", got)
	}
	if m := n.Members(); len(m) != 1 || m[0].Name != "b" || n.Status().Predecessor != 42 {
		t.Errorf("members %v, %+v", m, n.Status())
	}
	n.stop()
	if _, err := raftstore.Check(dirs["b"]); err != nil {
		t.Error(err)
	}
}

func TestMembersByHand(t *testing.T) {
	w, dirs, nodes := three(t)
	leader := leaderOf(t, nodes)
	write(t, leader, "x")
	ctx := t.Context()
	change := func(what string, do func() error) {
		t.Helper()
		until(t, what, func() bool {
			err := do()
			if err != nil && !errors.Is(err, raftstore.ErrBusy) && !errors.Is(err, raftstore.ErrNotLeader) {
				t.Fatalf("%s: %v", what, err)
			}
			leader = leaderOf(t, nodes)
			return err == nil
		})
	}
	change("a new address", func() error { return leader.UpdateMember(ctx, "a", "a:9", "") })
	if i := slices.IndexFunc(leader.Members(), func(m raftstore.Member) bool { return m.Name == "a" && m.RaftAddr == "a:9" }); i < 0 {
		t.Errorf("members %+v", leader.Members())
	}
	if err := leader.UpdateMember(ctx, "nobody", "x", ""); !errors.Is(err, raftstore.ErrNoMember) {
		t.Errorf("an address of nobody: %v", err)
	}
	dead := "a"
	if leader.Identity().Name == "a" {
		dead = "b"
	}
	nodes[dead].stop()
	delete(nodes, dead)
	d := start(t, w, t.TempDir(), "d")
	var m raftstore.Membership
	change("the dead one is replaced", func() (err error) {
		m, err = leader.ReplaceMember(ctx, dead, raftstore.Member{Name: "d", RaftAddr: "d:1", Incarnation: d.Identity().Incarnation})
		return err
	})
	if err := d.Join(m); err != nil {
		t.Fatal(err)
	}
	nodes["d"] = d
	change("promoted by hand", func() error { return leader.Promote(ctx, "d") })
	until(t, "the new one votes and has all", func() bool { return d.Status().Role == "follower" && has(d, "x") })
	if err := leader.RemoveMember(ctx, dead); !errors.Is(err, raftstore.ErrNoMember) {
		t.Errorf("the dead one is still there: %v", err)
	}
	_ = dirs
}

func TestSnapshotCutsTheLog(t *testing.T) {
	n := start(t, nil, t.TempDir(), "a")
	for i := range 20 {
		write(t, n, fmt.Sprint("w", i))
	}
	before := n.Status()
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := n.Status(); st.Durable <= before.Durable || st.Durable != st.Applied || st.LogBytes == 0 || st.StateBytes == 0 {
		t.Errorf("before %+v, after %+v", before, st)
	}
}

// INV-5: a flipped byte in any small file is an error that names the file.
func TestFlippedSmallFiles(t *testing.T) {
	dir := t.TempDir()
	n := start(t, nil, dir, "a")
	write(t, n, "x")
	n.stop()
	for _, name := range []string{"node.json", "checkpoint"} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(whole); i += 1 + len(whole)/300 {
			data := bytes.Clone(whole)
			data[i] ^= 0x04
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := raftstore.Check(dir); err == nil {
				t.Fatalf("byte %d of %s is flipped, and nothing is said", i, name)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := raftstore.Check(dir); err != nil {
		t.Error(err)
	}
}

// Too many commands at once are an error at once.
func TestOverload(t *testing.T) {
	block := make(chan struct{})
	s, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), StateMachines: map[string]raftstore.StateMachine{"counter": blocking{block}}, MaxPending: 3})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	results := make(chan error, 10)
	for i := range 10 {
		go func() {
			_, _, err := s.Machine("counter").Propose(context.Background(), fmt.Append(nil, i))
			results <- err
		}()
	}
	for range 7 {
		err := <-results
		var known interface{ NotApplied() bool }
		if !errors.As(err, &known) || !known.NotApplied() || !(errors.Is(err, raftstore.ErrOverloaded) || errors.Is(err, raftstore.ErrNoLeader)) {
			t.Errorf("one too many: %v", err)
		}
	}
	close(block)
	for range 3 {
		_ = <-results // whatever became of them
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// blocking is a state machine that waits.
type blocking struct{ until chan struct{} }

func (b blocking) Apply(_ *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	<-b.until
	return make([]any, len(cmds)), nil
}
func (blocking) Committed(uint64)         {}
func (blocking) Restored(*bbolt.Tx) error { return nil }
