package reconcile

import (
	"encoding/binary"
	"net/netip"
)

// Fingerprint is what Kernel.Fingerprint gives for these services: a sum over
// services and destinations of what the kernel's cheap listing shows of each.
// It does not depend on any order. The listing does not tell the family of a
// firewall mark, scheduler flags, thresholds and tunnel options, and gives the
// timeout of persistence in ticks of unknown length, so these are left out.
func Fingerprint(services []ServiceState) uint64 {
	var sum uint64
	for i := range services {
		s := &services[i]
		h := fingerprintService(s.Service)
		sum += h
		for j := range s.Destinations {
			sum += fingerprintDestination(h, s.Destinations[j].Destination)
		}
	}
	return sum
}

// FNV-1a by words, and a last mixing step: sums of hashes must not cancel out.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func hashUint(h, v uint64) uint64 {
	h = (h ^ v) * fnvPrime
	return h ^ h>>29
}

func hashString(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}

func hashAddr(h uint64, a netip.AddrPort) uint64 {
	if a.Addr().IsValid() {
		b := a.Addr().Unmap().As16()
		h = hashUint(hashUint(h, binary.LittleEndian.Uint64(b[:])), binary.LittleEndian.Uint64(b[8:]))
	}
	return hashUint(h, uint64(a.Port()))
}

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return h
}

func fingerprintService(s Service) uint64 { return fingerprintListed(s, listedMask(s)) }

// listedMask is the netmask as the listing shows it: for IPv6 the prefix length,
// in the network's order of bytes.
func listedMask(s Service) uint32 {
	prefix := uint32(s.Normal().Prefix)
	if s.Family == IPv4 {
		return ^uint32(0) << (32 - min(32, prefix))
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], prefix)
	return binary.BigEndian.Uint32(b[:])
}

func fingerprintListed(s Service, mask uint32) uint64 {
	h := uint64(fnvOffset)
	if s.FWMark != 0 {
		h = hashUint(h, uint64(s.FWMark))
	} else {
		switch s.Protocol {
		case TCP, UDP, SCTP:
			h = hashUint(h, uint64(s.Protocol))
		default: // listed by names that need not be known here
			h = hashUint(h, 0)
		}
		h = hashAddr(h, netip.AddrPortFrom(s.Addr, s.Port))
	}
	h = hashString(h, s.Scheduler)
	if s.Flags&Persistent != 0 {
		h = hashUint(h, uint64(mask))
	}
	return mix(h)
}

func fingerprintDestination(service uint64, d Destination) uint64 {
	h := hashAddr(service, d.AddrPort())
	return mix(hashUint(hashUint(h, uint64(d.Forwarding)), uint64(d.Weight)))
}
