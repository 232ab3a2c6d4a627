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
	done  chan error
}

// sendSnapshot copies the state and hands it to the transport. The copy may be
// newer than what raft asked for; the message then says so.
func (l *loop) sendSnapshot(m *raftpb.Message) {
	l.background.Go(func() {
		to := m.GetTo()
		done := func(err error) {
			status := raft.SnapshotFinish
			if err != nil {
				status = raft.SnapshotFailure
				l.s.log.Warn("snapshot not delivered", zap.Uint64("to", to), zap.Error(err))
			}
			_ = l.s.on(context.Background(), func(l *loop) { l.rn.ReportSnapshot(to, status) }) // fails only when the store stops
		}
		f, size, meta, err := l.s.copyState()
		if err != nil {
			done(err)
			return
		}
		m.Snapshot = &raftpb.Snapshot{Metadata: meta}
		// Its own goroutine, since the transport may call from one of its own
		// that this loop waits for.
		l.s.cfg.Transport.SendSnapshot(m, size, f, func(err error) { go done(err) })
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
func (l *loop) receiveSnapshot(ctx context.Context) func(*raftpb.Message, io.Reader) error {
	return func(m *raftpb.Message, body io.Reader) error {
		if m.GetType() != raftpb.MessageType_MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() == 0 {
			return errors.New("not a snapshot")
		}
		path, err := l.s.verifySnapshot(m.GetSnapshot().GetMetadata(), body)
		if err != nil {
			return fmt.Errorf("snapshot refused: %w", err)
		}
		in := &incomingSnapshot{path: path, index: m.GetSnapshot().GetMetadata().GetIndex(), done: make(chan error, 1)}
		err = l.s.on(ctx, func(l *loop) {
			if l.incoming != nil {
				in.done <- errors.New("another snapshot is being installed")
				return
			}
			l.incoming = in
			if err := l.rn.Step(m); err != nil {
				in.done <- err
			} else if err := l.turn(); err != nil {
				l.fatal = err
				in.done <- err
			}
			if l.incoming == in { // raft has no need of it
				l.incoming = nil
				select {
				case in.done <- nil:
				default:
				}
			}
		})
		os.Remove(path) // gone already where it was installed
		if err != nil {
			return err
		}
		return <-in.done
	}
}

// verifySnapshot writes a snapshot to a file and checks that it is whole, and
// is what the message says.
func (s *Store) verifySnapshot(want *raftpb.SnapshotMetadata, body io.Reader) (path string, err error) {
	f, err := os.CreateTemp(s.cfg.Dir, "snapshot-in-*.tmp")
	if err != nil {
		return "", err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(body, magic); err != nil || string(magic) != snapshotMagic {
		return "", errors.New("not a snapshot of a format that this program knows")
	}
	t := &trailer{w: f, sum: crc32.New(castagnoli)}
	if _, err := io.Copy(t, body); err != nil {
		return "", err
	}
	if !bytes.Equal(t.held, t.sum.Sum(nil)) {
		return "", errors.New("the checksum does not match")
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	db, err := openBolt(f.Name(), true)
	if err != nil {
		return "", err
	}
	defer db.Close()
	return f.Name(), db.View(func(tx *bbolt.Tx) error {
		if index, term := ownIn(tx).applied(); index != want.GetIndex() || term != want.GetTerm() {
			return fmt.Errorf("it holds entry %d of term %d, but is said to hold %d of %d", index, term, want.GetIndex(), want.GetTerm())
		}
		return nil
	})
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

// install puts the verified snapshot in the place of the state. The state file
// comes first: a log that does not fit it is begun anew at the next start, so
// a crash in between leaves the new state.
func (l *loop) install(snap *raftpb.Snapshot, hard *raftpb.HardState) error {
	in := l.incoming
	if in == nil || in.index != snap.GetMetadata().GetIndex() {
		return fmt.Errorf("raft takes a snapshot of entry %d that was not received", snap.GetMetadata().GetIndex())
	}
	l.incoming = nil
	if err := l.s.state.replace(in.path); err != nil {
		return fmt.Errorf("install the snapshot: %w", err)
	}
	if err := l.s.logdb.install(snap.GetMetadata(), hard); err != nil {
		return err
	}
	l.applied, l.appliedTerm = snap.GetMetadata().GetIndex(), snap.GetMetadata().GetTerm()
	before := l.members
	err := l.s.state.view(func(tx *bbolt.Tx) (err error) {
		if l.members, err = ownIn(tx).members(); err != nil {
			return err
		}
		for _, name := range l.s.names {
			if err := l.s.cfg.StateMachines[name].Restored(tx); err != nil {
				return fmt.Errorf("state machine %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id := range before {
		if _, stays := l.members[id]; !stays && id != l.self {
			l.s.cfg.Transport.RemovePeer(id)
		}
	}
	l.setPeers()
	l.s.log.Info("snapshot installed", zap.Uint64("index", l.applied))
	in.done <- nil
	return nil
}

// replace puts another file in the place of the state file.
func (s *stateDB) replace(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return err
	}
	if err := os.Rename(path, s.path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	db, err := openBolt(s.path, false)
	if err != nil {
		return err
	}
	s.db = db
	return nil
}
