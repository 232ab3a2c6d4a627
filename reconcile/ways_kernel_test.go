//go:build kernel && linux

package reconcile_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/kerneltest"
)

// way is how packets get from the client to the backends: a service of its own.
type way struct {
	name, network, vip string
	service            func(weights ...int) reconcile.DesiredService
}

// direct lets backends answer the client themselves for some VIPs, which are
// theirs too: the director would take packets from its own VIP for forged ones.
func (n *network) direct(vips ...string) {
	for _, module := range []string{"ipip", "ip6_tunnel", "ip_gre", "fou"} {
		n.director.Run("modprobe -d /run/m " + module)
	}
	for i, b := range n.backends {
		kerneltest.Connect(b, fmt.Sprintf("198.19.%d.1/24", i), n.client, fmt.Sprintf("198.19.%d.2/24", i))
		n.client.AddAddress(b.Name, fmt.Sprintf("fd19:%d::2/64", i))
		commands := []string{
			fmt.Sprintf("addr add fd19:%d::1/64 dev client", i),
			fmt.Sprintf("route add default via 198.19.%d.2 table 100", i),
			fmt.Sprintf("route add default via fd19:%d::2 table 100", i),
			"rule add from 198.51.100.0/24 table 100",
			"link set tunl0 up", "link set ip6tnl0 up", "link set gre0 up",
			"fou add port 6080 gue",
			// What comes out of the fallback interface is IPv6; IPv4 in IPv6 needs one
			// of its own.
			fmt.Sprintf("link add mixed type ip6tnl mode any local fd01:%d::1 remote fd01:%d::254", i+1, i+1),
			"link set mixed up",
		}
		for _, vip := range vips {
			bits := map[bool]string{true: "/32", false: "/128"}[addr(vip).Is4()]
			commands = append(commands, "addr add "+vip+bits+" dev lo")
		}
		b.IP(commands...)
		b.Run("ip -6 rule add from fd51::/64 table 100")
		b.Run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.director.rp_filter=0 net.ipv4.conf.tunl0.rp_filter=0 " +
			"net.ipv4.conf.gre0.rp_filter=0 net.ipv4.conf.mixed.rp_filter=0")
		n.serve(b, i+1, fmt.Sprintf("10.1.%d.1:80", i+1))
		n.serve(b, i+1, fmt.Sprintf("[fd01:%d::1]:80", i+1))
		for _, vip := range vips {
			n.serve(b, i+1, at(vip))
		}
	}
	n.client.Run("sysctl -qw net.ipv4.conf.all.rp_filter=0")
}

// ways are all that are tried: masquerading, direct routing, tunnels, over both
// families and protocols, by address and by firewall mark, with persistence.
func (n *network) ways() []way {
	n.direct("198.51.100.11", "198.51.100.12", "fd51::11", "fd51::12", "198.51.100.14", "198.51.100.15", "198.51.100.16")
	n.director.Run("iptables-legacy -t mangle -A PREROUTING -d 198.51.100.20 -j MARK --set-mark 20")
	n.director.Run("ip6tables-legacy -t mangle -A PREROUTING -d fd51::20 -j MARK --set-mark 20")
	var out []way
	for _, p := range []struct {
		name     string
		protocol reconcile.Protocol
	}{{"tcp", reconcile.TCP}, {"udp", reconcile.UDP}} {
		for _, vip := range []string{vip4, vip6} {
			out = append(out, way{"masq " + p.name + " " + vip, p.name, vip, func(weights ...int) reconcile.DesiredService {
				return n.serviceAt(p.protocol, vip, weights...)
			}})
		}
		for _, f := range []struct {
			name       string
			forwarding reconcile.Forwarding
			vips       []string
		}{{"dr", reconcile.DR, []string{"198.51.100.11", "fd51::11"}}, {"ipip", reconcile.Tunnel, []string{"198.51.100.12", "fd51::12"}}} {
			for _, vip := range f.vips {
				out = append(out, way{f.name + " " + p.name + " " + vip, p.name, vip, func(weights ...int) reconcile.DesiredService {
					s := n.serviceAt(p.protocol, vip, weights...)
					for i := range s.Destinations {
						s.Destinations[i].Forwarding, s.Destinations[i].Port = f.forwarding, 80
					}
					return s
				}})
			}
		}
	}
	for _, e := range []struct {
		name, vip string
		option    func(*reconcile.Destination)
	}{
		{"gre", "198.51.100.14", func(d *reconcile.Destination) { d.Encap = reconcile.GRE }},
		{"gue", "198.51.100.15", func(d *reconcile.Destination) { d.Encap, d.EncapPort = reconcile.GUE, 6080 }},
		{"ipv4 in ipv6", "198.51.100.16", func(d *reconcile.Destination) {
			d.Addr = addr(strings.Replace(strings.TrimSuffix(d.Addr.String(), ".1"), "10.1.", "fd01:", 1) + "::1")
		}},
	} {
		out = append(out, way{e.name, "tcp", e.vip, func(weights ...int) reconcile.DesiredService {
			s := n.serviceAt(reconcile.TCP, e.vip, weights...)
			for i := range s.Destinations {
				d := &s.Destinations[i]
				d.Forwarding, d.Port = reconcile.Tunnel, 80
				e.option(d)
			}
			return s
		}})
	}
	for _, vip := range []string{"198.51.100.20", "fd51::20"} {
		out = append(out, way{"mark " + vip, "tcp", vip, func(weights ...int) reconcile.DesiredService {
			s := n.serviceAt(reconcile.TCP, vip, weights...)
			s.Key = reconcile.MarkKey(s.Family, 20)
			// With persistence a mark's connections keep their port.
			for i := range s.Destinations {
				s.Destinations[i].Port = 80
			}
			return s
		}})
	}
	return append(out, way{"persistent", "tcp", "198.51.100.13", func(weights ...int) reconcile.DesiredService {
		s := n.serviceAt(reconcile.TCP, "198.51.100.13", weights...)
		s.Flags, s.Timeout = reconcile.Persistent, time.Minute
		return s
	}})
}

