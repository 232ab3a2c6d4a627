package kerneltest

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

// Shorthand for the kernels' words.
type (
	op   = reconcile.Op
	dest = reconcile.Destination
)

const (
	addService = reconcile.AddService
	setService = reconcile.SetService
	delService = reconcile.DelService
	addDest    = reconcile.AddDestination
	setDest    = reconcile.SetDestination
	delDest    = reconcile.DelDestination
)

// link is the interface that the suite makes and deletes.
const link = "kerneltest"

var (
	vip4 = netip.MustParseAddrPort("192.0.2.10:80")
	vip6 = netip.MustParseAddrPort("[2001:db8::10]:80")
)

func tcp(at netip.AddrPort) reconcile.Service {
	return reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, at), Scheduler: "wlc"}
}

func to(at string) dest {
	a := netip.MustParseAddrPort(at)
	return dest{Addr: a.Addr(), Port: a.Port(), Weight: 100}
}

func edit[T any](v T, f func(*T)) T {
	f(&v)
	return v
}

// row is one operation after others that must succeed, and the errno it gives;
// 0: it is done.
type row struct {
	name  string
	setup []op
	op    op
	want  syscall.Errno
}

func rows() []row {
	svc, svc6 := tcp(vip4), tcp(vip6)
	service := []op{{Kind: addService, Service: svc}}
	service6 := []op{{Kind: addService, Service: svc6}}
	d := to("10.1.0.1:8080")
	both := append(slices.Clone(service), op{Kind: addDest, Service: svc, Dest: d})
	mark := reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv4, 1), Scheduler: "rr"}
	mark6 := reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv6, 1), Scheduler: "rr"}
	withDest := func(f func(*dest)) op { return op{Kind: addDest, Service: svc, Dest: edit(d, f)} }
	withService := func(f func(*reconcile.Service)) op { return op{Kind: addService, Service: edit(svc, f)} }
	made := []op{{Kind: reconcile.AddLink, Link: link, Value: reconcile.Alias}}
	return []row{
		{"set a missing service", nil, op{Kind: setService, Service: svc}, syscall.ESRCH},
		{"delete a missing service", nil, op{Kind: delService, Service: svc}, syscall.ESRCH},
		{"add a destination to a missing service", nil, op{Kind: addDest, Service: svc, Dest: d}, syscall.ESRCH},
		{"set a destination of a missing service", nil, op{Kind: setDest, Service: svc, Dest: d}, syscall.ESRCH},
		{"delete a destination of a missing service", nil, op{Kind: delDest, Service: svc, Dest: d}, syscall.ESRCH},
		{"add a service twice", service, op{Kind: addService, Service: svc}, syscall.EEXIST},
		{"add a service twice that differs", service, withService(func(s *reconcile.Service) { s.Scheduler = "rr" }), syscall.EEXIST},
		{"add a destination twice", both, op{Kind: addDest, Service: svc, Dest: d}, syscall.EEXIST},
		{"add a destination twice that differs", both, withDest(func(d *dest) { d.Weight = 1 }), syscall.EEXIST},
		{"set a missing destination", service, op{Kind: setDest, Service: svc, Dest: d}, syscall.ENOENT},
		{"delete a missing destination", service, op{Kind: delDest, Service: svc, Dest: d}, syscall.ENOENT},
		{"unknown scheduler", nil, withService(func(s *reconcile.Service) { s.Scheduler = "nosuch" }), syscall.ENOENT},
		{"set an unknown scheduler", service, op{Kind: setService, Service: edit(svc, func(s *reconcile.Service) { s.Scheduler = "nosuch" })}, syscall.ENOENT},
		{"empty scheduler", nil, withService(func(s *reconcile.Service) { s.Scheduler = "" }), syscall.ENOENT},
		{"scheduler name too long", nil, withService(func(s *reconcile.Service) { s.Scheduler = strings.Repeat("x", 20) }), syscall.EINVAL},
		{"IPv6 prefix out of range", nil, op{Kind: addService, Service: edit(svc6, func(s *reconcile.Service) { s.Prefix = 129 })}, syscall.EINVAL},
		{"address family 99", nil, op{Kind: addService, Service: edit(svc, func(s *reconcile.Service) { s.Family = 99 })}, syscall.EAFNOSUPPORT},
		{"weight 2^31", service, withDest(func(d *dest) { d.Weight = 1 << 31 }), syscall.ERANGE},
		{"weight 2^31-1", service, withDest(func(d *dest) { d.Weight = 1<<31 - 1 }), 0},
		{"weight 65536", service, withDest(func(d *dest) { d.Weight = 65536 }), 0},
		{"lower threshold above the upper", service, withDest(func(d *dest) { d.Upper, d.Lower = 3, 5 }), syscall.ERANGE},
		{"lower threshold without an upper", service, withDest(func(d *dest) { d.Lower = 5 }), syscall.ERANGE},
		{"thresholds", service, withDest(func(d *dest) { d.Upper, d.Lower = 5, 3 }), 0},
		{"destination 0.0.0.0", service, withDest(func(d *dest) { d.Addr = netip.IPv4Unspecified() }), syscall.EINVAL},
		{"multicast destination", service, withDest(func(d *dest) { d.Addr = netip.MustParseAddr("224.0.0.1") }), syscall.EINVAL},
		{"broadcast destination", service, withDest(func(d *dest) { d.Addr = netip.MustParseAddr("255.255.255.255") }), syscall.EINVAL},
		{"link-local destination", service6, op{Kind: addDest, Service: svc6, Dest: to("[fe80::1]:80")}, syscall.EINVAL},
		{"destination on this host", service, withDest(func(d *dest) { d.Addr = netip.MustParseAddr("127.0.0.1") }), 0},
		{"mixed families with masq", service, op{Kind: addDest, Service: svc, Dest: to("[2001:db8::1]:80")}, syscall.EINVAL},
		{"mixed families with dr", service, op{Kind: addDest, Service: svc, Dest: edit(to("[2001:db8::1]:80"), func(d *dest) { d.Forwarding = reconcile.DR })}, syscall.EINVAL},
		{"mixed families with tunnel", service, op{Kind: addDest, Service: svc, Dest: edit(to("[2001:db8::1]:80"), func(d *dest) { d.Forwarding = reconcile.Tunnel })}, 0},
		{"gue without a port", service, withDest(func(d *dest) { d.Forwarding, d.Encap = reconcile.Tunnel, reconcile.GUE }), syscall.EINVAL},
		{"gue", service, withDest(func(d *dest) {
			d.Forwarding, d.Encap, d.EncapPort, d.EncapFlags = reconcile.Tunnel, reconcile.GUE, 6080, reconcile.TunnelChecksum
		}), 0},
		{"gre", service, withDest(func(d *dest) { d.Forwarding, d.Encap = reconcile.Tunnel, reconcile.GRE }), 0},
		{"port 0 without persistence", nil, withService(func(s *reconcile.Service) { s.Port = 0 }), 0},
		{"dr with another port", service, withDest(func(d *dest) { d.Forwarding = reconcile.DR }), 0},
		{"one packet on tcp", nil, withService(func(s *reconcile.Service) { s.Flags = reconcile.OnePacket }), 0},
		{"firewall mark", nil, op{Kind: addService, Service: mark}, 0},
		{"firewall mark of the other family", []op{{Kind: addService, Service: mark}}, op{Kind: addService, Service: mark6}, 0},

		{"add a link twice", made, op{Kind: reconcile.AddLink, Link: link}, syscall.EEXIST},
		{"link with a long name", nil, op{Kind: reconcile.AddLink, Link: "sixteen-bytes-16"}, syscall.ERANGE},
		{"missing link up", nil, op{Kind: reconcile.LinkUp, Link: link}, syscall.ENODEV},
		{"alias of a missing link", nil, op{Kind: reconcile.SetAlias, Link: link, Value: "x"}, syscall.ENODEV},
		{"delete a missing link", nil, op{Kind: reconcile.DelLink, Link: link}, syscall.ENODEV},
		{"address on a missing link", nil, op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr()}, syscall.ENODEV},
		{"add an address twice", append(slices.Clone(made), op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr()}), op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr()}, syscall.EEXIST},
		{"add an IPv6 address twice", append(slices.Clone(made), op{Kind: reconcile.AddAddress, Link: link, Addr: vip6.Addr()}), op{Kind: reconcile.AddAddress, Link: link, Addr: vip6.Addr()}, syscall.EEXIST},
		{"delete a missing address", made, op{Kind: reconcile.DelAddress, Link: link, Addr: vip4.Addr()}, syscall.EADDRNOTAVAIL},
		{"delete a missing IPv6 address", made, op{Kind: reconcile.DelAddress, Link: link, Addr: vip6.Addr()}, syscall.EADDRNOTAVAIL},
		{"unknown persistence engine", nil, withService(func(s *reconcile.Service) {
			s.Flags, s.Timeout, s.Engine = reconcile.Persistent, time.Minute, "nosuch"
		}), syscall.ENOENT},
		{"zero a missing service", nil, op{Kind: reconcile.Zero, Service: svc}, syscall.ESRCH},
		{"stop a missing sync daemon", nil, op{Kind: reconcile.StopDaemon, Daemon: &reconcile.SyncDaemon{Role: reconcile.SyncMaster}}, syscall.ESRCH},
		{"sync daemon on a missing interface", nil, op{Kind: reconcile.StartDaemon, Daemon: &reconcile.SyncDaemon{Role: reconcile.SyncMaster, Interface: link}}, syscall.ENODEV},
		{"sync daemon of another role", made, op{Kind: reconcile.StartDaemon, Daemon: &reconcile.SyncDaemon{Role: 7, Interface: link}}, syscall.EINVAL},
		{"sync daemon to a unicast address", made, op{Kind: reconcile.StartDaemon, Daemon: &reconcile.SyncDaemon{
			Role: reconcile.SyncMaster, Interface: link, Group: vip4.Addr(),
		}}, syscall.EINVAL},
		{"negative timeout", nil, op{Kind: reconcile.SetTimeouts, Timeouts: &reconcile.Timeouts{UDP: -time.Second}}, syscall.EINVAL},

		{"missing setting", nil, op{Kind: reconcile.SetSysctl, Name: "net/ipv4/nosuch", Value: "1"}, syscall.ENOENT},
	}
}

