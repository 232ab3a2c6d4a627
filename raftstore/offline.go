package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// offline is the directory of a node that does not run.
type offline struct {
	files disk.FS
	dir   string
	lock  *dirLock
	node  nodeFile
	state *stateDB
	log   wal.Contents
}

// openOffline opens a directory as a start would, and changes nothing that a
// start would not.
func openOffline(dir string) (*offline, error) {
	o := &offline{files: disk.OS{}, dir: dir}
	err := o.open()
	if err != nil {
		return nil, fmt.Errorf("raftstore: %w", errors.Join(err, o.close()))
	}
	return o, nil
}

func (o *offline) open() (err error) {
	// A directory that is none must not become one.
	if _, err := disk.Read(o.files, filepath.Join(o.dir, nodeFileName)); err != nil {
		return err
	}
	if o.lock, err = lockDir(o.dir); err != nil {
		return err
	}
	if o.node, err = loadNodeFile(o.files, o.dir); err != nil {
		return err
	}
	if o.node.Cluster == 0 {
		return fmt.Errorf("%s is that of a node that belongs to no cluster", o.dir)
	}
	if o.state, err = openStateDB(o.files, o.dir, false); err != nil {
		return err
	}
	o.log, err = wal.Check(o.files, filepath.Join(o.dir, "log"))
	if err == nil && o.log.Fresh {
		err = fmt.Errorf("%s is missing", filepath.Join(o.dir, "log"))
	}
	return err
}

func (o *offline) close() error {
	var errs []error
	if o.state != nil {
		errs = append(errs, o.state.close())
	}
	if o.lock != nil {
		errs = append(errs, o.lock.release())
	}
	return errors.Join(errs...)
}

// Report is what Check found.
type Report struct {
	Cluster     uint64   `json:"cluster"`
	Predecessor uint64   `json:"predecessor,omitempty"`
	Member      uint64   `json:"member"`
	Applied     uint64   `json:"applied"`        // entry of the last checkpoint
	FirstEntry  uint64   `json:"first"`          // of the log
	LastEntry   uint64   `json:"last"`           // of the log; beyond Applied it is applied at the next start
	Commit      uint64   `json:"commit"`         // as it was last synced
	Clean       bool     `json:"clean"`          // the node was closed, not killed
	Torn        string   `json:"torn,omitempty"` // where a torn tail will be cut off
	Members     []Member `json:"members"`
	Accepted    Versions `json:"accepted,omitempty"` // what a program must be able to apply to start here
}

// Check reads everything in the directory of a node that does not run: each
// checksum, each page of the state, and whether log and state belong together.
// An error names what is damaged. It changes nothing.
func Check(dir string) (r Report, err error) {
	o, err := openOffline(dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	r = Report{
		Cluster: o.node.Cluster, Member: o.node.Member, Applied: o.state.last.Index,
		FirstEntry: o.log.Base.Index + 1, LastEntry: o.log.Last().Index, Commit: o.log.Hard.Commit, Clean: o.log.Closed,
	}
	if t := o.log.Torn; t != nil {
		r.Torn = fmt.Sprintf("%s, offset %d", t.File, t.Offset)
	}
	if _, err := fits(&o.log, o.state.last); err != nil {
		return r, fmt.Errorf("raftstore: %s: %w", dir, err)
	}
	err = o.state.view(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return fmt.Errorf("%s is damaged: %w", o.state.name, err)
		}
		own := ownIn(tx)
		if _, err := own.conf(); err != nil {
			return err
		}
		c, err := own.cluster()
		if err != nil {
			return err
		}
		r.Predecessor = c.Predecessor
		if c.ID != 0 && c.ID != r.Cluster {
			return fmt.Errorf("the state is that of cluster %016x, the node belongs to %016x", c.ID, r.Cluster)
		}
		members, err := own.members()
		if err != nil {
			return err
		}
		r.Members = sortedByID(members)
		if r.Accepted, err = own.accepted(); err != nil {
			return err
		}
		return own.checkSeen()
	})
	if err != nil {
		return r, fmt.Errorf("raftstore: %s: %w", dir, err)
	}
	return r, nil
}

// Recovery says what Recover has made, and what may be lost.
type Recovery struct {
	Cluster     uint64 `json:"cluster"`
	Predecessor uint64 `json:"predecessor"`
	// Entries up to Commit were surely acknowledged. Those from there to Last are
	// kept, though the lost members may not have agreed to them. What the lost
	// members acknowledged beyond Last is lost.
	Commit uint64   `json:"commit"`
	Last   uint64   `json:"last"`
	Lost   []Member `json:"lost"` // who was a member
}

// Recover makes a cluster of one of a member whose cluster has lost its quorum
// for ever. The node must not run. The cluster gets a new ID and records the
// former one, so that members that come back after all do not make two of it.
// Prefer the survivor with the highest Last (see Check).
func Recover(dir string) (r Recovery, err error) {
	o, err := openOffline(dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	mark := o.state.last.mark()
	known, err := fits(&o.log, o.state.last)
	if err != nil {
		return r, fmt.Errorf("raftstore: recover %s: %w", dir, err)
	}
	if mark.Index == 0 {
		return r, fmt.Errorf("raftstore: recover %s: the node has joined, but has no state yet; nothing can be recovered from it", dir)
	}
	var rest []*raftpb.Entry
	if known {
		for _, e := range o.log.Entries[mark.Index-o.log.Base.Index:] {
			if e.GetType() != raftpb.EntryNormal {
				// It would bring the lost members back; an empty entry stands for it.
				kind := raftpb.EntryNormal
				e = &raftpb.Entry{Index: e.Index, Term: e.Term, Type: &kind}
			}
			rest = append(rest, e)
		}
	}
	r = Recovery{Cluster: randomID(), Predecessor: o.node.Cluster, Commit: max(mark.Index, o.log.Hard.Commit), Last: mark.Index + uint64(len(rest))}
	node := o.node
	node.Cluster, node.Founding, node.Peers = r.Cluster, nil, nil
	err = o.state.update(1, func(tx *bbolt.Tx) error {
		own := ownIn(tx)
		members, err := own.members()
		if err != nil {
			return err
		}
		for _, m := range sortedByID(members) {
			if m.ID != node.Member {
				r.Lost = append(r.Lost, m)
			}
		}
		return own.refound(clusterInfo{ID: r.Cluster, Predecessor: r.Predecessor}, node.Member)
	})
	if err != nil {
		return r, fmt.Errorf("raftstore: recover %s: %w", dir, err)
	}
	// The node file comes last: a crash before it leaves a directory that does not
	// start, and that Recover takes again.
	if _, err := o.state.checkpoint(); err != nil {
		return r, err
	}
	if err := resetLog(o.files, dir, mark, rest); err != nil {
		return r, err
	}
	return r, node.save(o.files, dir)
}