// binders bind the marks' addresses, which must be local too.
func (n *network) binders() []reconcile.DesiredService {
	four, six := n.serviceAt(reconcile.TCP, "198.51.100.20", 1), n.serviceAt(reconcile.TCP, "fd51::20", 1)
	four.Port, six.Port = 9, 9
	return []reconcile.DesiredService{four, six}
}

// hold opens connections that each have had an answer.
func hold(t *testing.T, from *kerneltest.Namespace, network, to string, n int) []*conn {
	t.Helper()
	var out []*conn
	for range n {
		c, err := open(from, network, to)
		if err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		t.Cleanup(func() { c.Close() })
		if c.backend, _, err = c.ask(); err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		out = append(out, c)
	}
	return out
}

// lost counts the connections that get no answer, or another backend's.
func lost(conns []*conn) int {
	n := 0
	for _, c := range conns {
		if b, _, err := c.ask(); err != nil || b != c.backend {
			n++
		}
	}
	return n
}

// No change that keeps a backend loses a connection to it, whatever way its
// packets take; new connections go where they should. INV-22, INV-23.
func TestKernelChangesLoseNoConnection(t *testing.T) {
	n := newNetwork(t, 3)
	ways := n.ways()
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel, DrainTimeout: time.Hour, Marks: reconcile.MarkRange{First: 1, Last: 99}})
	services := make([]reconcile.DesiredService, len(ways))
	apply := func(change func(way, *reconcile.DesiredService)) {
		t.Helper()
		for i, w := range ways {
			change(w, &services[i])
		}
		converge(t, r, desired(append(n.binders(), services...)...))
	}
	weights := func(weights ...int) func(way, *reconcile.DesiredService) {
		return func(w way, s *reconcile.DesiredService) {
			scheduler, flags, timeout, snat := s.Scheduler, s.Flags, s.Timeout, s.SNAT
			*s = w.service(weights...)
			if scheduler != "" {
				s.Scheduler, s.Flags, s.Timeout, s.SNAT = scheduler, flags, timeout, snat
			}
		}
	}
	apply(weights(1, 1, -1))
	held := make([][]*conn, len(ways)+1)
	total := 0
	for i, w := range ways {
		held[i] = hold(t, n.client, w.network, at(w.vip), 2)
		total += len(held[i])
	}
	held[len(ways)] = hold(t, n.director, "tcp", at(vip4), 2) // of the director itself
	for _, step := range []struct {
		name   string
		change func(way, *reconcile.DesiredService)
		want   string // backends that new connections may go to
	}{
		{"weights", weights(5, 2, -1), "12"},
		{"weight 0", weights(0, 2, -1), "2"},
		{"another scheduler", func(_ way, s *reconcile.DesiredService) { s.Scheduler = "rr" }, "2"},
		{"persistence", func(_ way, s *reconcile.DesiredService) { s.Flags, s.Timeout = reconcile.Persistent, 5*time.Minute }, "2"},
		{"no persistence", func(_ way, s *reconcile.DesiredService) { s.Flags, s.Timeout = 0, 0 }, "2"},
		{"thresholds", func(_ way, s *reconcile.DesiredService) { s.Destinations[1].Upper = 1000 }, "2"},
		{"one more backend", weights(1, 1, 1), "123"},
		{"snat all", func(_ way, s *reconcile.DesiredService) { s.SNAT = reconcile.SNATAll }, "123"},
		{"snat off", func(_ way, s *reconcile.DesiredService) { s.SNAT = reconcile.SNATOff }, "123"},
		{"snat local", func(_ way, s *reconcile.DesiredService) { s.SNAT = reconcile.SNATLocal }, "123"},
		{"forwarding", func(_ way, s *reconcile.DesiredService) {
			for i := range s.Destinations {
				switch d := &s.Destinations[i]; d.Forwarding {
				case reconcile.DR:
					d.Forwarding = reconcile.Tunnel
				case reconcile.Tunnel:
					// Not over IPv6: docs/kernel.md, Connections.
					if d.Addr.Is4() {
						d.Forwarding = reconcile.DR
					}
				}
			}
		}, "123"},
		{"a backend removed", weights(-1, 1, 1), "23"},
		{"the backend back", weights(1, 1, 1), "123"},
		{"hashing", func(_ way, s *reconcile.DesiredService) { s.Scheduler, s.Flags, s.Timeout = "mh", reconcile.Sched2, 0 }, "123"},
	} {
		apply(step.change)
		for i, conns := range held {
			if n := lost(conns); n != 0 {
				name := "of the director itself"
				if i < len(ways) {
					name = ways[i].name
				}
				t.Errorf("%s: %s: %d of %d connections lost", step.name, name, n, len(conns))
			}
		}
		for _, w := range ways {
			if strings.Contains(step.name, "snat") && !strings.HasPrefix(w.name, "masq") {
				continue // nothing changed for it
			}
			got, _ := count(t, n.client, w.network, at(w.vip), 1)
			for b := range got {
				if !strings.Contains(step.want, b) {
					t.Errorf("%s: %s: a new connection went to %s, want one of %s", step.name, w.name, b, step.want)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("after %s:\n%s", step.name, n.director.Run("ipvsadm -Ln"))
		}
	}
	t.Logf("%d connections, lost: 0", total+len(held[len(ways)]))
}

// eventually waits until nothing is wrong, as f says.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		wrong := f()
		if wrong == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(wrong)
		case <-tick.C:
		}
	}
}

