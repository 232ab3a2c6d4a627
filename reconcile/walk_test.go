package reconcile_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// memory is a journal that survives the Reconciler, and can fail.
type memory struct {
	doc  []byte
	fail error
}

func (m *memory) Load() ([]byte, error) { return m.doc, nil }

func (m *memory) Save(b []byte) error {
	if m.fail != nil {
		return m.fail
	}
	m.doc = bytes.Clone(b)
	return nil
}

// walk is one random history of a kernel, its reconciler and the others who
// change the kernel.
type walk struct {
	t       *rapid.T
	k       *fakekernel.Kernel
	journal *memory
	cfg     reconcile.Config
	r       *reconcile.Reconciler
	want    reconcile.Desired
	given   *reconcile.Desired // to r; nil: nothing yet
	foreign []reconcile.Key
}

var (
	ourVIPs   = []string{"192.0.2.10", "192.0.2.11", "2001:db8::10"}
	heldVIP   = "198.51.100.1" // another interface has it
	foreignIP = "203.0.113.1"  // nobody has it, someone balances it
)

func newWalk(t *rapid.T) *walk {
	w := &walk{t: t, k: fakekernel.New(), journal: new(memory)}
	w.k.Set("net/ipv4/vs/sync_retries", "0")
	w.k.SetLink(reconcile.Link{Name: "eth0", Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix(heldVIP + "/24")}})
	for _, line := range []string{
		"-A -t " + heldVIP + ":80 -s rr\n-a -t " + heldVIP + ":80 -r 10.9.0.1:80 -m -w 1",
		"-A -u " + foreignIP + ":53 -s rr\n-a -u " + foreignIP + ":53 -r 10.9.0.2:53 -m -w 1",
		"-A -f 1000 -s rr\n-a -f 1000 -r 10.9.0.3:80 -m -w 1",
	} {
		if err := w.k.Load(line); err != nil {
			t.Fatal(err)
		}
	}
	list, _ := w.k.Services(context.Background())
	for _, s := range list {
		w.foreign = append(w.foreign, s.Key)
	}
	w.cfg = reconcile.Config{
		Kernel: w.k, Journal: w.journal, Marks: reconcile.MarkRange{First: 1, Last: 99},
		DrainTimeout:  rapid.SampledFrom([]time.Duration{-1, time.Hour}).Draw(t, "drain timeout"),
		DrainServices: rapid.Bool().Draw(t, "drain services"),
		ReleaseVIPs:   rapid.Bool().Draw(t, "release VIPs"),
		ProtectVIPs:   rapid.Bool().Draw(t, "protect VIPs"),
	}
	if rapid.Bool().Draw(t, "leftovers") {
		// What an earlier life left: our interface with a VIP and services on it.
		w.k.SetLink(reconcile.Link{
			Name: "ipvs-manager", Kind: "dummy", Alias: reconcile.Alias,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")},
		})
		for _, s := range w.services("leftover") {
			if s.Addr.String() == "192.0.2.10" || s.FWMark != 0 {
				w.put(s)
			}
		}
	}
	w.restart()
	return w
}

func (w *walk) restart() {
	r, err := reconcile.New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.r, w.given = r, nil
}

// put makes a service in the kernel as another program would.
func (w *walk) put(s reconcile.DesiredService) {
	ops := []reconcile.Op{{Kind: reconcile.AddService, Service: s.Service}}
	for _, d := range s.Destinations {
		ops = append(ops, reconcile.Op{Kind: reconcile.AddDestination, Service: s.Service, Dest: d})
	}
	w.k.Do(context.Background(), ops)
}