// Contract runs the suite. newKernel gives a kernel without services, and
// without an interface named "kerneltest"; it may be the same each time if the
// suite's own objects are gone again, which the suite sees to.
func Contract(t *testing.T, newKernel func(t *testing.T) reconcile.Kernel) {
	run := func(name string, f func(*testing.T, *subject)) {
		t.Run(name, func(t *testing.T) {
			s := &subject{t, newKernel(t)}
			t.Cleanup(s.clear)
			f(t, s)
		})
	}
	t.Run("answers", func(t *testing.T) {
		for _, r := range rows() {
			t.Run(r.name, func(t *testing.T) {
				s := &subject{t, newKernel(t)}
				t.Cleanup(s.clear)
				s.do(r.setup...)
				err := s.k.Do(t.Context(), []op{r.op})[0]
				if r.want == 0 && err != nil || r.want != 0 && !errors.Is(err, r.want) {
					t.Errorf("%s: got %v, want %v", r.op, err, r.want)
				}
			})
		}
	})
	run("empty", testEmpty)
	run("services read back", testReadBack)
	run("edits in place", testEdits)
	run("batches", testBatches)
	run("canceled", testCanceled)
	run("fingerprint", testFingerprint)
	run("links", testLinks)
	run("settings", testSettings)
	run("timeouts", testTimeouts)
	run("sync daemons", testDaemons)
	run("zero", testZero)
	run("chains", testChains)
}

