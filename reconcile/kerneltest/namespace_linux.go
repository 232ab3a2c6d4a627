package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace for a test. It needs root and the program ip.
type Namespace struct {
	Name string // as `ip netns` knows it
	Path string // for reconcile.LinuxConfig.NetNS
	t    testing.TB
}

// NewNamespace makes a namespace with its loopback up; it is deleted at the end
// of the test.
func NewNamespace(t testing.TB, name string) *Namespace {
	t.Helper()
	n := &Namespace{Name: name, Path: "/run/netns/" + name, t: t}
	runHost(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	n.IP("link set lo up")
	return n
}

// Connect makes a link between two namespaces, with an address (192.0.2.1/24) on
// each end. The ends are named after each other.
func Connect(a *Namespace, addrA string, b *Namespace, addrB string) {
	a.t.Helper()
	runHost(a.t, "ip", "link", "add", b.Name, "netns", a.Name, "type", "veth", "peer", "name", a.Name, "netns", b.Name)
	a.IP("addr add "+addrA+" dev "+b.Name, "link set "+b.Name+" up")
	b.IP("addr add "+addrB+" dev "+a.Name, "link set "+a.Name+" up")
}

// AddAddress gives an interface another address, usable at once.
func (n *Namespace) AddAddress(link, addr string) {
	n.t.Helper()
	n.IP("addr add " + addr + " dev " + link)
}

// IP runs commands of the program ip in the namespace, all in one process. IPv6
// addresses are usable at once.
func (n *Namespace) IP(commands ...string) {
	n.t.Helper()
	var in string
	for _, c := range commands {
		if strings.HasPrefix(c, "addr add ") && strings.Contains(c, ":") {
			c += " nodad"
		}
		in += c + "\n"
	}
	cmd := exec.Command("ip", "-n", n.Name, "-batch", "-")
	cmd.Stdin = strings.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("ip -n %s: %v\n%s\n%s", n.Name, err, in, out)
	}
}

// Run runs a command line in the namespace and returns what it printed; the test
// ends if it fails. Words are split at spaces.
func (n *Namespace) Run(command string) string {
	n.t.Helper()
	return runHost(n.t, append([]string{"ip", "netns", "exec", n.Name}, strings.Fields(command)...)...)
}

func runHost(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Do calls f on a thread in the namespace. Goroutines that f starts are
// elsewhere; sockets that it opens stay in the namespace.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(n.Path)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", n.Path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Listen listens in the namespace.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket listens for datagrams in the namespace.
func (n *Namespace) ListenPacket(network, address string) (l net.PacketConn, err error) {
	err = n.Do(func() error {
		l, err = net.ListenPacket(network, address)
		return err
	})
	return l, err
}

// DialContext connects from the namespace; it fits into an http.Transport.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	if host, _, serr := net.SplitHostPort(address); serr != nil || net.ParseIP(host) == nil {
		return nil, errors.Join(serr, fmt.Errorf("%q: an address is needed, names are not looked up here", address))
	}
	err = n.Do(func() error {
		// One address, one family: the dialer stays on this thread.
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