func (w *walk) services(label string) []reconcile.DesiredService {
	var out []reconcile.DesiredService
	for i, vip := range append(slices.Clone(ourVIPs), "mark", heldVIP) {
		if !rapid.Bool().Draw(w.t, label+" "+vip) {
			continue
		}
		s := reconcile.DesiredService{Name: fmt.Sprint("s", i)}
		net := "10.1.0."
		switch vip {
		case "mark":
			s.Key = reconcile.MarkKey(reconcile.IPv4, 7)
		case heldVIP:
			s.Key = reconcile.AddrKey(reconcile.TCP, netip.AddrPortFrom(addr(vip), 8080))
		default:
			s.Key = reconcile.AddrKey(reconcile.TCP, netip.AddrPortFrom(addr(vip), 80))
			if s.Family == reconcile.IPv6 {
				net = "2001:db8:1::"
			}
		}
		s.Scheduler = rapid.SampledFrom([]string{"rr", "wlc", "mh"}).Draw(w.t, "scheduler")
		if rapid.Bool().Draw(w.t, "persistent") {
			s.Flags, s.Timeout = reconcile.Persistent, time.Minute
		}
		s.SNAT = reconcile.SNATMode(rapid.IntRange(0, 2).Draw(w.t, "snat"))
		for j := range 4 {
			if weight := rapid.IntRange(-2, 3).Draw(w.t, "weight"); weight >= 0 {
				s.Destinations = append(s.Destinations, reconcile.Destination{
					Addr: addr(fmt.Sprint(net, j+1)), Port: 80, Weight: uint32(weight * 50),
					Forwarding: rapid.SampledFrom([]reconcile.Forwarding{reconcile.Masq, reconcile.DR}).Draw(w.t, "forwarding"),
				})
			}
		}
		if s.Port != 80 && s.FWMark == 0 {
			for j := range s.Destinations {
				s.Destinations[j].Forwarding = reconcile.Masq
			}
		}
		out = append(out, s)
	}
	return out
}

// positive is which services have a destination that gets connections.
func positive(list []reconcile.ServiceState) map[reconcile.Key]bool {
	out := map[reconcile.Key]bool{}
	for _, s := range list {
		out[s.Key] = slices.ContainsFunc(s.Destinations, func(d reconcile.DestinationState) bool { return d.Weight > 0 })
	}
	return out
}

// sync reconciles under faults, with the process killed before some operation,
// and checks each operation on its way.
func (w *walk) sync() {
	faults := rapid.IntRange(0, 40).Draw(w.t, "faults in 100")
	killAt := rapid.IntRange(0, 30).Draw(w.t, "killed before operation")
	seed := rapid.Int().Draw(w.t, "seed of faults")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	list, _ := w.k.Services(ctx)
	before := positive(list)
	wanted := map[reconcile.Key]bool{}
	for _, s := range w.want.Services {
		wanted[s.Key] = slices.ContainsFunc(s.Destinations, func(d reconcile.Destination) bool { return d.Weight > 0 })
	}
	n := 0
	w.k.Inject(func(op reconcile.Op) error {
		n++
		seed = seed*6364136223846793005 + 1442695040888963407
		if n == killAt {
			cancel()
			return context.Canceled
		}
		if int(uint(seed)>>33)%100 < faults {
			return []error{syscall.ENOMEM, syscall.EINVAL, syscall.EPERM}[int(uint(seed)>>40)%3]
		}
		return nil
	})
	w.k.Watch(func(op reconcile.Op, err error) {
		if slices.Contains(w.foreign, op.Service.Key) {
			w.t.Fatalf("%s: not ours", op)
		}
		if err != nil || !before[op.Service.Key] || !wanted[op.Service.Key] {
			return
		}
		if s, err := w.k.Service(context.Background(), op.Service.Key); err != nil || !positive([]reconcile.ServiceState{s})[s.Key] {
			w.t.Fatalf("%s: leaves no destination with a weight: %v %v", op, s, err)
		}
	})
	if rapid.IntRange(0, 9).Draw(w.t, "journal fails") == 0 {
		w.journal.fail = syscall.EIO
	}
	_, err := w.bring(ctx)
	w.journal.fail = nil
	w.k.Inject(nil)
	w.k.Watch(nil)
	if err != nil {
		w.restart() // as a killed process would
	}
}

// bring gives the Reconciler what is wanted, as a whole or as a change.
func (w *walk) bring(ctx context.Context) (reconcile.Report, error) {
	if w.given == nil || !rapid.Bool().Draw(w.t, "as a change") {
		given := w.want
		w.given = &given
		return w.r.Sync(ctx, w.want)
	}
	c := reconcile.Change{Revision: w.want.Revision, Set: w.want.Services}
	for _, s := range w.given.Services {
		if !slices.ContainsFunc(w.want.Services, func(o reconcile.DesiredService) bool { return o.Key == s.Key }) {
			c.Removed = append(c.Removed, s.Key)
		}
	}
	given := w.want
	given.Timeouts, given.Daemons, given.Profile = w.given.Timeouts, w.given.Daemons, w.given.Profile // a Change has none
	w.want, w.given = given, &given
	return w.r.Update(ctx, c)
}