// subject is the kernel under test.
type subject struct {
	t *testing.T
	k reconcile.Kernel
}

func (s *subject) do(ops ...op) {
	s.t.Helper()
	for i, err := range s.k.Do(s.t.Context(), ops) {
		s.t.Fatalf("%s: %v", ops[i], err)
	}
}

func (s *subject) services() []reconcile.ServiceState {
	s.t.Helper()
	list, err := s.k.Services(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return Sorted(list)
}

func (s *subject) link() (reconcile.Link, bool) {
	s.t.Helper()
	links, err := s.k.Links(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(links, func(l reconcile.Link) bool { return l.Name == link })
	if i < 0 {
		return reconcile.Link{}, false
	}
	return links[i], true
}

// clear removes what the suite made.
func (s *subject) clear() {
	ctx := context.Background()
	list, err := s.k.Services(ctx)
	if err != nil {
		s.t.Error(err)
	}
	for _, v := range list {
		s.k.Do(ctx, []op{{Kind: delService, Service: v.Service}})
	}
	s.k.Do(ctx, []op{{Kind: reconcile.DelLink, Link: link}})
}

// Sorted sorts services and their destinations by key, in place, for comparison.
func Sorted(list []reconcile.ServiceState) []reconcile.ServiceState {
	slices.SortFunc(list, func(a, b reconcile.ServiceState) int { return a.Key.Compare(b.Key) })
	for i := range list {
		slices.SortFunc(list[i].Destinations, func(a, b reconcile.DestinationState) int { return a.AddrPort().Compare(b.AddrPort()) })
	}
	return list
}

func testEmpty(t *testing.T, s *subject) {
	if list := s.services(); len(list) != 0 {
		t.Errorf("services %v", list)
	}
	if _, err := s.k.Service(t.Context(), tcp(vip4).Key); !errors.Is(err, syscall.ESRCH) || !reconcile.IsMissing(err) {
		t.Errorf("a missing service: %v", err)
	}
	s.do(op{Kind: addService, Service: tcp(vip4)})
	got, err := s.k.Service(t.Context(), tcp(vip4).Key)
	if err != nil || len(got.Destinations) != 0 {
		t.Errorf("a service without destinations: %+v, %v", got, err)
	}
}

func testReadBack(t *testing.T, s *subject) {
	all := []reconcile.ServiceState{
		{Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, vip4), Scheduler: "wrr"}},
		{Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.UDP, vip4), Scheduler: "sh", Flags: reconcile.OnePacket | reconcile.Sched1 | reconcile.Sched2}},
		{Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.SCTP, vip4), Scheduler: "mh", Flags: reconcile.Sched1}},
		{Service: reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, vip6), Scheduler: "rr", Flags: reconcile.Persistent, Timeout: 90 * time.Second, Prefix: 64}},
		{Service: reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv4, 7), Scheduler: "lc", Flags: reconcile.Persistent, Timeout: 300 * time.Second, Prefix: 24}},
		{Service: reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv6, 7), Scheduler: "sed", Flags: reconcile.Sched3}},
		{Service: reconcile.Service{
			Key: reconcile.AddrKey(reconcile.UDP, vip6), Scheduler: "wlc", Flags: reconcile.Persistent, Timeout: time.Minute, Engine: "sip",
		}},
	}
	for i := range all {
		v := &all[i]
		ds := []dest{to("10.1.0.1:8080"), edit(to("10.1.0.2:80"), func(d *dest) { d.Forwarding = reconcile.DR; d.Weight = 0; d.Upper, d.Lower = 9, 4 })}
		if v.Family == reconcile.IPv6 {
			ds = []dest{to("[2001:db8:1::1]:8080"), edit(to("10.1.0.9:80"), func(d *dest) { d.Forwarding = reconcile.Tunnel })}
		}
		s.do(op{Kind: addService, Service: v.Service})
		for _, d := range ds {
			s.do(op{Kind: addDest, Service: v.Service, Dest: d})
			v.Destinations = append(v.Destinations, reconcile.DestinationState{Destination: d})
		}
		v.Service = v.Service.Normal()
	}
	want := Sorted(all)
	if got := s.services(); !reflect.DeepEqual(got, want) {
		t.Errorf("all services:\n got %+v\nwant %+v", got, want)
	}
	for _, w := range want {
		got, err := s.k.Service(t.Context(), w.Key)
		if err != nil || !reflect.DeepEqual(Sorted([]reconcile.ServiceState{got})[0], w) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", w.Key, err, got, w)
		}
	}
	s.do(op{Kind: delService, Service: want[0].Service}, op{Kind: addService, Service: want[0].Service})
	if got, err := s.k.Service(t.Context(), want[0].Key); err != nil || len(got.Destinations) != 0 {
		t.Errorf("a service that was deleted and made again has %v, %v", got.Destinations, err)
	}
}

