package raftstore

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore/internal/simdisk"
)

// sim is a whole cluster in one goroutine and virtual time: everything that
// happens is drawn from a seed, in steps of a millisecond. The code is the real
// one, but for the goroutines around its stages: the simulation decides when a
// stage works, so it can stop between any two.
type sim struct {
	seed   uint64
	rng    *rand.Rand
	dir    string
	now    time.Time
	step   int
	broken breakage
	trace  hash.Hash64

	nodes    []*simNode
	net      []simMessage
	cut      map[[2]uint64]bool // pairs of members that cannot talk
	ops      []*simOp           // on their way
	history  history
	nextVal  int
	founders Founding

	faults, crashes, snapshots, changes int
	leaders                             map[uint64]bool
}

// breakage is a way in which the code is broken on purpose.
type breakage int

const (
	intact          breakage = iota
	lyingDisk                // acknowledges before it has synced
	forgetsApplied           // forgets what it has applied
	skipsReadQuorum          // answers ReadIndex without asking a quorum
)

type simOp struct {
	node  *simNode
	p     *proposal
	read  *readers
	key   string
	value string
	began int
}

// simContext is a context in virtual time.
type simContext struct {
	context.Context
	sim   *sim
	until time.Time
}

func (c simContext) Deadline() (time.Time, bool) { return c.until, true }
func (c simContext) Err() error {
	if c.sim.now.After(c.until) {
		return context.DeadlineExceeded
	}
	return nil
}

// simMachine keeps values by key; a command puts one and answers the former. One
// that begins with a byte below 10 is of that version.
type simMachine struct{ version uint64 }

func (m simMachine) CommandVersion() uint64 { return max(1, m.version) }

// newestVersion is that of the newest program of the simulation. Each start of a
// node may bring it a newer one.
const newestVersion = 4

var simBucket = []byte("sim")