// Clients are spread as the weights say, keep their address and get answers on
// every way; persistent ones stay with their backend.
func TestKernelForwarding(t *testing.T) {
	n := newNetwork(t, 2)
	ways := n.ways()
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel, Marks: reconcile.MarkRange{First: 1, Last: 99}})
	services := n.binders()
	for _, w := range ways {
		services = append(services, w.service(1, 1))
	}
	converge(t, r, desired(services...))
	for _, w := range ways {
		want := "198.18.0.2"
		if addr(w.vip).Is6() {
			want = "fd18::2"
		}
		got, seen := count(t, n.client, w.network, at(w.vip), 4)
		if spread := got["1"] == 2 && got["2"] == 2; spread == (w.name == "persistent") || seen != want {
			t.Errorf("%s: %v, seen from %s", w.name, got, seen)
		}
	}
	// What was forwarded is counted; the kernel adds up every 2 seconds.
	counted := func(s reconcile.ServiceState) bool {
		var sum uint64
		for _, d := range s.Destinations {
			sum += d.Counters.Connections
		}
		c := s.Counters
		return s.Port == 9 || c.Connections >= 4 && sum == c.Connections && c.PacketsIn >= 4 && c.BytesIn >= 8
	}
	eventually(t, func() string {
		a, err := r.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range a.Services {
			if !counted(s) {
				return fmt.Sprintf("%s: %+v", s, s.Counters)
			}
		}
		return ""
	})
	eventually(t, func() string {
		count(t, n.client, "tcp", at(vip4), 4)
		s, err := n.kernel.Service(t.Context(), ways[0].service().Key)
		if c := s.Counters; err != nil || c.ConnectionRate == 0 || c.PacketRateIn == 0 || c.ByteRateIn == 0 {
			return fmt.Sprintf("rates %+v, %v", c, err)
		}
		return ""
	})
	if err := r.Zero(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := n.kernel.Service(t.Context(), ways[0].service().Key); err != nil || s.Counters != (reconcile.Counters{}) {
		t.Errorf("zeroed: %+v, %v", s.Counters, err)
	}
	// Weight 0 moves persistent clients, too.
	sticky := &services[len(services)-1]
	got, _ := count(t, n.client, "tcp", at("198.51.100.13"), 3)
	if len(got) != 1 {
		t.Errorf("a persistent client went to %v", got)
	}
	*sticky = ways[len(ways)-1].service(map[bool][]int{true: {0, 1}, false: {1, 0}}[got["1"] > 0]...)
	converge(t, r, desired(services...))
	if then, _ := count(t, n.client, "tcp", at("198.51.100.13"), 3); len(then) != 1 || fmt.Sprint(then) == fmt.Sprint(got) {
		t.Errorf("with weight 0 a persistent client went to %v, before to %v", then, got)
	}
}

