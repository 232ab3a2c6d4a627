package raftstore

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
	"github.com/ipvskit/ipvskit/raftstore/internal/wal"
)

// BackupInfo says what a backup holds.
type BackupInfo struct {
	Cluster uint64 `json:"cluster"` // that it was taken from
	Index   uint64 `json:"index"`   // every entry up to here is in it
	Term    uint64 `json:"term"`
	Bytes   int64  `json:"bytes"`
	// Behind is how many entries the log of a stopped node has beyond Index; they
	// are not in the backup. It is 0 after a clean end; start a node that was
	// killed once before its backup is taken.
	Behind uint64 `json:"behind,omitempty"`
}

// Backup writes what this node has applied, consistently, to w: a checksummed
// stream for Restore. Writes and reads go on meanwhile; the copy is made on this
// node's disk first, so a slow w holds nothing up. Ask Barrier before, to have
// everything that was acknowledged anywhere.
func (s *Store) Backup(w io.Writer) (BackupInfo, error) {
	f, size, meta, err := s.copyState()
	if err != nil {
		return BackupInfo{}, fmt.Errorf("raftstore: backup: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return BackupInfo{}, fmt.Errorf("raftstore: backup: %w", err)
	}
	return BackupInfo{Cluster: s.Identity().Cluster, Index: meta.GetIndex(), Term: meta.GetTerm(), Bytes: size}, nil
}

// BackupDir does what Store.Backup does, of a node that does not run: the state
// of its last checkpoint, which after a clean end is all of it.
func BackupDir(dir string, w io.Writer) (info BackupInfo, err error) {
	o, err := openOffline(dir)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	s := &Store{cfg: Config{Dir: dir, files: o.files}, node: o.node, state: o.state}
	if info, err = s.Backup(w); err == nil {
		info.Behind = o.log.Last().Index - min(o.log.Last().Index, info.Index)
	}
	return info, err
}

// Restore makes a data directory of a backup. dir must be empty or missing. It
// is the first node of a new cluster, with an ID of its own, which records the
// cluster that it was restored from: agents and members of that one do not take
// it for theirs. Other nodes join it. It gets its name and addresses from the
// Config that it is first run with.
func Restore(dir string, r io.Reader) (BackupInfo, error) {
	return restore(disk.OS{}, dir, r)
}

func restore(files disk.FS, dir string, r io.Reader) (info BackupInfo, err error) {
	if err := files.MkdirAll(dir); err != nil {
		return info, fmt.Errorf("raftstore: restore: %w", err)
	}
	names, err := files.List(dir)
	if err != nil {
		return info, fmt.Errorf("raftstore: restore: %w", err)
	}
	if len(names) > 0 {
		return info, fmt.Errorf("raftstore: restore: %s is not empty: it has %s", dir, names[0])
	}
	lock, err := lockDir(dir)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	path := filepath.Join(dir, stateName(1))
	f, err := files.Open(path, true)
	if err != nil {
		return info, err
	}
	info.Bytes, err = unwrapSnapshot(&offsetWriter{f: f}, r)
	if err == nil {
		err = f.Sync()
	}
	f.Close()
	if err == nil {
		info, err = restored(files, dir, info)
	}
	if err != nil {
		return info, fmt.Errorf("raftstore: restore: %w", err)
	}
	return info, nil
}

// restored makes a node of a state file that came from a backup. What makes the
// directory one is written last.
func restored(files disk.FS, dir string, info BackupInfo) (_ BackupInfo, err error) {
	node := nodeFile{Format: nodeFileFormat, Incarnation: randomID(), Cluster: randomID(), Member: randomID()}
	s := newStateDB(files, dir)
	s.name = stateName(1)
	if s.db, s.write.limit, err = openState(filepath.Join(dir, s.name), info.Bytes); err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.update(1, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		c, err := o.cluster()
		if err != nil {
			return err
		}
		if info.Index, info.Term = o.applied(); info.Index == 0 || c.ID == 0 {
			return errors.New("the backup holds no state of a cluster")
		}
		info.Cluster = c.ID
		return o.refound(clusterInfo{ID: node.Cluster, Predecessor: c.ID}, node.Member)
	}); err != nil {
		return info, err
	}
	mark, err := s.checkpoint()
	if err != nil {
		return info, err
	}
	if err := resetLog(files, dir, mark, nil); err != nil {
		return info, err
	}
	return info, node.save(files, dir)
}

// resetLog begins a log anew after mark, with some entries.
func resetLog(files disk.FS, dir string, mark wal.Mark, entries []*raftpb.Entry) error {
	log, c, err := wal.Open(files, filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	hard := wal.HardState{Term: max(mark.Term, c.Hard.Term), Commit: mark.Index}
	err = log.Reset(mark, hard)
	if err == nil && len(entries) > 0 {
		err = log.Append(wal.Batch{Entries: entries})
	}
	return errors.Join(err, log.Close())
}

// refound makes the state that of a cluster of one new member. Who it is by name
// stands in the Config that it is run with: see foundState.
func (o own) refound(c clusterInfo, member uint64) error {
	for _, name := range [][]byte{membersBucket, goneBucket} {
		if err := o.b.DeleteBucket(name); err != nil {
			return err
		}
		if _, err := o.b.CreateBucket(name); err != nil {
			return err
		}
	}
	if err := o.setConf(&raftpb.ConfState{Voters: []uint64{member}}); err != nil {
		return err
	}
	return o.setCluster(c)
}

// unnamed says whether the state is that of a cluster of this member alone that
// has not been named yet.
func (o own) unnamed(member uint64) (bool, error) {
	if o.b == nil {
		return false, nil
	}
	members, err := o.members()
	if err != nil || len(members) > 0 {
		return false, err
	}
	conf, err := o.conf()
	return err == nil && proto.Equal(conf, &raftpb.ConfState{Voters: []uint64{member}}), err
}