func (m simMachine) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists(simBucket)
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, c := range cmds {
		if c[0] < 10 {
			if uint64(c[0]) > m.CommandVersion() {
				return nil, fmt.Errorf("a command of version %d for a program of version %d", c[0], m.CommandVersion())
			}
			c = c[1:]
		}
		key, value, _ := bytes.Cut(c, []byte("="))
		was := b.Get(key)
		results[i] = string(was)
		if err := b.Put(key, nextValue(was, value)); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// nextValue counts how often a key was written: a command that is applied twice
// is seen.
func nextValue(was, value []byte) []byte {
	n := 0
	if _, count, ok := bytes.Cut(was, []byte("#")); ok {
		n, _ = strconv.Atoi(string(count))
	}
	return fmt.Appendf(nil, "%s#%d", value, n+1)
}

func (simMachine) Committed(uint64)         {}
func (simMachine) Restored(*bbolt.Tx) error { return nil }

// deterministic is the random source of raft and of this package while a
// simulation runs.
type deterministic struct{ r *rand.ChaCha8 }

func (d deterministic) Read(p []byte) (int, error) { return d.r.Read(p) }

func newSim(dir string, seed uint64, broken breakage) (*sim, error) {
	s := &sim{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0x51)), dir: dir, now: time.Unix(1_700_000_000, 0), broken: broken,
		trace: fnv.New64a(), cut: map[[2]uint64]bool{}, leaders: map[uint64]bool{}, founders: Founding{Cluster: 77},
	}
	var key [32]byte
	copy(key[:], fmt.Sprint("raftstore", seed))
	crand.Reader = deterministic{rand.NewChaCha8(key)}
	for i := range 3 {
		n, err := s.addNode(fmt.Sprint("n", i))
		if err != nil {
			return nil, err
		}
		n.id = uint64(i + 1)
		s.founders.Founders = append(s.founders.Founders, Founder{Member: n.id, Incarnation: n.s.node.Incarnation, Name: n.name, RaftAddr: n.name + ":1"})
	}
	for _, n := range s.nodes {
		if err := n.s.Found(s.founders); err != nil {
			return nil, err
		}
		if err := n.start(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sim) note(format string, args ...any) { fmt.Fprintf(s.trace, format+"\n", args...) }

func (s *sim) addNode(name string) (*simNode, error) {
	n := &simNode{sim: s, name: name, dir: filepath.Join(s.dir, name), version: 1 + uint64(s.rng.IntN(2))}
	if len(s.nodes) >= 3 { // an older one would not be taken in
		n.version += 2
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	n.fs = simdisk.New(n.dir, s.seed^uint64(len(s.nodes)))
	if s.broken == lyingDisk {
		n.fs.Lie(func(name string) bool { return strings.HasSuffix(name, ".seg") })
	}
	s.nodes = append(s.nodes, n)
	return n, n.open()
}

// left is what a caller hears whose node is gone.
func (op *simOp) left() error {
	if op.p != nil {
		return op.p.leave(ErrStopped)
	}
	return ErrStopped
}

func (s *sim) at(id uint64) *simNode {
	for _, n := range s.nodes {
		if n.id == id && id != 0 && !n.gone {
			return n
		}
	}
	return nil
}

// key is one of a few that change as time passes: an operation without a known
// outcome stays open for ever, and too many of them on one key cannot be checked.
func (s *sim) key() string { return fmt.Sprintf("k%d.%d", s.history.len()/150, s.rng.IntN(5)) }

// client begins an operation on some node.
func (s *sim) client() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if !n.up || s.now.Before(n.paused) {
		return
	}
	op := &simOp{node: n, key: s.key(), began: s.step}
	if s.rng.IntN(2) == 0 {
		op.read = n.s.joinReaders()
	} else {
		s.nextVal++
		op.value = fmt.Sprint("v", s.nextVal)
		ctx := simContext{context.Background(), s, s.now.Add(2 * time.Second)}
		if !n.s.admit(0) {
			return
		}
		op.p = &proposal{ctx: ctx, routed: routed{"sim", n.newest([]byte(op.key + "=" + op.value))}, came: s.now, outcome: make(chan outcome, 1)}
		n.s.inbox.put(func() { n.s.inbox.proposals = append(n.s.inbox.proposals, op.p) })
	}
	s.note("op %d %d %s=%s", s.step, n.id, op.key, op.value)
	s.ops = append(s.ops, op)
}

// collect ends the operations that have an outcome, or whose callers leave.
func (s *sim) collect() {
	for _, op := range slices.Clone(s.ops) {
		if op.p != nil {
			select {
			case o := <-op.p.outcome:
				s.end(op, o)
			default:
				if op.p.ctx.Err() != nil {
					s.end(op, outcome{err: op.left()})
				}
			}
			continue
		}
		select {
		case <-op.read.done:
			o := outcome{err: op.read.err}
			if o.err == nil {
				o.err = op.node.s.state.view(func(tx *bbolt.Tx) error {
					if b := tx.Bucket(simBucket); b != nil {
						o.result = string(b.Get([]byte(op.key)))
					} else {
						o.result = ""
					}
					return nil
				})
			}
			s.end(op, o)
		default:
			if s.step-op.began > 2000 { // as one of a removed member that has not heard of it
				s.end(op, outcome{err: context.DeadlineExceeded})
			}
		}
	}
}

func (s *sim) end(op *simOp, o outcome) {
	s.ops = slices.DeleteFunc(s.ops, func(other *simOp) bool { return other == op })
	s.note("end %d %s=%s %v %v", s.step, op.key, op.value, o.result, o.err)
	s.history.add(op, s.step, o)
}

// fault breaks something, or mends it.
func (s *sim) fault() error {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	up := 0
	for _, n := range s.nodes {
		if n.up {
			up++
		}
	}
	switch k := s.rng.IntN(13); {
	case k < 4 && n.up && up > 1:
		s.faults++
		// At some step of persistence from now on.
		at := n.fs.Steps() + s.rng.IntN(15)
		n.fs.Before = func(_ string, i int) error {
			if i >= at {
				n.fs.Cut()
			}
			return nil
		}
	case k == 4 && n.up && up > 1:
		s.faults++
		return n.crash()
	case k == 5:
		s.faults++
		other := s.nodes[s.rng.IntN(len(s.nodes))]
		s.note("cut %d %d", n.id, other.id)
		s.cut[pair(n.id, other.id)] = true
	case k == 6, k == 12 && n.up && n.l.leads():
		s.faults++
		if k == 12 {
			n.drift = s.now.Add(time.Duration(s.rng.IntN(1000)) * time.Millisecond)
		}
		for _, other := range s.nodes {
			s.cut[pair(n.id, other.id)] = true
		}
	case k == 7:
		clear(s.cut)
	case k == 8 && n.up:
		s.faults++
		n.slow = s.now.Add(time.Duration(s.rng.IntN(500)) * time.Millisecond)
	case k == 9 && n.up:
		s.faults++
		n.paused = s.now.Add(time.Duration(s.rng.IntN(400)) * time.Millisecond)
	case k == 10 && n.up:
		return s.changeMembers(n)
	case k == 11 && n.up && n.l.leads():
		if to := n.l.successor(); to != 0 {
			n.l.rn.TransferLeader(to)
		}
	}
	return nil
}

// changeMembers lets a leader add a node or remove one.
func (s *sim) changeMembers(n *simNode) error {
	if !n.l.leads() {
		return nil
	}
	if len(n.l.applied.members) > 3 {
		members := n.l.sortedMembers()
		change, changes, err := n.l.planRemove(members[s.rng.IntN(len(members))].Name)
		if err == nil && n.l.proposeChange(change, changes...) == nil {
			s.changes++
		}
		return nil
	}
	fresh, err := s.addNode(fmt.Sprint("n", len(s.nodes)))
	if err != nil {
		return err
	}
	answer, change, changes, err := n.l.planAdd(Member{Name: fresh.name, RaftAddr: fresh.name + ":1", Incarnation: fresh.s.node.Incarnation, Versions: fresh.s.cfg.programVersions()})
	if err != nil || n.l.proposeChange(change, changes...) != nil {
		fresh.gone = true
		return fresh.crash()
	}
	s.changes++
	fresh.id = answer.Member
	if err := fresh.s.Join(answer); err != nil {
		return err
	}
	return fresh.start()
}

// run makes at least ops operations and faults faults, then lets everything
// settle and compares the states.
func (s *sim) run(ops, faults int) error {
	for s.history.len() < ops || s.faults < faults {
		if s.step++; s.step > 100*ops+100_000 {
			return fmt.Errorf("only %d operations and %d faults in %d steps", s.history.len(), s.faults, s.step)
		}
		s.now = s.now.Add(time.Millisecond)
		if len(s.ops) < 12 && s.rng.IntN(3) > 0 {
			s.client()
		}
		if s.rng.IntN(60) == 0 {
			if err := s.fault(); err != nil {
				return err
			}
		}
		if err := s.round(); err != nil {
			return err
		}
	}
	return s.settle()
}

func (s *sim) round() error {
	if err := s.deliver(); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if !n.up && !n.gone && s.rng.IntN(150) == 0 {
			if err := n.restart(); err != nil {
				return err
			}
		}
		if err := n.work(); err != nil {
			return err
		}
	}
	s.collect()
	return nil
}