// mortal is a kernel whose user is killed after his first operation.
type mortal struct {
	reconcile.Kernel
	ctx    context.Context
	kill   context.CancelFunc
	last   reconcile.Op
	chains map[reconcile.ChainKey]reconcile.Chain // read before: nobody else changes them, and reading takes a process
}

func (k *mortal) Chain(ctx context.Context, key reconcile.ChainKey) (reconcile.Chain, error) {
	if c, known := k.chains[key]; known {
		return c, nil
	}
	c, err := k.Kernel.Chain(ctx, key)
	if err == nil {
		k.chains[key] = c
	}
	return c, err
}

func (k *mortal) Do(ctx context.Context, ops []reconcile.Op) map[int]error {
	errs := map[int]error{}
	for i := range ops {
		if err := ctx.Err(); err != nil {
			errs[i] = err
			continue
		}
		k.last = ops[i]
		if c := ops[i].Chain; c != nil {
			delete(k.chains, c.ChainKey)
		}
		if err := k.Kernel.Do(ctx, ops[i:i+1])[0]; err != nil {
			errs[i] = err
		}
		k.kill()
	}
	return errs
}

// A process that is killed after any operation converges when it is started
// again, and no connection to a backend that stays is lost. INV-23.
func TestKernelKilledAfterEachOperation(t *testing.T) {
	n := newNetwork(t, 3)
	journal := new(memory)
	chains := map[reconcile.ChainKey]reconcile.Chain{}
	kills := 0
	steps := []reconcile.Desired{
		desired(n.serviceAt(reconcile.TCP, vip4, -1, 1), n.serviceAt(reconcile.TCP, vip6, -1, 1)),
		desired(n.serviceAt(reconcile.TCP, vip4, 1, 5, 1), n.serviceAt(reconcile.TCP, vip6, 1, 5), n.serviceAt(reconcile.UDP, vip4, 1)),
		desired(n.serviceAt(reconcile.TCP, vip4, -1, 1, 2), n.serviceAt(reconcile.TCP, vip6, -1, 2)),
	}
	var held []*conn
	for _, want := range steps {
		for {
			k := &mortal{Kernel: n.kernel, chains: chains}
			k.ctx, k.kill = context.WithCancel(t.Context())
			r := newReconciler(t, reconcile.Config{Kernel: k, Journal: journal, DrainTimeout: time.Hour})
			rep, err := r.Sync(k.ctx, want)
			k.kill()
			if n := lost(held); n != 0 {
				t.Fatalf("killed after %s: %d of %d connections lost", k.last, n, len(held))
			}
			if err != nil {
				kills++
				continue
			}
			if !rep.Converged || rep.Operations != 0 {
				t.Fatalf("%+v", rep)
			}
			break
		}
		if held == nil {
			held = append(hold(t, n.client, "tcp", at(vip4), 4), hold(t, n.client, "tcp", at(vip6), 4)...)
		}
		for _, vip := range []string{vip4, vip6} {
			if got, _ := count(t, n.client, "tcp", at(vip), 3); got["2"] == 0 {
				t.Errorf("%s: new connections went to %v", vip, got)
			}
		}
	}
	t.Logf("killed %d times, %d connections, lost: 0", kills, len(held))
	if kills < 25 {
		t.Errorf("only %d operations", kills)
	}
}

