//go:build linux

package processes

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// INV-1, INV-3: three and five processes on this host's own network, killed and
// paused.
func TestProcesses(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCluster(t, t.TempDir(), ports(t, n), func(int) []string { return nil })
			c.run(duration(t, 3*time.Second))
		})
	}
}

// ports are free ones below those that systems give to outgoing connections: a
// node that starts again needs its own.
func ports(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for port := 21_000; len(addrs) < n; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if port > 29_000 {
				t.Fatal(err)
			}
			continue
		}
		addrs = append(addrs, l.Addr().String())
		defer l.Close()
	}
	return addrs
}