// settle ends all faults and waits until every member has applied the same.
func (s *sim) settle() error {
	clear(s.cut)
	for range 20_000 {
		s.step++
		s.now = s.now.Add(time.Millisecond)
		for _, n := range s.nodes {
			n.slow, n.paused, n.drift = time.Time{}, time.Time{}, time.Time{}
			if n.up {
				n.fs.Before = nil
			}
		}
		if err := s.round(); err != nil {
			return err
		}
		if len(s.ops) == 0 && s.agree() {
			return s.compare()
		}
	}
	return fmt.Errorf("the members do not agree 20 s after the last fault:%s", s.describe())
}

func (s *sim) describe() string {
	var b bytes.Buffer
	for _, n := range s.nodes {
		fmt.Fprintf(&b, "\n%s: member %d, up %v, gone %v", n.name, n.id, n.up, n.gone)
		if n.up {
			st := n.l.rn.Status()
			fmt.Fprintf(&b, ", %v, term %d, leader %d, commit %d, applied %d (%d in raft), voters %v, learners %v, incoming %v, appends %d, applies %d",
				st.RaftState, st.GetTerm(), st.Lead, st.GetCommit(), n.l.applied.index, st.Applied, st.Config.Voters, st.Config.Learners, n.l.incoming != nil, n.l.appends, n.l.applies)
			for id, p := range st.Progress {
				fmt.Fprintf(&b, "\n    %d: %v", id, &p)
			}
		}
	}
	fmt.Fprintf(&b, "\n%d operations on their way", len(s.ops))
	return b.String()
}

// members are the nodes that the leader counts as members; nil if there is no
// leader or one of them is down.
func (s *sim) members() []*simNode {
	for _, n := range s.nodes {
		if !n.up || !n.l.leads() {
			continue
		}
		var out []*simNode
		for _, m := range n.l.sortedMembers() {
			member := s.at(m.ID)
			if member == nil || !member.up {
				return nil
			}
			out = append(out, member)
		}
		return out
	}
	return nil
}

func (s *sim) agree() bool {
	members := s.members()
	if members == nil {
		return false
	}
	for _, n := range members {
		st := n.l.rn.BasicStatus()
		if n.l.applied.index != members[0].l.applied.index || st.GetCommit() != n.l.applied.index {
			return false
		}
	}
	return true
}

// compare checks INV-4: the same log gives the same keys and values.
func (s *sim) compare() error {
	want := ""
	for _, n := range s.members() {
		var b bytes.Buffer
		err := n.s.state.view(func(tx *bbolt.Tx) error {
			for e := range tx.Check() {
				return e
			}
			return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error { return dump(&b, name, bucket) })
		})
		if err != nil {
			return err
		}
		if want != "" && b.String() != want {
			return fmt.Errorf("the state of %s at entry %d differs from that of another member", n.name, n.l.applied.index)
		}
		want = b.String()
		s.note("state %d %x", n.id, b.Bytes())
	}
	return nil
}

func dump(w io.Writer, name []byte, bucket *bbolt.Bucket) error {
	fmt.Fprintf(w, "[%x]", name)
	return bucket.ForEach(func(k, v []byte) error {
		if v == nil {
			return dump(w, k, bucket.Bucket(k))
		}
		fmt.Fprintf(w, "%x=%x\n", k, v)
		return nil
	})
}

// close ends all nodes.
func (s *sim) close() error {
	var errs []error
	for _, n := range s.nodes {
		if n.s != nil {
			errs = append(errs, n.crash())
		}
	}
	return errors.Join(errs...)
}
