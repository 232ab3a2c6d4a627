//go:build kernel && linux

package reconcile_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/kerneltest"
)

// network is a client, a director and backends, each in a namespace:
//
//	client 198.18.0.2 ── 198.18.0.1 director 10.1.N.254 ── 10.1.N.1 backend N
//	fd18::2                 fd18::1          fd01:N::254   fd01:N::1
//
// Each backend answers a line on port 8080, TCP and UDP, by its own number and
// the address it saw.
type network struct {
	t        *testing.T
	client   *kerneltest.Namespace
	director *kerneltest.Namespace
	backends []*kerneltest.Namespace
	kernel   reconcile.Kernel
}

const vip4, vip6 = "198.51.100.10", "fd51::10"

func newNetwork(t *testing.T, backends int) *network {
	n := &network{t: t, client: kerneltest.NewNamespace(t, "client"), director: kerneltest.NewNamespace(t, "director")}
	kerneltest.Connect(n.client, "198.18.0.2/24", n.director, "198.18.0.1/24")
	n.client.AddAddress("director", "fd18::2/64")
	n.director.AddAddress("client", "fd18::1/64")
	n.client.Run("ip route add default via 198.18.0.1")
	n.client.Run("ip route add default via fd18::1")
	for i := 1; i <= backends; i++ {
		b := kerneltest.NewNamespace(t, fmt.Sprint("b", i))
		kerneltest.Connect(b, fmt.Sprintf("10.1.%d.1/24", i), n.director, fmt.Sprintf("10.1.%d.254/24", i))
		b.AddAddress("director", fmt.Sprintf("fd01:%d::1/64", i))
		n.director.AddAddress(b.Name, fmt.Sprintf("fd01:%d::254/64", i))
		b.Run(fmt.Sprintf("ip route add default via 10.1.%d.254", i))
		b.Run(fmt.Sprintf("ip route add default via fd01:%d::254", i))
		n.backends = append(n.backends, b)
		n.serve(b, i, 8080)
	}
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{NetNS: n.director.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.(io.Closer).Close() })
	n.kernel = k
	return n
}

func (n *network) serve(b *kerneltest.Namespace, number, port int) {
	n.t.Helper()
	l, err := b.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		n.t.Fatal(err)
	}
	p, err := b.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		n.t.Fatal(err)
	}
	var served gosync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(func() {
		cancel()
		l.Close()
		p.Close()
		served.Wait()
	})
	answer := func(from net.Addr) string {
		a := netip.MustParseAddrPort(from.String()).Addr().Unmap()
		return fmt.Sprintf("%d %s\n", number, a)
	}
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// Some connections lose their other end without a word.
			stop := context.AfterFunc(ctx, func() { c.Close() })
			served.Go(func() {
				defer stop()
				defer c.Close()
				for in := bufio.NewReader(c); ; {
					if _, err := in.ReadString('\n'); err != nil {
						return
					}
					if _, err := io.WriteString(c, answer(c.RemoteAddr())); err != nil {
						return
					}
				}
			})
		}
	})
	served.Go(func() {
		b := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(answer(from)), from)
		}
	})
}

// service is at the VIP of the family of its backends, port 80.
func (n *network) service(weights ...int) reconcile.DesiredService {
	return n.serviceAt(reconcile.TCP, vip4, weights...)
}

func (n *network) serviceAt(p reconcile.Protocol, vip string, weights ...int) reconcile.DesiredService {
	s := reconcile.DesiredService{Service: reconcile.Service{
		Key: reconcile.AddrKey(p, netip.AddrPortFrom(addr(vip), 80)), Scheduler: "wrr",
	}}
	for i, w := range weights {
		if w < 0 {
			continue
		}
		at := fmt.Sprintf("10.1.%d.1", i+1)
		if s.Family == reconcile.IPv6 {
			at = fmt.Sprintf("fd01:%d::1", i+1)
		}
		s.Destinations = append(s.Destinations, reconcile.Destination{Addr: addr(at), Port: 8080, Weight: uint32(w)})
	}
	return s
}

// conn is a connection on which each question gets the same backend's answer.
type conn struct {
	net.Conn
	in *bufio.Reader
}

func open(from *kerneltest.Namespace, network, to string) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// ask gives the backend's number and the address that it saw.
func (c *conn) ask() (backend, seen string, err error) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "?\n"); err != nil {
		return "", "", err
	}
	line, err := c.in.ReadString('\n')
	backend, seen, _ = strings.Cut(strings.TrimSpace(line), " ")
	return backend, seen, err
}

// count asks on n new connections, and gives how often each backend answered.
func count(t *testing.T, from *kerneltest.Namespace, network, to string, n int) (backends map[string]int, seen string) {
	t.Helper()
	backends = map[string]int{}
	for range n {
		c, err := open(from, network, to)
		if err != nil {
			t.Fatal(err)
		}
		b, s, err := c.ask()
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		backends[b]++
		seen = s
	}
	return backends, seen
}