func testEdits(t *testing.T, s *subject) {
	v, d := tcp(vip4), to("10.1.0.1:80")
	s.do(op{Kind: addService, Service: v}, op{Kind: addDest, Service: v, Dest: d})
	v.Scheduler, v.Flags, v.Timeout, v.Prefix = "sh", reconcile.Persistent|reconcile.Sched2, time.Minute, 24
	v.Engine = "sip"
	d.Forwarding, d.Weight, d.Upper, d.Lower = reconcile.Tunnel, 7, 20, 10
	d.Encap, d.EncapPort = reconcile.GUE, 6080
	s.do(op{Kind: setService, Service: v}, op{Kind: setDest, Service: v, Dest: d})
	want := []reconcile.ServiceState{{Service: v, Destinations: []reconcile.DestinationState{{Destination: d}}}}
	if got := s.services(); !reflect.DeepEqual(got, want) {
		t.Errorf("after an edit:\n got %+v\nwant %+v", got, want)
	}
	back := tcp(vip4)
	s.do(op{Kind: setService, Service: back}, op{Kind: setDest, Service: back, Dest: to("10.1.0.1:80")})
	want = []reconcile.ServiceState{{Service: back.Normal(), Destinations: []reconcile.DestinationState{{Destination: to("10.1.0.1:80")}}}}
	if got := s.services(); !reflect.DeepEqual(got, want) {
		t.Errorf("after the way back:\n got %+v\nwant %+v", got, want)
	}
}

