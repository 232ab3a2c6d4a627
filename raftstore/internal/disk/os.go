package disk

import (
	"os"
)

// OS is the real file system.
type OS struct{}

type osFile struct{ *os.File }

func (OS) Open(name string, create bool) (File, error) {
	flag := os.O_RDWR
	if create {
		flag |= os.O_CREATE
	}
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Sync leaves out times where the system lets it: a segment whose blocks were
// written before then costs one flush and no journal.
func (f osFile) Sync() error { return datasync(f.File) }

func (OS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (OS) MkdirAll(dir string) error    { return os.MkdirAll(dir, 0o700) }
func (OS) Rename(from, to string) error { return os.Rename(from, to) }
func (OS) Remove(name string) error     { return os.Remove(name) }

func (OS) WriteBack(path string, stop <-chan struct{}) error { return writeBack(path, stop) }

func (OS) SyncDB(_ string, sync func() error) error { return sync() }
