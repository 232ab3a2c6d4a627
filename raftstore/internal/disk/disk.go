// Package disk is the seam between raftstore and the file system: what must be
// durable goes through an FS, so that a simulated one can lose what was not
// synced, be slow, or fail. It is internal because its duties are those of a
// kernel: a careless implementation would void every promise of the store.
package disk

import (
	"errors"
	"io"
	"path/filepath"
)

// FS is what the store needs of a file system. Paths are as for package os; a
// missing file is fs.ErrNotExist. Names made, renamed or removed are durable
// after SyncDir of their folder, and not before.
type FS interface {
	// Open opens a file for reading and writing, and makes it if create is set.
	Open(name string, create bool) (File, error)
	// List returns the names in a folder, in order.
	List(dir string) ([]string, error)
	MkdirAll(dir string) error
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	// WriteBack lets what was written to the bbolt file at path so far go to the
	// disk, little by little, so that SyncDB has less to do at once, for which every
	// sync of another file would wait. It promises nothing, and ends early when stop
	// is closed.
	WriteBack(path string, stop <-chan struct{}) error
	// SyncDB makes durable what was written to the bbolt file at path so far;
	// sync does it for a real file.
	SyncDB(path string, sync func() error) error
}

// File is an open file. What was written is durable after Sync, and not before.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Sync() error // of the data, and of what is needed to read it
	Truncate(size int64) error
	Close() error
}

// Replace makes name hold data: a crash leaves the former content or the new.
func Replace(fs FS, name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := fs.Open(tmp, true)
	if err != nil {
		return err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(data, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = fs.Rename(tmp, name)
	}
	if err == nil {
		err = fs.SyncDir(filepath.Dir(name))
	}
	return err
}

// Read returns what a file holds.
func Read(fs FS, name string) ([]byte, error) {
	f, err := fs.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if n, err := f.ReadAt(data, 0); err != nil && (!errors.Is(err, io.EOF) || int64(n) < size) {
		return nil, err
	}
	return data, nil
}