// Each error belongs to its own operation, also across many batches, and does
// not stop the later ones.
func testBatches(t *testing.T, s *subject) {
	v := tcp(vip4)
	ops := []op{{Kind: addService, Service: v}}
	want := map[int]syscall.Errno{}
	n := 0
	for i := range 300 {
		d := dest{Addr: netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), Port: 80, Weight: 1}
		if d.Addr.As4()[3] == 255 {
			d.Addr = netip.AddrFrom4([4]byte{10, 3, 0, 1})
		}
		switch {
		case i%7 == 3:
			want[len(ops)] = syscall.ENOENT
			ops = append(ops, op{Kind: delDest, Service: v, Dest: d})
		case i%11 == 5:
			want[len(ops)] = syscall.ERANGE
			ops = append(ops, op{Kind: addDest, Service: v, Dest: edit(d, func(d *dest) { d.Weight = 1 << 31 })})
		default:
			n++
			ops = append(ops, op{Kind: addDest, Service: v, Dest: d})
		}
	}
	got := s.k.Do(t.Context(), ops)
	if len(got) != len(want) {
		t.Errorf("%d operations failed, want %d: %v", len(got), len(want), got)
	}
	for i, errno := range want {
		if !errors.Is(got[i], errno) {
			t.Errorf("%s: got %v, want %v", ops[i], got[i], errno)
		}
	}
	if list := s.services(); len(list) != 1 || len(list[0].Destinations) != n {
		t.Errorf("not all of %d destinations are there", n)
	}
	var same []op
	for range 70 {
		same = append(same, op{Kind: addService, Service: v})
	}
	if got := s.k.Do(t.Context(), same); len(got) != len(same) {
		t.Errorf("%d of %d failed", len(got), len(same))
	}
}

