//go:build !arm

package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
	"time"
)

// Writing back changes nothing, does not outlast stop, and says that a file is not
// there.
func TestWriteBack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "state")
	data := bytes.Repeat([]byte("state"), 1<<20)
	if err := Replace(OS{}, name, data); err != nil {
		t.Fatal(err)
	}
	f, err := OS{}.Open(name, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range data {
		data[i]++
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	if err := (OS{}).WriteBack(name, stop); err != nil {
		t.Error(err)
	}
	if got, err := Read(OS{}, name); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the content is another (%v)", err)
	}
	close(stop)
	began := time.Now()
	if err := (OS{}).WriteBack(name, stop); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v, after %v", err, time.Since(began))
	}
	if err := (OS{}).WriteBack(name+"-gone", stop); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
