package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// ICMPConfig says how an ICMP probe asks.
type ICMPConfig struct {
	// Address is asked instead of the target's, where it is set.
	Address netip.Addr
	// Size is how many bytes an echo request carries, 8 to 1400. Default 56.
	Size int
	Via  Via
}

// ICMP is a probe that sends an echo request (ping) and awaits the reply. On
// Linux it uses a ping socket where net.ipv4.ping_group_range allows that, a
// raw socket where CAP_NET_RAW does; with neither its results are inconclusive.
// It is made by NewICMP.
type ICMP struct{ cfg ICMPConfig }

// NewICMP makes an ICMP probe; an error where this operating system has none.
func NewICMP(cfg ICMPConfig) (*ICMP, error) {
	if cfg.Size == 0 {
		cfg.Size = 56
	}
	switch {
	case !canPing:
		return nil, fmt.Errorf("icmp probe: only Linux can")
	case cfg.Size < tokenSize || cfg.Size > 1400:
		return nil, fmt.Errorf("icmp probe: size is %d, want %d to 1400", cfg.Size, tokenSize)
	}
	if err := cfg.Via.validate(); err != nil {
		return nil, fmt.Errorf("icmp probe: %w", err)
	}
	return &ICMP{cfg: cfg}, nil
}

// Types of RFC 792 and RFC 4443.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// tokenSize is how many random bytes tell a probe's reply from others'.
const tokenSize = 8

// Probe pings target, whose port does not matter.
func (p *ICMP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	addr := at(target, p.cfg.Address, 0).Addr().Unmap()
	expected := "an echo reply from " + addr.String()
	if !addr.IsValid() {
		return failed(ctx, phaseConnect, expected, localError{fmt.Errorf("no address to ask: %v", target)})
	}
	conn, err := p.cfg.Via.icmp(addr)
	if err != nil {
		res := failed(ctx, phaseConnect, expected, err)
		if res.Class == healthcheck.Local {
			res.Advice = "widen net.ipv4.ping_group_range, or give this process CAP_NET_RAW; check this host's limits and addresses"
		}
		return res
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	data := make([]byte, p.cfg.Size)
	rand.Read(data[:tokenSize])
	if _, err := conn.Write(echoRequest(addr.Is6(), data)); err != nil {
		return failed(ctx, phaseRequest, expected, err)
	}
	in := make([]byte, 2048)
	for {
		n, err := conn.Read(in)
		if err != nil {
			return failed(ctx, phaseAnswer, expected, err)
		}
		if isEchoReply(addr.Is6(), in[:n], data) {
			return healthcheck.Result{}
		}
	}
}

// echoRequest is a message. The kernel fills in the identifier of a ping
// socket, and the checksum of IPv6.
func echoRequest(v6 bool, data []byte) []byte {
	m := append(make([]byte, 8, 8+len(data)), data...)
	m[0] = echoRequest4
	if v6 {
		m[0] = echoRequest6
	}
	copy(m[4:6], data) // identifier
	m[7] = 1           // sequence
	binary.BigEndian.PutUint16(m[2:], internetChecksum(m))
	return m
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// isEchoReply says whether a packet, with its IPv4 header or without, answers
// the request that carried data. A raw socket hears others' too.
func isEchoReply(v6 bool, packet, data []byte) bool {
	reply := byte(echoReply4)
	if v6 {
		reply = echoReply6
	} else if len(packet) >= 20 && packet[0]>>4 == 4 {
		header := int(packet[0]&0xf) * 4
		if header < 20 || len(packet) < header {
			return false
		}
		packet = packet[header:]
	}
	return len(packet) >= 8 && packet[0] == reply && packet[1] == 0 && bytes.Equal(packet[8:], data)
}
