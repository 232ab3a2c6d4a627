//go:build kernel && linux

package kerneltest_test

import (
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
	"github.com/ipvskit/ipvskit/reconcile/kerneltest"
)

func newLinux(t *testing.T, ns *kerneltest.Namespace) reconcile.Kernel {
	t.Helper()
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{NetNS: ns.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.(io.Closer).Close() })
	return k
}

func TestKernelAvailable(t *testing.T) {
	if err := reconcile.Available(); err != nil {
		t.Fatal(err)
	}
}

func TestKernelContract(t *testing.T) {
	ns := kerneltest.NewNamespace(t, "contract")
	k := newLinux(t, ns)
	kerneltest.Contract(t, func(*testing.T) reconcile.Kernel { return k })
}

// The kernel in memory answers as Linux does, and dumps what ipvsadm dumps.
func TestKernelDiffersNowhere(t *testing.T) {
	ns := kerneltest.NewNamespace(t, "differ")
	fake := fakekernel.New()
	seed := uint64(time.Now().UnixNano())
	kerneltest.Differ(t, newLinux(t, ns), fake, seed, 1000)
	saved := strings.Split(ns.Run("ipvsadm -Sn"), "\n")
	// ipvsadm forgets thresholds when it saves.
	want := strings.Split(regexp.MustCompile(` -[xy] \d+`).ReplaceAllString(fake.Dump(), ""), "\n")
	slices.Sort(saved)
	slices.Sort(want)
	for i := range saved {
		saved[i] = strings.TrimSpace(saved[i])
	}
	if !slices.Equal(saved, want) {
		t.Errorf("ipvsadm -Sn:\n%s\nDump:\n%s", strings.Join(saved, "\n"), strings.Join(want, "\n"))
	}
	if out, err := exec.Command("ipvsadm", "-Sn").CombinedOutput(); err != nil || len(strings.TrimSpace(string(out))) != 0 {
		t.Errorf("the namespace of the test itself has services: %s %v", out, err)
	}
}
