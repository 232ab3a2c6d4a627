package identity

import (
	"errors"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// watched is what a set of files says. It is loaded anew when one of them has
// changed, which is looked at when it is asked for, at most once a second. What
// cannot be loaded leaves the older in use.
type watched[T any] struct {
	files []string
	load  func() (T, error)
	log   *zap.Logger

	mu     sync.Mutex // guards the fields below
	value  T
	loaded []os.FileInfo
	looked time.Time
	failed []os.FileInfo // of the last attempt that failed, which was logged
}

func watch[T any](files []string, load func() (T, error), log *zap.Logger) (*watched[T], error) {
	w := &watched[T]{files: files, load: load, log: log, looked: time.Now()}
	var err error
	if w.loaded, err = w.states(); err != nil {
		return nil, err
	}
	w.value, err = load()
	return w, err
}

func (w *watched[T]) states() ([]os.FileInfo, error) {
	out := make([]os.FileInfo, len(w.files))
	for i, name := range w.files {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		out[i] = info
	}
	return out, nil
}

// same says whether nothing was written or put in place between a and b.
func same(a, b []os.FileInfo) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}

func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.looked) >= time.Second {
		_ = w.lookLocked() // it is logged, and the older value serves
	}
	return w.value
}

// again looks at the files at once.
func (w *watched[T]) again() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lookLocked()
}

func (w *watched[T]) lookLocked() error {
	w.looked = time.Now()
	now, err := w.states()
	if err == nil && same(now, w.loaded) {
		w.failed = nil
		return nil
	}
	if err == nil {
		var value T
		if value, err = w.load(); err == nil {
			w.value, w.loaded, w.failed = value, now, nil
			w.log.Info("certificates read anew", zap.Strings("files", w.files))
			return nil
		}
	}
	if w.failed == nil || !same(now, w.failed) {
		if now == nil {
			now = []os.FileInfo{}
		}
		w.failed = now
		w.log.Error("certificates cannot be read anew; the older stay in use", zap.Strings("files", w.files), zap.Error(err))
	}
	return errors.Join(errors.New("identity: the certificates cannot be read anew"), err)
}