func at(vip string) string { return net.JoinHostPort(vip, "80") }

// Clients reach the backends as the weights say and keep their address; what
// the director itself opens is answered too. INV-20.
func TestKernelMasquerade(t *testing.T) {
	n := newNetwork(t, 2)
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel})
	d := desired(
		n.serviceAt(reconcile.TCP, vip4, 3, 1), n.serviceAt(reconcile.TCP, vip6, 3, 1),
		n.serviceAt(reconcile.UDP, vip4, 3, 1), n.serviceAt(reconcile.UDP, vip6, 3, 1),
	)
	rep := converge(t, r, d)
	t.Logf("%d operations in %s; %v", rep.Operations, rep.Took, rep.Host)
	for _, protocol := range []string{"tcp", "udp"} {
		for vip, own := range map[string]string{vip4: "198.18.0.2", vip6: "fd18::2"} {
			got, seen := count(t, n.client, protocol, at(vip), 8)
			if got["1"] != 6 || got["2"] != 2 || seen != own {
				t.Errorf("%s %s: answers %v, seen from %s; want 6 and 2, from %s", protocol, vip, got, seen, own)
			}
			if got, seen := count(t, n.director, protocol, at(vip), 4); got["1"]+got["2"] != 4 || seen == vip {
				t.Errorf("%s %s: of the director itself: %v, seen from %s", protocol, vip, got, seen)
			}
		}
	}
	if rep := converge(t, r, d); rep.Operations != 0 {
		t.Errorf("the second sync did %d operations", rep.Operations)
	}
	// The journal apart, another process finds all as it should be.
	if rep := converge(t, newReconciler(t, reconcile.Config{Kernel: n.kernel}), d); rep.Operations != 0 {
		t.Errorf("another process did %d operations", rep.Operations)
	}
}

// Backends that do not route back through the director answer with snat all.
func TestKernelSNATAll(t *testing.T) {
	n := newNetwork(t, 1)
	n.backends[0].Run("ip route del default")
	n.backends[0].Run("ip -6 route del default")
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel})
	four, six := n.serviceAt(reconcile.TCP, vip4, 1), n.serviceAt(reconcile.TCP, vip6, 1)
	four.SNAT, six.SNAT = reconcile.SNATAll, reconcile.SNATAll
	converge(t, r, desired(four, six))
	for vip, router := range map[string]string{vip4: "10.1.1.254", vip6: "fd01:1::254"} {
		if _, seen := count(t, n.client, "tcp", at(vip), 3); seen != router {
			t.Errorf("%s: seen from %s, want the director's %s", vip, seen, router)
		}
	}
	// A connection that was SNATed outlives the last rule that SNATs.
	c, err := open(n.client, "tcp", at(vip4))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	four.SNAT, six.SNAT = reconcile.SNATOff, reconcile.SNATOff
	converge(t, r, desired(four, six))
	for range 3 {
		if _, _, err := c.ask(); err != nil {
			t.Fatalf("after snat off: %v", err)
		}
	}
}

// No change that keeps a backend loses a connection to it; new connections go
// where they should. INV-22, INV-23.
func TestKernelChangesLoseNoConnection(t *testing.T) {
	n := newNetwork(t, 3)
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel, DrainTimeout: time.Hour})
	s := n.service(1, 1, -1)
	converge(t, r, desired(s))
	var held []*conn
	for range 8 {
		c, err := open(n.client, "tcp", at(vip4))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	local, err := open(n.director, "tcp", at(vip4))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	held = append(held, local)
	other := n.serviceAt(reconcile.TCP, "198.51.100.11", 1)
	for _, step := range []struct {
		name   string
		change func()
		want   string // backends that new connections may go to
	}{
		{"weights", func() { s = n.service(5, 2, -1) }, "12"},
		{"weight 0", func() { s.Destinations[0].Weight = 0 }, "2"},
		{"another scheduler", func() { s.Scheduler = "rr" }, "2"},
		{"persistence", func() { s.Flags, s.Timeout = reconcile.Persistent, 5*time.Minute }, "2"},
		{"no persistence", func() { s.Flags, s.Timeout = 0, 0 }, "2"},
		{"thresholds", func() { s.Destinations[1].Upper = 1000 }, "2"},
		{"one more backend", func() { s = n.service(1, 1, 1) }, "123"},
		{"snat all", func() { s.SNAT = reconcile.SNATAll }, "123"},
		{"snat off", func() { s.SNAT = reconcile.SNATOff }, "123"},
		{"snat local", func() { s.SNAT = reconcile.SNATLocal }, "123"},
		{"a backend removed", func() { s = n.service(-1, 1, 1) }, "23"},
		{"the backend back", func() { s = n.service(1, 1, 1) }, "123"},
		{"hashing", func() { s.Scheduler, s.Flags = "mh", reconcile.Sched2 }, "123"},
	} {
		step.change()
		for _, d := range []reconcile.Desired{desired(s, other), desired(s)} {
			converge(t, r, d)
			lost := 0
			for _, c := range held {
				if _, _, err := c.ask(); err != nil {
					lost++
				}
			}
			if lost != 0 {
				t.Fatalf("%s: %d of %d connections lost", step.name, lost, len(held))
			}
		}
		got, _ := count(t, n.client, "tcp", at(vip4), 6)
		for b := range got {
			if !strings.Contains(step.want, b) {
				t.Errorf("%s: new connections went to %v, want one of %s", step.name, got, step.want)
			}
		}
	}
}