// others change things inside the scope and outside.
func (w *walk) others() {
	list, _ := w.k.Services(context.Background())
	for _, s := range list {
		if slices.Contains(w.foreign, s.Key) {
			continue
		}
		var ops []reconcile.Op
		switch rapid.IntRange(0, 7).Draw(w.t, "others") {
		case 0:
			ops = append(ops, reconcile.Op{Kind: reconcile.DelService, Service: s.Service})
		case 1:
			for _, d := range s.Destinations {
				ops = append(ops, reconcile.Op{Kind: reconcile.DelDestination, Service: s.Service, Dest: d.Destination})
			}
		case 2:
			for _, d := range s.Destinations {
				d.Weight++
				ops = append(ops, reconcile.Op{Kind: reconcile.SetDestination, Service: s.Service, Dest: d.Destination})
			}
		case 3:
			for _, d := range s.Destinations {
				_ = w.k.Connect(s.Key, d.AddrPort(), uint32(rapid.IntRange(0, 2).Draw(w.t, "connections")), 0)
			}
		case 4:
			if w.journal.doc == nil {
				break // nothing would tell any more that the leftovers are ours
			}
			ops = append(ops, reconcile.Op{Kind: reconcile.DelLink, Link: "ipvs-manager"})
		}
		w.k.Do(context.Background(), ops)
	}
}

// settle: without faults one sync converges, the next does nothing, and the
// kernel has exactly what is wanted, what drains, and what is someone else's.
func (w *walk) settle() {
	rep, err := w.r.Sync(context.Background(), w.want)
	if err != nil || !rep.Converged {
		w.t.Fatalf("without faults: %+v, %v", rep, err)
	}
	done := w.k.Operations()
	ops := operations(w.k)
	again, err := w.r.Sync(context.Background(), w.want)
	if err != nil || again.Operations != 0 || w.k.Operations() != done || !again.Converged {
		w.t.Fatalf("the second sync did %q: %+v, %v", *ops, again, err)
	}
	w.profiled(w.want.Profile)
	list, _ := w.k.Services(context.Background())
	want := map[reconcile.Key]reconcile.DesiredService{}
	for _, s := range w.want.Services {
		want[s.Key] = s
	}
	bound := map[netip.Addr]bool{}
	links, _ := w.k.Links(context.Background())
	for _, l := range links {
		for _, p := range l.Addresses {
			bound[p.Addr()] = true
		}
	}
	drains := 0
	foreign := map[reconcile.Key]bool{}
	for _, k := range w.foreign {
		foreign[k] = true
	}
	for _, s := range list {
		if foreign[s.Key] {
			delete(foreign, s.Key)
			continue
		}
		d, ok := want[s.Key]
		if ok && s.Service.Normal() != d.Service.Normal() {
			w.t.Fatalf("%v; want %v", s.Service, d.Service)
		}
		if !ok && !w.cfg.DrainServices {
			w.t.Fatalf("%v: nobody wants it", s)
		}
		delete(want, s.Key)
		wanted := map[netip.AddrPort]reconcile.Destination{}
		for _, x := range d.Destinations {
			wanted[x.AddrPort()] = x
		}
		for _, x := range s.Destinations {
			y, ok := wanted[x.AddrPort()]
			if !ok {
				drains++
				if x.Weight != 0 || x.Active+x.Inactive == 0 || w.cfg.DrainTimeout < 0 {
					w.t.Fatalf("%s -> %s: %v: nobody wants it", s.Key, x.AddrPort(), x)
				}
				continue
			}
			if x.Destination != y {
				w.t.Fatalf("%s -> %s: %v; want %v", s.Key, x.AddrPort(), x.Destination, y)
			}
			delete(wanted, x.AddrPort())
		}
		if len(wanted) > 0 {
			w.t.Fatalf("%s: missing %v", s.Key, wanted)
		}
		if s.FWMark == 0 && ok && !bound[s.Addr] {
			w.t.Fatalf("%s: its VIP is not bound", s.Key)
		}
	}
	if len(want) > 0 || len(foreign) > 0 {
		w.t.Fatalf("missing: ours %v, others' %v", slices.Collect(maps.Keys(want)), foreign)
	}
	if rep.Draining != drains {
		w.t.Fatalf("%d draining, reported %d", drains, rep.Draining)
	}
}