// Only what a service has is reachable on a protected VIP.
func TestKernelProtectsVIPs(t *testing.T) {
	n := newNetwork(t, 1)
	n.serve(n.director, 9, "[::]:81")
	n.serve(n.director, 9, "[::]:80")
	r := newReconciler(t, reconcile.Config{Kernel: n.kernel})
	d := desired(n.serviceAt(reconcile.TCP, vip4, 1), n.serviceAt(reconcile.TCP, vip6, 1))
	converge(t, r, d)
	for _, vip := range []string{vip4, vip6} {
		if got, _ := count(t, n.client, "tcp", netip.AddrPortFrom(addr(vip), 81).String(), 1); got["9"] != 1 {
			t.Errorf("%s: unprotected, the host's listener is reached: %v", vip, got)
		}
	}
	journal := new(memory)
	r = newReconciler(t, reconcile.Config{Kernel: n.kernel, ProtectVIPs: true, Journal: journal})
	converge(t, r, d)
	for _, vip := range []string{vip4, vip6} {
		for _, network := range []string{"tcp", "udp"} {
			c, err := open(n.client, network, netip.AddrPortFrom(addr(vip), 81).String())
			if err == nil {
				_, _, err = c.ask()
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%s %s port 81: %v, want it refused", network, vip, err)
			}
		}
		if got, _ := count(t, n.client, "tcp", at(vip), 3); got["1"] != 3 {
			t.Errorf("%s: the service's connections went to %v", vip, got)
		}
		if got, _ := count(t, n.director, "tcp", at(vip), 1); got["1"] != 1 {
			t.Errorf("%s: the director's own connection went to %v", vip, got)
		}
	}
	rep, err := r.Cleanup(t.Context())
	if err != nil || !rep.Converged {
		t.Fatalf("%+v, %v", rep, err)
	}
	left := n.director.Run("ipvsadm -Sn") + n.director.Run("iptables-legacy-save") + n.director.Run("ip6tables-legacy-save") + n.director.Run("ip link")
	for _, ours := range []string{vip4, "IPVSKIT", "ipvs-manager"} {
		if strings.Contains(left, ours) {
			t.Errorf("after Cleanup %s is left:\n%s", ours, left)
		}
	}
}

// What others take away is put back at once where the kernel tells of it, and
// soon where it must be looked for; both are counted. INV-20.
func TestKernelRepairsDrift(t *testing.T) {
	n := newNetwork(t, 2)
	reports := make(chan reconcile.Report, 64)
	r := newReconciler(t, reconcile.Config{
		Kernel: n.kernel, DriftInterval: time.Second, OnReport: func(rep reconcile.Report) { reports <- rep },
	})
	d := desired(n.serviceAt(reconcile.TCP, vip4, 1, 1), n.serviceAt(reconcile.TCP, vip6, 1, 1))
	converge(t, r, d)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	for _, command := range []string{
		"ip addr del " + vip4 + "/32 dev ipvs-manager",
		"ip link set ipvs-manager down",
		"ip link del ipvs-manager",
		"ipvsadm -d -t " + at(vip4) + " -r 10.1.1.1:8080",
		"ipvsadm -e -t " + at(vip4) + " -r 10.1.1.1:8080 -m -w 9",
		"ipvsadm -E -t " + at(vip6) + " -s lc",
		"ipvsadm -C",
	} {
		for len(reports) > 0 {
			<-reports // of the change before
		}
		n.director.Run(command)
		for timeout, repaired := time.After(time.Minute), false; !repaired; {
			select {
			case rep := <-reports:
				repaired = rep.Repaired > 0 && rep.Converged
			case <-timeout:
				t.Fatalf("%s: not repaired", command)
			}
		}
		for _, vip := range []string{vip4, vip6} {
			if got, _ := count(t, n.client, "tcp", at(vip), 2); got["1"] != 1 || got["2"] != 1 {
				t.Errorf("%s: connections to %s went to %v", command, vip, got)
			}
		}
	}
}
