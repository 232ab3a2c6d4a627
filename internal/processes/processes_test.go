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

// No election is held because the machine has much to do: 512 callers at full
// speed, and two goroutines that do nothing but use the processor.
func TestNoElectionUnderLoad(t *testing.T) {
	c := newCluster(t, t.TempDir(), ports(t, 3), func(int) []string { return nil })
	term := func() string {
		answer, err := c.nodes[0].ask("term")
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	before := term()
	stop := make(chan struct{})
	load := c.load(512, stop)
	for range 2 {
		load.Go(func() {
			for n := uint64(1); ; n = n*2862933555777941757 + 1 {
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	timer := time.NewTimer(duration(t, 2*time.Second))
	<-timer.C
	close(stop)
	load.Wait()
	if after := term(); after != before {
		t.Errorf("terms %s, then %s: %d writes", before, after, c.writes.Load())
	}
	t.Logf("no election in %d writes by 512 callers", c.writes.Load())
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
