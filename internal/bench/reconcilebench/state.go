package reconcilebench

import (
	"net/netip"

	"github.com/ipvskit/ipvskit/reconcile"
)

// state is n services with so many destinations each. No two VIPs are neighbors,
// so that none can share a rule.
func state(n, destinations int) reconcile.Desired {
	d := reconcile.Desired{Services: make([]reconcile.DesiredService, n)}
	for i := range d.Services {
		s := &d.Services[i]
		vip := netip.AddrFrom4([4]byte{10, byte(64 + i>>15), byte(i >> 7), byte(i << 1)})
		s.Service = reconcile.Service{Key: reconcile.AddrKey(reconcile.TCP, netip.AddrPortFrom(vip, 80)), Scheduler: "wlc"}
		s.Destinations = make([]reconcile.Destination, destinations)
		for j := range s.Destinations {
			s.Destinations[j] = reconcile.Destination{
				Addr: netip.AddrFrom4([4]byte{172, byte(16 + j), byte(i >> 8), byte(i)}), Port: 8080, Weight: 100,
			}
		}
	}
	return d
}

// reweighed is d with another weight for one destination of every nth service.
func reweighed(d reconcile.Desired, every int, weight uint32) reconcile.Desired {
	out := reconcile.Desired{Services: append([]reconcile.DesiredService(nil), d.Services...)}
	for i := 0; i < len(out.Services); i += every {
		out.Services[i] = reweigh(out.Services[i], weight)
	}
	return out
}

func reweigh(s reconcile.DesiredService, weight uint32) reconcile.DesiredService {
	s.Destinations = append([]reconcile.Destination(nil), s.Destinations...)
	s.Destinations[0].Weight = weight
	return s
}
