package statebench

import (
	"fmt"
	"net/netip"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	backends = 10  // of each service
	batch    = 500 // services that one transaction loads
	watchers = 10_000
)

// service is the i-th service; its backends have the weight.
func service(i, weight int) lbstate.Service {
	s := lbstate.Service{
		Name: fmt.Sprintf("service-%05d", i), VIP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Port: 80,
		Labels: map[string]string{"team": fmt.Sprintf("team-%d", i%50)}, HealthCheck: &lbstate.HealthCheck{Type: "tcp"},
	}
	for b := range backends {
		s.Backends = append(s.Backends, lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(b + 1)}), Port: 8080, Weight: &weight})
	}
	return s
}