func testCanceled(t *testing.T, s *subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errs := s.k.Do(ctx, []op{{Kind: addService, Service: tcp(vip4)}, {Kind: reconcile.AddLink, Link: link}})
	if len(errs) != 2 || !errors.Is(errs[0], context.Canceled) || !errors.Is(errs[1], context.Canceled) {
		t.Errorf("errors %v", errs)
	}
	if len(s.services()) != 0 {
		t.Error("it was done all the same")
	}
	if _, ok := s.link(); ok {
		t.Error("the link was made all the same")
	}
}

func testFingerprint(t *testing.T, s *subject) {
	seen := map[uint64]string{}
	check := func(what string) {
		t.Helper()
		list := s.services()
		got, err := s.k.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := reconcile.Fingerprint(list); got != want {
			t.Errorf("%s: %x, and of the list %x", what, got, want)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s: the same as %s", what, other)
		}
		seen[got] = what
	}
	v, v6 := tcp(vip4), tcp(vip6)
	m := reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv4, 9), Scheduler: "rr"}
	m6 := reconcile.Service{Key: reconcile.MarkKey(reconcile.IPv6, 10), Scheduler: "rr", Flags: reconcile.Persistent, Timeout: time.Minute, Prefix: 60}
	check("nothing")
	s.do(op{Kind: addService, Service: v})
	check("a service")
	s.do(op{Kind: addDest, Service: v, Dest: to("10.1.0.1:80")})
	check("a destination")
	s.do(op{Kind: setDest, Service: v, Dest: edit(to("10.1.0.1:80"), func(d *dest) { d.Weight = 0 })})
	check("another weight")
	s.do(op{Kind: setDest, Service: v, Dest: edit(to("10.1.0.1:80"), func(d *dest) { d.Forwarding = reconcile.DR })})
	check("another forwarding")
	s.do(op{Kind: addService, Service: v6}, op{Kind: addDest, Service: v6, Dest: to("[2001:db8::5]:80")})
	check("IPv6")
	s.do(op{Kind: addDest, Service: v6, Dest: edit(to("10.1.0.1:80"), func(d *dest) { d.Forwarding = reconcile.Tunnel })})
	check("a tunnel")
	s.do(op{Kind: setService, Service: edit(v, func(s *reconcile.Service) { s.Scheduler = "rr" })})
	check("another scheduler")
	s.do(op{Kind: setService, Service: edit(v, func(s *reconcile.Service) {
		s.Flags, s.Timeout, s.Prefix = reconcile.Persistent, time.Minute, 20
	})})
	check("persistence")
	s.do(op{Kind: addService, Service: edit(v, func(s *reconcile.Service) { s.Protocol = reconcile.UDP; s.Flags = reconcile.OnePacket })})
	check("udp")
	s.do(op{Kind: addService, Service: m}, op{Kind: addService, Service: m6})
	check("marks")
	s.do(op{Kind: delService, Service: v})
	check("a deleted service")
}

func testLinks(t *testing.T, s *subject) {
	if _, ok := s.link(); ok {
		t.Fatal("the link exists already")
	}
	s.do(op{Kind: reconcile.AddLink, Link: link, Value: reconcile.Alias})
	l, ok := s.link()
	if !ok || l.Kind != "dummy" || l.Alias != reconcile.Alias || l.Up || len(l.Addresses) != 0 {
		t.Fatalf("a new link is %+v", l)
	}
	s.do(op{Kind: reconcile.LinkUp, Link: link})
	s.do(op{Kind: reconcile.LinkUp, Link: link})
	s.do(op{Kind: reconcile.SetAlias, Link: link, Value: "another"})
	s.do(
		op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr()},
		op{Kind: reconcile.AddAddress, Link: link, Addr: vip6.Addr()},
		op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr().Next()},
	)
	s.do(op{Kind: reconcile.DelAddress, Link: link, Addr: vip4.Addr()})
	l, _ = s.link()
	got := slices.DeleteFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	want := []netip.Prefix{netip.PrefixFrom(vip4.Addr().Next(), 32), netip.PrefixFrom(vip6.Addr(), 128)}
	if !l.Up || l.Alias != "another" || !slices.Equal(got, want) {
		t.Errorf("link %+v; want up, another, %v", l, want)
	}
	s.do(op{Kind: reconcile.DelLink, Link: link})
	if _, ok := s.link(); ok {
		t.Error("the link is still there")
	}
}

