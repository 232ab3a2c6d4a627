package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// dirLock keeps other processes out of a directory: an empty bbolt file, for the
// sake of its lock, which bbolt has for every system.
type dirLock struct{ db *bbolt.DB }

func lockDir(dir string) (*dirLock, error) {
	db, err := bbolt.Open(filepath.Join(dir, "lock"), 0o600, &bbolt.Options{Timeout: openTimeout, NoSync: true, NoGrowSync: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is used by another process", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock of %s: %w", dir, err)
	}
	return &dirLock{db}, nil
}

func (l *dirLock) release() error { return l.db.Close() }
