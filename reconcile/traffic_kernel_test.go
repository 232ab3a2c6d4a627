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
	n.client.IP("addr add fd18::2/64 dev director", "route add default via 198.18.0.1", "route add default via fd18::1")
	director := []string{"addr add fd18::1/64 dev client"}
	for i := 1; i <= backends; i++ {
		b := kerneltest.NewNamespace(t, fmt.Sprint("b", i))
		kerneltest.Connect(b, fmt.Sprintf("10.1.%d.1/24", i), n.director, fmt.Sprintf("10.1.%d.254/24", i))
		director = append(director, fmt.Sprintf("addr add fd01:%d::254/64 dev %s", i, b.Name))
		b.IP(fmt.Sprintf("addr add fd01:%d::1/64 dev director", i),
			fmt.Sprintf("route add default via 10.1.%d.254", i), fmt.Sprintf("route add default via fd01:%d::254", i))
		n.backends = append(n.backends, b)
		n.serve(b, i, "[::]:8080")
	}
	n.director.IP(director...)
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{NetNS: n.director.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.(io.Closer).Close() })
	n.kernel = k
	return n
}

func (n *network) serve(b *kerneltest.Namespace, number int, address string) {
	n.t.Helper()
	l, err := b.Listen("tcp", address)
	if err != nil {
		n.t.Fatal(err)
	}
	p, err := b.ListenPacket("udp", address)
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
	in      *bufio.Reader
	backend string // that answered first
}

func open(from *kerneltest.Namespace, network, to string) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, in: bufio.NewReader(c)}, nil
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
			t.Fatalf("%s %s: %v", network, to, err)
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
	// So many more that one rule for all takes the place of one each.
	for i := range 20 {
		d.Services = append(d.Services, n.serviceAt(reconcile.TCP, fmt.Sprintf("198.51.100.%d", 100+2*i), 3, 1))
	}
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
			strings.ReplaceAll(n.director.Run("iptables-legacy -t nat -S POSTROUTING"), "-A POSTROUTING -j IPVSKIT-POSTROUTING\n", "") +
			n.director.Run("iptables-legacy -S INPUT")
	}
	check := func(when, before string) {
		t.Helper()
		if got := others(); got != before {
			t.Errorf("%s:\n%s\nbefore:\n%s", when, got, before)
		}
	}
	before := others()
	cfg := reconcile.Config{Kernel: n.kernel, Journal: reconcile.FileJournal(filepath.Join(t.TempDir(), "scope")), Marks: reconcile.MarkRange{First: 1, Last: 99}}
	r := newReconciler(t, cfg)
	converge(t, r, desired(n.service(1, 1)))
	check("with a service", before)
	// They go on while we are here.
	n.director.Run("ipvsadm -e -t 198.18.0.1:81 -r 10.1.1.1:8080 -m -w 8")
	n.director.Run("ipvsadm -A -t 203.0.113.2:80 -s sh")
	n.director.Run("ipvsadm -A -f 501 -s rr")
	n.director.Run("ip addr add 203.0.113.10/32 dev lo")
	n.director.Run("iptables-legacy -t nat -I POSTROUTING -s 10.251.0.0/16 -j MASQUERADE")
	n.director.Run("iptables-legacy -A INPUT -p tcp --dport 9999 -j DROP")
	before = others()
	clash := n.service(1)
	clash.Key.Port = 81
	rep := sync(t, r, desired(n.service(1, 1), clash))
	if rep.Converged || len(rep.Collisions) != 1 || len(rep.Failures) != 1 {
		t.Errorf("a collision: %+v", rep)
	}
	check("with a collision", before)
	r = newReconciler(t, cfg)
	converge(t, r, desired())
	check("without services", before)
	if out := n.director.Run("ipvsadm -Sn"); strings.Contains(out, vip4+":80 ") {
		t.Errorf("the removed service is still there:\n%s", out)
	}
	if out := n.director.Run("ip addr show dev ipvs-manager"); !strings.Contains(out, vip4+"/32") {
		t.Errorf("the VIP did not stay:\n%s", out)
	}
	if rep, err := r.Cleanup(t.Context()); err != nil || !rep.Converged {
		t.Fatalf("%+v, %v", rep, err)
	}
	check("after Cleanup", before)
	if left := n.director.Run("iptables-legacy-save") + n.director.Run("ip link"); strings.Contains(left, "IPVSKIT") || strings.Contains(left, "ipvs-manager") {
		t.Errorf("after Cleanup is left:\n%s", left)
	}
}
