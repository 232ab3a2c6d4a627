//go:build kernel && linux

package wholeway

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Network namespaces, and where each is found.
const (
	client   = "client"
	director = "director"
)

// layout makes the namespaces and links of the package documentation. They go
// with the guest, so nothing is taken down.
func layout(t *testing.T) {
	t.Helper()
	ip(t, "link set lo up")
	// A bridge for each network, in a namespace where no packet filter looks.
	ip(t, "netns add switch")
	for _, net := range []string{"front", "back", "mgmt"} {
		ip(t, "-n switch link add "+net+" type bridge")
		ip(t, "-n switch link set "+net+" up")
	}
	join := func(ns, network, address, gateway string) {
		if _, err := os.Stat("/run/netns/" + ns); err != nil {
			ip(t, "netns add "+ns)
			ip(t, "-n "+ns+" link set lo up")
		}
		port := network[:1] + "-" + ns
		ip(t, "link add "+network+" netns "+ns+" type veth peer name "+port+" netns switch")
		ip(t, "-n switch link set "+port+" master "+network+" up")
		ip(t, "-n "+ns+" addr add "+address+"/24 dev "+network)
		ip(t, "-n "+ns+" link set "+network+" up")
		if gateway != "" {
			ip(t, "-n "+ns+" route add default via "+gateway)
		}
	}
	join(director, "front", "198.18.0.1", "")
	join(director, "back", "10.1.0.254", "")
	join(director, "mgmt", "10.9.0.254", "")
	join(client, "front", "198.18.0.2", "198.18.0.1")
	for i := 1; i <= 4; i++ {
		join(fmt.Sprintf("b%d", i), "back", fmt.Sprintf("10.1.0.%d", i), "10.1.0.254")
	}
	for i := 1; i <= 3; i++ {
		join(fmt.Sprintf("s%d", i), "mgmt", fmt.Sprintf("10.9.0.%d", i), "10.9.0.254")
	}
	// The director routes between its networks, IPVS or not: the servers'
	// checks cross it.
	onDirector(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
}

func ip(t *testing.T, args string) {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// onDirector runs a command on the director and returns what it printed.
func onDirector(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryOnDirector(args...)
	if err != nil {
		t.Fatalf("on the director: %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryOnDirector(args ...string) (string, error) {
	out, err := exec.Command("ip", append([]string{"netns", "exec", director}, args...)...).CombinedOutput()
	return string(out), err
}

// dialIn dials from inside a namespace: a socket stays in the one it was made in.
func dialIn(ctx context.Context, ns, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so no other
		// goroutine ever runs in the namespace by accident.
		runtime.LockOSThread()
		f, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
		if err != nil {
			done <- result{err: fmt.Errorf("enter %s: %w", ns, err)}
			return
		}
		d := net.Dialer{Timeout: 3 * time.Second, FallbackDelay: -1}
		conn, err := d.DialContext(ctx, "tcp", address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
