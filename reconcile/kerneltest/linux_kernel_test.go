//go:build kernel && linux

package kerneltest_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
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

// What a process may not do is refused with the capability's name.
func TestKernelNamesTheMissingCapability(t *testing.T) {
	ns := kerneltest.NewNamespace(t, "capability")
	for _, c := range []struct{ drop, want string }{
		{"net_admin", "lacks the capability CAP_NET_ADMIN"},
		{"sys_admin", "lacks the capability CAP_SYS_ADMIN"},
	} {
		cmd := exec.Command("setpriv", "--bounding-set=-"+c.drop, "--inh-caps=-"+c.drop,
			os.Args[0], "-test.run", "^TestUnprivileged$")
		cmd.Env = append(os.Environ(), "KERNELTEST_NETNS="+ns.Path)
		out, err := cmd.CombinedOutput()
		if first, _, _ := strings.Cut(string(out), "\n"); err != nil || !strings.Contains(first, c.want) {
			t.Errorf("without %s: %v\n%s", c.drop, err, out)
		}
	}
}

// TestUnprivileged is the process that TestKernelNamesTheMissingCapability starts:
// it prints what it is told.
func TestUnprivileged(t *testing.T) {
	path := os.Getenv("KERNELTEST_NETNS")
	if path == "" {
		return
	}
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{NetNS: path})
	if err == nil {
		defer k.(io.Closer).Close()
		r, rerr := reconcile.New(reconcile.Config{Kernel: k})
		if rerr != nil {
			t.Fatal(rerr)
		}
		var rep reconcile.Report
		rep, err = r.Sync(t.Context(), reconcile.Desired{Services: []reconcile.DesiredService{{
			Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, netip.MustParseAddrPort("192.0.2.10:80")), Scheduler: "rr"},
		}}})
		for _, f := range rep.Failures {
			fmt.Println(f)
		}
	}
	fmt.Println(err)
	if err := reconcile.Available(); err != nil {
		fmt.Println("available:", err)
	}
}