// From any state to any other, with faults, deaths and meddlers, the kernel
// converges; never are all weights 0 on the way; nothing of others is touched. A
// soak takes minutes: go test -run TestRandomWalks -rapid.checks=100000. INV-20,
// INV-21, INV-22, INV-25.
func TestRandomWalks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk(t)
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			w.want = reconcile.Desired{Services: w.services("want")}
			if rapid.Bool().Draw(t, "timeouts") {
				w.want.Timeouts.UDP = time.Duration(rapid.IntRange(1, 3).Draw(t, "udp")) * time.Minute
			}
			if rapid.Bool().Draw(t, "daemon") {
				w.want.Daemons = []reconcile.SyncDaemon{{Role: reconcile.SyncMaster, Interface: "eth0", ID: uint8(rapid.IntRange(0, 1).Draw(t, "ID"))}}
			}
			if rapid.Bool().Draw(t, "profile") {
				w.want.Profile = w.profile()
			}
			w.sync()
			if rapid.Bool().Draw(t, "meddle") {
				w.others()
			}
			if rapid.Bool().Draw(t, "restart") {
				w.restart()
			}
			if rapid.Bool().Draw(t, "settle") {
				w.settle()
			}
		}
		w.settle()
		if rapid.Bool().Draw(t, "clean up") {
			w.cleanup()
		}
	})
}

// profile is one that says something of all that the walk looks at.
func (w *walk) profile() *lbstate.DesiredProfile {
	p := &lbstate.DesiredProfile{
		Name: "edge", Revision: uint64(rapid.IntRange(1, 9).Draw(w.t, "profile's revision")),
		ReleaseVIPs: rapid.Bool().Draw(w.t, "profile releases"), DrainTimeout: time.Hour,
		SNAT: rapid.SampledFrom([]lbstate.SNATMode{"", lbstate.SNATAll, lbstate.SNATOff}).Draw(w.t, "profile's SNAT"),
	}
	if n := rapid.IntRange(0, 2).Draw(w.t, "profile's timeout"); n > 0 {
		p.Timeouts.TCP = lbstate.Duration(time.Duration(n) * time.Minute)
	}
	if n := rapid.IntRange(0, 2).Draw(w.t, "profile's setting"); n > 0 {
		p.Sysctls = map[string]string{"net.ipv4.vs.sync_retries": fmt.Sprint(n)}
	}
	return p
}

// profiled: the kernel is set up as the profile says, and as it was before where
// none says anything.
func (w *walk) profiled(p *lbstate.DesiredProfile) {
	tcp, entry := 15*time.Minute, "0"
	if p != nil && p.Timeouts.TCP != 0 {
		tcp = time.Duration(p.Timeouts.TCP)
	}
	if p != nil && p.Sysctls != nil {
		entry = p.Sysctls["net.ipv4.vs.sync_retries"]
	}
	state, _ := w.k.IPVS(context.Background())
	if value, _ := w.k.Sysctl(context.Background(), "net/ipv4/vs/sync_retries"); value != entry || state.Timeouts.TCP != tcp {
		w.t.Fatalf("sync_retries %s, want %s; tcp timeout %s, want %s; profile %+v", value, entry, state.Timeouts.TCP, tcp, p)
	}
}

// cleanup: nothing is left but what is someone else's.
func (w *walk) cleanup() {
	if rep, err := w.r.Cleanup(context.Background()); err != nil || !rep.Converged {
		w.t.Fatalf("cleanup: %+v, %v", rep, err)
	}
	list, _ := w.k.Services(context.Background())
	for _, s := range list {
		if !slices.Contains(w.foreign, s.Key) {
			w.t.Fatalf("left after a cleanup: %v", s)
		}
	}
	if len(list) != len(w.foreign) {
		w.t.Fatalf("a cleanup left %d services of others, not %d", len(list), len(w.foreign))
	}
	links, _ := w.k.Links(context.Background())
	for _, l := range links {
		if l.Alias == reconcile.Alias {
			w.t.Fatalf("left after a cleanup: %v", l)
		}
	}
	state, _ := w.k.IPVS(context.Background())
	if len(state.Daemons) > 0 {
		w.t.Fatalf("left after a cleanup: %v", state.Daemons)
	}
	w.profiled(nil)
}