func testSettings(t *testing.T, s *subject) {
	for _, name := range []string{"net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/conntrack", "net/ipv4/vs/expire_quiescent_template", "net/ipv4/ip_forward"} {
		before, err := s.k.Sysctl(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{"1", "0", before} {
			s.do(op{Kind: reconcile.SetSysctl, Name: name, Value: v})
			if got, err := s.k.Sysctl(t.Context(), name); err != nil || got != v {
				t.Errorf("%s is %q, %v; want %q", name, got, err, v)
			}
		}
	}
	if _, err := s.k.Sysctl(t.Context(), "net/ipv4/nosuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing setting: %v", err)
	}
}

func testChains(t *testing.T, s *subject) {
	for _, f := range []reconcile.Family{reconcile.IPv4, reconcile.IPv6} {
		pinned, all := reconcile.Rule("-s 255.255.255.255/32 -j MASQUERADE"), reconcile.Rule("-m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE")
		one := reconcile.Rule("-s 192.0.2.10/32 -m ipvs --vproto 6 --vaddr 192.0.2.10/32 --vport 80 --vdir ORIGINAL --vmethod MASQ -j MASQUERADE")
		vip, rejected := "192.0.2.10/32", "icmp-port-unreachable"
		if f == reconcile.IPv6 {
			pinned = "-s ff00::/128 -j MASQUERADE"
			one = "-s 2001:db8::/64 -m ipvs --vaddr 2001:db8::10/128 --vdir ORIGINAL --vmethod MASQ -j MASQUERADE"
			vip, rejected = "2001:db8::10/128", "icmp6-port-unreachable"
		}
		s.testChain(reconcile.ChainKey{Table: reconcile.NAT, Family: f}, [][]reconcile.Rule{
			{pinned, one, "-m addrtype --src-type LOCAL -m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE"},
			{pinned, "-m mark --mark 0x7 -m ipvs --vdir ORIGINAL --vmethod MASQ -j RETURN", all},
		})
		s.testChain(reconcile.ChainKey{Table: reconcile.Filter, Family: f}, [][]reconcile.Rule{
			{
				"-m mark --mark 0x7 -j RETURN",
				reconcile.Rule("-d " + vip + " -p sctp -j RETURN"),
				reconcile.Rule("-d " + vip + " -p tcp -m multiport --dports 80,443 -j RETURN"),
				reconcile.Rule("-d " + vip + " -p tcp -j REJECT --reject-with tcp-reset"),
				reconcile.Rule("-d " + vip + " -p udp -j REJECT --reject-with " + rejected),
				reconcile.Rule("-d " + vip + " -p sctp -j REJECT --reject-with " + rejected),
			},
			nil,
		})
	}
}

func (s *subject) testChain(key reconcile.ChainKey, contents [][]reconcile.Rule) {
	s.t.Helper()
	read := func() reconcile.Chain {
		s.t.Helper()
		c, err := s.k.Chain(s.t.Context(), key)
		if err != nil {
			s.t.Fatal(err)
		}
		return c
	}
	if c := read(); c.Exists || c.Jump || len(c.Rules) != 0 {
		s.t.Errorf("%s: before anything: %+v", key, c)
	}
	for _, rules := range contents {
		s.do(op{Kind: reconcile.SetChain, Chain: &reconcile.Chain{ChainKey: key, Rules: rules}})
		if c := read(); !c.Exists || !c.Jump || !slices.Equal(c.Rules, rules) {
			s.t.Errorf("%s: %+v; want %q", key, c, rules)
		}
	}
	for range 2 {
		s.do(op{Kind: reconcile.DelChain, Chain: &reconcile.Chain{ChainKey: key}})
		if c := read(); c.Exists || c.Jump {
			s.t.Errorf("%s: deleted, but %+v", key, c)
		}
	}
}

