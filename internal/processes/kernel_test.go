//go:build linux && kernel

package processes

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// INV-1, INV-3: each process in a network namespace of its own, killed, paused
// and cut off.
func TestKernelProcesses(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			addrs := namespaces(t, n)
			c := newCluster(t, t.TempDir(), addrs, func(i int) []string { return []string{"ip", "netns", "exec", fmt.Sprint("p", i)} })
			c.cut = func(i int, off bool) {
				state := "up"
				if off {
					state = "down"
				}
				ip(t, fmt.Sprintf("-n psw link set p%d %s", i, state))
			}
			c.run(duration(t, 15*time.Second))
		})
	}
}

// namespaces makes one for each node, with a link to a bridge, and returns the
// nodes' addresses.
func namespaces(t *testing.T, n int) []string {
	t.Helper()
	ip(t, "netns add psw")
	t.Cleanup(func() { ip(t, "netns del psw") })
	ip(t, "-n psw link add bridge0 type bridge")
	ip(t, "-n psw link set bridge0 up")
	var addrs []string
	for i := range n {
		ns := fmt.Sprint("p", i)
		ip(t, "netns add "+ns)
		t.Cleanup(func() { ip(t, "netns del "+ns) })
		ip(t, "-n "+ns+" link set lo up")
		ip(t, fmt.Sprintf("link add eth netns %s type veth peer name %s netns psw", ns, ns))
		ip(t, "-n psw link set "+ns+" master bridge0 up")
		ip(t, fmt.Sprintf("-n %s addr add 10.8.0.%d/24 dev eth", ns, i+1))
		ip(t, "-n "+ns+" link set eth up")
		addrs = append(addrs, fmt.Sprintf("10.8.0.%d:8110", i+1))
	}
	return addrs
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v\n%s", args, err, out)
	}
}