// A removed backend keeps its connections until they end or the deadline, also
// across a restart; then it is deleted and what is left is reset.
func TestKernelDrain(t *testing.T) {
	n := newNetwork(t, 2)
	journal := reconcile.FileJournal(filepath.Join(t.TempDir(), "scope"))
	cfg := reconcile.Config{Kernel: n.kernel, Journal: journal, DrainTimeout: 4 * time.Second}
	r := newReconciler(t, cfg)
	converge(t, r, desired(n.service(1, 0)))
	c, err := open(n.client, "tcp", at(vip4))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, _, err := c.ask(); b != "1" || err != nil {
		t.Fatalf("%s %v", b, err)
	}
	only2 := desired(n.service(-1, 1))
	if rep := converge(t, r, only2); rep.Draining != 1 {
		t.Fatalf("draining %d, want 1", rep.Draining)
	}
	began := time.Now()
	if got, _ := count(t, n.client, "tcp", at(vip4), 4); got["2"] != 4 {
		t.Errorf("new connections went to %v", got)
	}
	// The process ends and comes back; the deadline is the old one.
	reports := make(chan reconcile.Report, 16)
	cfg.OnReport = func(rep reconcile.Report) { reports <- rep }
	r = newReconciler(t, cfg)
	if rep := converge(t, r, only2); rep.Draining != 1 || rep.Operations != 0 {
		t.Fatalf("after a restart: %+v", rep)
	}
	if b, _, err := c.ask(); b != "1" || err != nil {
		t.Fatalf("while draining: %s %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	select {
	case rep := <-reports:
		if took := time.Since(began); rep.Draining != 0 || rep.Operations != 1 || took < 3*time.Second {
			t.Errorf("after %s: %+v", took, rep)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the drain does not end")
	}
	if _, _, err := c.ask(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection was not reset: %v", err)
	}
	// Without connections nothing is waited for.
	if rep := converge(t, r, desired(n.service(1, 1))); rep.Draining != 0 {
		t.Errorf("%+v", rep)
	}
	if rep := converge(t, r, only2); rep.Draining != 0 || rep.Operations != 2 {
		t.Errorf("an idle backend was not deleted at once: %+v", rep)
	}
}

// What others made with ipvsadm, ip and iptables is as it was; a removed service
// loses its IPVS rules only. INV-21, INV-24.
func TestKernelLeavesOthersAlone(t *testing.T) {
	n := newNetwork(t, 2)
	n.director.Run("ipvsadm -A -t 198.18.0.1:81 -s rr")
	n.director.Run("ipvsadm -a -t 198.18.0.1:81 -r 10.1.1.1:8080 -m -w 7")
	n.director.Run("ipvsadm -A -u 203.0.113.1:53 -s rr")
	n.director.Run("ipvsadm -A -f 500 -s rr")
	n.director.Run("ip addr add 203.0.113.9/32 dev lo")
	n.director.Run("iptables-legacy -t nat -A POSTROUTING -s 10.250.0.0/16 -j MASQUERADE")
	// On what will be a VIP of ours, too.
	n.director.Run("ipvsadm -A -t " + vip4 + ":81 -s rr")
	others := func() string {
		saved := strings.Split(strings.TrimSpace(n.director.Run("ipvsadm -Sn")), "\n")
		saved = slices.DeleteFunc(saved, func(l string) bool { return strings.Contains(l, vip4+":80 ") })
		slices.Sort(saved)
		return strings.Join(saved, "\n") + n.director.Run("ip addr show dev lo") + n.director.Run("ip addr show dev client") +
			n.director.Run("iptables-legacy -t nat -S POSTROUTING 1")
	}
	before := others()
	cfg := reconcile.Config{Kernel: n.kernel, Journal: reconcile.FileJournal(filepath.Join(t.TempDir(), "scope")), Marks: reconcile.MarkRange{First: 1, Last: 99}}
	r := newReconciler(t, cfg)
	converge(t, r, desired(n.service(1, 1)))
	if got := others(); got != before {
		t.Errorf("with a service:\n%s\nbefore:\n%s", got, before)
	}
	clash := n.service(1)
	clash.Key.Port = 81
	rep := sync(t, r, desired(n.service(1, 1), clash))
	if rep.Converged || len(rep.Collisions) != 1 || len(rep.Failures) != 1 {
		t.Errorf("a collision: %+v", rep)
	}
	converge(t, newReconciler(t, cfg), desired())
	if got := others(); got != before {
		t.Errorf("without services:\n%s\nbefore:\n%s", got, before)
	}
	if out := n.director.Run("ipvsadm -Sn"); strings.Contains(out, vip4+":80 ") {
		t.Errorf("the removed service is still there:\n%s", out)
	}
	if out := n.director.Run("ip addr show dev ipvs-manager"); !strings.Contains(out, vip4+"/32") {
		t.Errorf("the VIP did not stay:\n%s", out)
	}
}

// Direct routing, a tunnel, a firewall mark and persistence carry traffic.
func TestKernelForwarding(t *testing.T) {
	n := newNetwork(t, 4)
	n.director.Run("iptables-legacy -t mangle -A PREROUTING -d 198.51.100.20 -p tcp -j MARK --set-mark 20")
	// The answers of two backends go to the client directly: the director would
	// take packets from its own VIP for forged ones.
	for i, b := range n.backends[2:] {
		kerneltest.Connect(b, fmt.Sprintf("198.19.%d.1/24", i), n.client, fmt.Sprintf("198.19.%d.2/24", i))
		b.Run(fmt.Sprintf("ip route add 198.18.0.0/24 via 198.19.%d.2", i))
		n.serve(b, i+3, 80)
		b.Run("sysctl -qw net.ipv4.conf.all.rp_filter=0")
		b.Run("sysctl -qw net.ipv4.conf.director.rp_filter=0")
		b.Run("ip addr add 198.51.100.11/32 dev lo")
		b.Run("ip addr add 198.51.100.12/32 dev lo")
		b.Run("modprobe -d /run/m ipip")
		b.Run("ip link set tunl0 up")
		b.Run("sysctl -qw net.ipv4.conf.tunl0.rp_filter=0")
	}
	dr := n.serviceAt(reconcile.TCP, "198.51.100.11", -1, -1, 1, 1)
	tunnel := n.serviceAt(reconcile.TCP, "198.51.100.12", -1, -1, 1, 1)
	for i := range dr.Destinations {
		dr.Destinations[i].Forwarding, dr.Destinations[i].Port = reconcile.DR, 80
		tunnel.Destinations[i].Forwarding, tunnel.Destinations[i].Port = reconcile.Tunnel, 80
	}
	mark := n.service(1, 1)
	mark.Key = reconcile.MarkKey(reconcile.IPv4, 20)
	sticky := n.serviceAt(reconcile.TCP, "198.51.100.13", 1, 1)
	sticky.Flags, sticky.Timeout = reconcile.Persistent, time.Minute
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel, Marks: reconcile.MarkRange{First: 1, Last: 99}})
	// A mark's address must be local, too: a service of its own binds it.
	binder := n.serviceAt(reconcile.UDP, "198.51.100.20", 1)
	converge(t, r, desired(dr, tunnel, mark, sticky, binder))
	for _, way := range []struct{ name, vip, a, b string }{
		{"dr", "198.51.100.11", "3", "4"}, {"tunnel", "198.51.100.12", "3", "4"}, {"mark", "198.51.100.20", "1", "2"},
	} {
		if got, seen := count(t, n.client, "tcp", at(way.vip), 4); got[way.a] != 2 || got[way.b] != 2 || seen != "198.18.0.2" {
			t.Errorf("%s: %v, seen from %s", way.name, got, seen)
		}
	}
	got, _ := count(t, n.client, "tcp", at("198.51.100.13"), 6)
	if len(got) != 1 {
		t.Errorf("a persistent client went to %v", got)
	}
	// Weight 0 moves persistent clients, too.
	for i, d := range sticky.Destinations {
		if got[fmt.Sprint(i+1)] > 0 {
			d.Weight = 0
			sticky.Destinations = slices.Clone(sticky.Destinations)
			sticky.Destinations[i] = d
		}
	}
	converge(t, r, desired(dr, tunnel, mark, sticky, binder))
	if then, _ := count(t, n.client, "tcp", at("198.51.100.13"), 3); len(then) != 1 || fmt.Sprint(then) == fmt.Sprint(got) {
		t.Errorf("with weight 0 a persistent client went to %v, before to %v", then, got)
	}
}
