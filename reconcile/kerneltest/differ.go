package kerneltest

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

// Differ carries out n random operations on two kernels without services and
// fails where an answer or the state after it differs. The same seed makes the
// same operations.
func Differ(t *testing.T, a, b reconcile.Kernel, seed uint64, n int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d, %d operations", seed, n)
	for i := range n {
		o := randomOp(rng)
		errA, errB := a.Do(t.Context(), []op{o})[0], b.Do(t.Context(), []op{o})[0]
		if errno(errA) != errno(errB) {
			t.Fatalf("operation %d: %s: %v and %v", i, o, errA, errB)
		}
		if i%16 != 15 && i != n-1 {
			continue
		}
		listA, err := a.Services(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		listB, err := b.Services(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if listA, listB = Sorted(listA), Sorted(listB); !reflect.DeepEqual(listA, listB) {
			t.Fatalf("after operation %d (%s):\n%v\nand\n%v", i, o, listA, listB)
		}
	}
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return syscall.EIO
}

// randomOp draws from few keys, so that most meet something, and from values at
// and beyond the limits.
func randomOp(rng *rand.Rand) op {
	keys := []reconcile.Key{
		reconcile.AddrKey(reconcile.TCP, vip4), reconcile.AddrKey(reconcile.UDP, vip4),
		reconcile.AddrKey(reconcile.TCP, vip6), reconcile.MarkKey(reconcile.IPv4, 5), reconcile.MarkKey(reconcile.IPv6, 5),
	}
	s := reconcile.Service{
		Key:       keys[rng.IntN(len(keys))],
		Scheduler: []string{"rr", "wrr", "wlc", "sh", "mh", "dh", "lc", "nosuch", ""}[rng.IntN(9)],
		Flags:     reconcile.Flags(rng.IntN(4) * rng.IntN(2) * 8),
	}
	if rng.IntN(3) == 0 {
		s.Flags |= reconcile.Persistent
		s.Timeout = time.Duration(1+rng.IntN(1000)) * time.Second
		s.Prefix = rng.IntN(33)
		s.Engine = []string{"", "", "", "sip", "nosuch"}[rng.IntN(5)]
	}
	addrs := []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "2001:db8:1::1", "2001:db8:1::2", "0.0.0.0", "224.1.1.1", "fe80::1", "127.0.0.1"}
	d := dest{
		Addr: netip.MustParseAddr(addrs[rng.IntN(len(addrs))]), Port: uint16(80 + rng.IntN(2)),
		Forwarding: []reconcile.Forwarding{reconcile.Masq, reconcile.Masq, reconcile.DR, reconcile.Tunnel}[rng.IntN(4)],
		Weight:     []uint32{0, 1, 100, 65536, 1<<31 - 1, 1 << 31}[rng.IntN(6)],
	}
	if rng.IntN(3) == 0 {
		d.Upper, d.Lower = uint32(rng.IntN(4)), uint32(rng.IntN(4))
	}
	if d.Forwarding == reconcile.Tunnel {
		d.Encap = reconcile.Encapsulation(rng.IntN(3))
		if d.Encap == reconcile.GUE {
			d.EncapPort = uint16(rng.IntN(2) * 6080)
		}
		if d.Encap != reconcile.IPIP {
			d.EncapFlags = reconcile.TunnelFlags(rng.IntN(2))
		}
	}
	kinds := []reconcile.OpKind{addService, addService, setService, delService, addDest, addDest, addDest, addDest, setDest, setDest, delDest}
	return op{Kind: kinds[rng.IntN(len(kinds))], Service: s, Dest: d}
}