func (s *subject) ipvs() reconcile.IPVS {
	s.t.Helper()
	state, err := s.k.IPVS(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return state
}

func testTimeouts(t *testing.T, s *subject) {
	before := s.ipvs()
	if before.Version == "" || before.TableSize == 0 || before.Timeouts.TCP == 0 || before.Timeouts.TCPFin == 0 || before.Timeouts.UDP == 0 {
		t.Errorf("before anything: %+v", before)
	}
	want := reconcile.Timeouts{TCP: 100 * time.Second, TCPFin: 30 * time.Second, UDP: 20 * time.Second}
	s.do(op{Kind: reconcile.SetTimeouts, Timeouts: &want})
	if got := s.ipvs().Timeouts; got != want {
		t.Errorf("timeouts %v, want %v", got, want)
	}
	want.UDP = time.Minute
	s.do(op{Kind: reconcile.SetTimeouts, Timeouts: &reconcile.Timeouts{UDP: time.Minute}})
	if got := s.ipvs().Timeouts; got != want {
		t.Errorf("after one was set: %v, want %v", got, want)
	}
	s.do(op{Kind: reconcile.SetTimeouts, Timeouts: &before.Timeouts})
}

func testDaemons(t *testing.T, s *subject) {
	if got := s.ipvs().Daemons; len(got) != 0 {
		t.Fatalf("daemons before anything: %v", got)
	}
	s.do(op{Kind: reconcile.AddLink, Link: link, Value: reconcile.Alias}, op{Kind: reconcile.LinkUp, Link: link},
		op{Kind: reconcile.AddAddress, Link: link, Addr: vip4.Addr()})
	master := reconcile.SyncDaemon{Role: reconcile.SyncMaster, Interface: link, ID: 3}
	backup := reconcile.SyncDaemon{
		Role: reconcile.SyncBackup, Interface: link, ID: 4,
		Group: netip.MustParseAddr("239.1.2.3"), Port: 9000, TTL: 5, MaxLen: 1100,
	}
	s.do(op{Kind: reconcile.StartDaemon, Daemon: &master}, op{Kind: reconcile.StartDaemon, Daemon: &backup})
	got := s.ipvs().Daemons
	master.Group, master.Port, master.TTL, master.MaxLen = netip.MustParseAddr("224.0.0.81"), 8848, 1, 1472
	if want := []reconcile.SyncDaemon{master, backup}; !slices.Equal(got, want) {
		t.Errorf("daemons %v, want %v", got, want)
	}
	if err := s.k.Do(t.Context(), []op{{Kind: reconcile.StartDaemon, Daemon: &master}})[0]; !errors.Is(err, syscall.EEXIST) {
		t.Errorf("a second master: %v", err)
	}
	s.do(op{Kind: reconcile.StopDaemon, Daemon: &master})
	if got := s.ipvs().Daemons; !slices.Equal(got, []reconcile.SyncDaemon{backup}) {
		t.Errorf("after the master was stopped: %v", got)
	}
	s.do(op{Kind: reconcile.StopDaemon, Daemon: &backup})
}

func testZero(t *testing.T, s *subject) {
	s.do(op{Kind: addService, Service: tcp(vip4)}, op{Kind: addDest, Service: tcp(vip4), Dest: to("10.1.0.1:80")})
	s.do(op{Kind: reconcile.Zero, Service: tcp(vip4)}, op{Kind: reconcile.Zero})
	got := s.services()
	if got[0].Counters != (reconcile.Counters{}) || got[0].Destinations[0].Counters != (reconcile.Counters{}) {
		t.Errorf("counters %+v", got)
	}
}
