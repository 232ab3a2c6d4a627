//go:build !linux

package disk

import (
	"os"
	"runtime"
)

func datasync(f *os.File) error { return f.Sync() }

// SyncDir makes the names in a folder durable. Windows has no such call.
func (OS) SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
