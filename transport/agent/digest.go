package agent

// pairDigest is one service's share of a view's digest, which is the sum over
// all of its services (modulo 2^64), so it does not depend on their order and
// one change costs two additions. It finds differences, not forgeries: the
// connection's credentials are against those.
func pairDigest(name string, version uint64) uint64 {
	const (
		offset = 14695981039346656037 // FNV-1a, 64 bit
		prime  = 1099511628211
	)
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	// The finalizer of SplitMix64, so that neighboring versions differ in
	// every bit and sums do not cancel.
	h ^= version * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
