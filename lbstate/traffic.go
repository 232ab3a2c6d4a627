package lbstate

import "net/netip"

// Traffic is what a kernel has counted for one service, or for one of its
// backends, since it was made there.
type Traffic struct {
	Service string
	Backend netip.AddrPort // zero: the service as a whole

	Connections, PacketsIn, PacketsOut, BytesIn, BytesOut uint64

	Active uint64 // connections established now
}
