// arm has the call under another name, which package syscall does not know.

//go:build !arm

package disk

import (
	"errors"
	"os"
	"syscall"
	"time"
)

const (
	// writeBackBytes goes to the disk at once: so much a sync of the log may have to
	// wait for.
	writeBackBytes = 512 << 10
	// writeBackRest is how long the disk is left alone after each piece, in times
	// that it took.
	writeBackRest = 2
	// written is less than what a piece takes of which something is written.
	written = 50 * time.Microsecond
)

// The flags of sync_file_range(2): wait for what is on its way, send what is
// dirty, and wait for it.
const (
	waitBefore = 1
	write      = 2
	waitAfter  = 4
)

func writeBack(path string, stop <-chan struct{}) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); at += writeBackBytes {
		began := time.Now()
		err := syscall.SyncFileRange(int(f.Fd()), at, writeBackBytes, waitBefore|write|waitAfter)
		if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ESPIPE) {
			return nil // not every file system has it
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return err
		}
		took := time.Since(began)
		if took < written {
			continue
		}
		rest := time.NewTimer(writeBackRest * took)
		select {
		case <-stop:
			rest.Stop()
			return nil
		case <-rest.C:
		}
	}
	return nil
}
