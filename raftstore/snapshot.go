package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// A snapshot on its way is a magic, the bytes of a state file, and the CRC-32C
// of these. It is copied to a file of its own first, so that a slow receiver
// holds no transaction open; the receiver too writes it to a file, checks it
// whole, and only then puts it in the place of its own.
const snapshotMagic = "IPVSKRS\x01"

// incomingSnapshot is a verified file that raft has not taken yet.
type incomingSnapshot struct {
	path  string
	index uint64
	size  int64
	done  chan error // capacity 1
}

// sendSnapshot copies the state and hands it to the transport. The copy may be
// newer than what raft asked for; the message then says so.
func (l *loop) sendSnapshot(m *raftpb.Message) {
	s, to := l.s, m.GetTo()
	var size int64
	done := func(err error) {
		status := raft.SnapshotFinish
		if err != nil {
			status = raft.SnapshotFailure
			s.log.Warn("snapshot not delivered", zap.Uint64("to", to), zap.Error(err))
		}
		s.cfg.Metrics.SnapshotSent(to, size, err)
		s.inbox.call(func(l *loop) { l.rn.ReportSnapshot(to, status) })
	}
	l.spawn(func() {
		f, n, meta, err := s.copyState()
		if err != nil {
			done(err)
			return
		}
		size = n
		m.Snapshot = &raftpb.Snapshot{Metadata: meta}
		s.cfg.Transport.SendSnapshot(m, n, f, done)
	})
}

// copyState makes a checked copy of the state, to be read from its start. The
// file has no name any more; closing it removes it.
func (s *Store) copyState() (io.ReadCloser, int64, *raftpb.SnapshotMetadata, error) {
	f, err := os.CreateTemp(s.cfg.Dir, "snapshot-out-*.tmp")
	if err != nil {
		return nil, 0, nil, err
	}
	fail := func(err error) (io.ReadCloser, int64, *raftpb.SnapshotMetadata, error) {
		f.Close()
		os.Remove(f.Name())
		return nil, 0, nil, err
	}
	var meta *raftpb.SnapshotMetadata
	sum := crc32.New(castagnoli)
	err = s.state.view(func(tx *bbolt.Tx) (err error) {
		if meta, err = ownIn(tx).metadata(); err != nil {
			return err
		}
		if _, err := f.WriteString(snapshotMagic); err != nil {
			return err
		}
		_, err = tx.WriteTo(io.MultiWriter(f, sum))
		return err
	})
	if err == nil {
		_, err = f.Write(sum.Sum(nil))
	}
	if err != nil {
		return fail(err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fail(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	return removing{f}, size, meta, nil
}

type removing struct{ *os.File }

func (r removing) Close() error {
	err := r.File.Close()
	os.Remove(r.Name())
	return err
}

// receiveSnapshot takes a snapshot from the transport, and returns when it is
// installed or refused.
func (s *Store) receiveSnapshot(ctx context.Context) func(*raftpb.Message, io.Reader) error {
	return func(m *raftpb.Message, body io.Reader) error {
		if m.GetType() != raftpb.MessageType_MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() == 0 {
			return errors.New("not a snapshot")
		}
		in, err := s.verifySnapshot(m.GetSnapshot().GetMetadata(), body)
		if err == nil {
			s.inbox.call(func(l *loop) { l.takeSnapshot(m, in) })
			select {
			case err = <-in.done:
			case <-ctx.Done():
				err = ctx.Err() // what is left of the file goes at the next start
			case <-s.stopped:
				err = ErrStopped
			}
		} else {
			err = fmt.Errorf("snapshot refused: %w", err)
		}
		s.cfg.Metrics.SnapshotReceived(m.GetFrom(), in.size, err)
		return err
	}
}

// takeSnapshot gives raft a snapshot whose file is there. in.done hears what
// becomes of it.
func (l *loop) takeSnapshot(m *raftpb.Message, in *incomingSnapshot) {
	refuse := func(err error) {
		in.done <- errors.Join(err, l.s.cfg.files.Remove(in.path))
	}
	if l.incoming != nil {
		refuse(errors.New("another snapshot is being installed"))
		return
	}
	l.incoming = in
	err := l.rn.Step(m)
	if err == nil {
		err = l.ready()
		if err != nil {
			l.s.inbox.fail(err)
		}
	}
	if l.incoming == in { // raft has no need of it
		l.incoming = nil
		refuse(err)
	}
}

// verifySnapshot writes a snapshot to a file and checks that it is whole, and
// is what the message says.
func (s *Store) verifySnapshot(want *raftpb.SnapshotMetadata, body io.Reader) (in *incomingSnapshot, err error) {
	in = &incomingSnapshot{index: want.GetIndex(), done: make(chan error, 1)}
	in.path = filepath.Join(s.cfg.Dir, fmt.Sprintf("snapshot-in-%x.tmp", randomID()))
	f, err := s.cfg.files.Open(in.path, true)
	if err != nil {
		return in, err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = s.cfg.files.Remove(in.path)
		}
	}()
	t, err := unwrapSnapshot(&offsetWriter{f: f}, body)
	if err != nil {
		return in, err
	}
	in.size = t
	if err := f.Sync(); err != nil {
		return in, err
	}
	db, err := openBolt(in.path, 0, true)
	if err != nil {
		return in, err
	}
	defer db.Close()
	return in, db.View(func(tx *bbolt.Tx) error {
		o := ownIn(tx)
		if index, term := o.applied(); index != want.GetIndex() || term != want.GetTerm() {
			return fmt.Errorf("it holds entry %d of term %d, but is said to hold %d of %d", index, term, want.GetIndex(), want.GetTerm())
		}
		c, err := o.cluster()
		if err == nil && c.ID != s.Identity().Cluster {
			err = fmt.Errorf("it is of cluster %016x", c.ID)
		}
		return err
	})
}

// unwrapSnapshot writes the state file of a snapshot on its way to w, and checks
// that all of it came.
func unwrapSnapshot(w io.Writer, body io.Reader) (size int64, err error) {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(body, magic); err != nil || string(magic) != snapshotMagic {
		return 0, errors.New("not a snapshot of a format that this program knows")
	}
	t := &trailer{w: w, sum: crc32.New(castagnoli)}
	n, err := io.Copy(t, body)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(t.held, t.sum.Sum(nil)) {
		return 0, errChecksum
	}
	return n - int64(len(t.held)), nil
}

// offsetWriter writes a file from its start.
type offsetWriter struct {
	f  disk.File
	at int64
}

func (w *offsetWriter) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.at)
	w.at += int64(n)
	return n, err
}

// trailer writes all but the last four bytes, which it holds.
type trailer struct {
	w    io.Writer
	sum  hash.Hash32
	held []byte
}

func (t *trailer) Write(p []byte) (int, error) {
	t.held = append(t.held, p...)
	if n := len(t.held) - 4; n > 0 {
		if _, err := io.MultiWriter(t.w, t.sum).Write(t.held[:n]); err != nil {
			return 0, err
		}
		t.held = append(t.held[:0], t.held[n:]...)
	}
	return len(p), nil
}
