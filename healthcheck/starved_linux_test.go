package healthcheck_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
)

// What the processes of the experiment are told.
const (
	starvedRole   = "HEALTHCHECK_TEST_STARVED"
	starvedTarget = "HEALTHCHECK_TEST_TARGET"
)

// INV-33. One CPU, two processes that never rest, and the engine beside them:
// no target that is well is called down, or even failed.
func TestStarvedOfCPU(t *testing.T) {
	switch os.Getenv(starvedRole) {
	case "busy":
		parent := os.Getppid()
		for end := time.Now().Add(time.Minute); os.Getppid() == parent && time.Now().Before(end); {
		}
		return
	case "engine":
		starved(t)
		return
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with its odd affinity
	var mask unix.CPUSet
	if err := unix.SchedGetaffinity(0, &mask); err != nil {
		t.Fatal(err)
	}
	one := unix.CPUSet{}
	for cpu := range 1024 {
		if mask.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil { // what is started from here inherits it
		t.Fatal(err)
	}
	well := listening(t)
	start := func(role string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStarvedOfCPU$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), starvedRole+"="+role, starvedTarget+"="+well.String())
		return cmd
	}
	for range 2 {
		busy := start("busy")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			busy.Process.Kill() //nolint:errcheck // it may have ended
			busy.Wait()         //nolint:errcheck // it was killed
		}()
	}
	out, err := start("engine").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

func starved(t *testing.T) {
	const targets = 1000
	tcp, err := probe.NewTCP(probe.TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	well := netip.MustParseAddrPort(os.Getenv(starvedTarget))
	var checks []healthcheck.Check
	for i := range targets {
		checks = append(checks, healthcheck.Check{
			ID: fmt.Sprint("target ", i), Target: well, Probe: tcp, Initial: healthcheck.Up, Fall: 1,
			Interval: 250 * time.Millisecond, Timeout: 150 * time.Millisecond,
		})
	}
	m := &tally{}
	m.begin()
	e := running(t, healthcheck.Config{Metrics: m, Hold: healthcheck.Hold{Share: 1}}, checks)
	stop := clock()
	time.Sleep(3 * time.Second) // the experiment's length
	machine := stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("%v, p99 lateness %v, of the machine %v; %+v", m.class, p99(m.late), machine, e.Stats())
	if m.downs != 0 {
		t.Errorf("%d targets that are well were called down", m.downs)
	}
	for class, n := range m.class {
		if class != healthcheck.OK && class != healthcheck.Local {
			t.Errorf("%d results of class %v, all of targets that are well", n, class)
		}
	}
	if m.class[healthcheck.OK] < targets {
		t.Errorf("only %d successes", m.class[healthcheck.OK])
	}
}
