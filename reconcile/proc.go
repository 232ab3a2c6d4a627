package reconcile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
)

// procParser takes the fingerprint of /proc/net/ip_vs:
//
//	IP Virtual Server version 1.2.1 (size=4096)
//	Prot LocalAddress:Port Scheduler Flags
//	  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
//	TCP  C000020A:0050 wlc persistent 300 FFFFFF00
//	  -> 0A010001:1F90      Masq    100    0          0
//	TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 rr
//	FWM  00000007 rr ops
type procParser struct {
	sum     uint64
	service uint64 // fingerprint of the service whose destinations follow
	lines   int
	err     error
}

// feed takes whole lines of data and moves the rest to the start of buf; it
// returns how much that is.
func (p *procParser) feed(data, buf []byte) int {
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			if len(data) == len(buf) && p.err == nil {
				p.err = errors.New("a line that does not end")
			}
			if p.err != nil {
				return 0
			}
			return copy(buf, data)
		}
		p.line(data[:i])
		data = data[i+1:]
	}
}

func (p *procParser) finish(err error) (uint64, error) {
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if p.err != nil {
		return 0, fmt.Errorf("/proc/net/ip_vs: %w", p.err)
	}
	return p.sum, nil
}

func (p *procParser) line(line []byte) {
	p.lines++
	if p.lines <= 3 || p.err != nil || len(line) == 0 {
		return
	}
	var err error
	if line[0] == ' ' {
		var d Destination
		if d, err = parseProcDestination(line); err == nil {
			p.sum += fingerprintDestination(p.service, d)
		}
	} else {
		var s Service
		var mask uint32
		if s, mask, err = parseProcService(line); err == nil {
			p.service = fingerprintListed(s, mask)
			p.sum += p.service
		}
	}
	if err != nil {
		p.err = fmt.Errorf("line %q: %w", line, err)
	}
}

func parseProcService(line []byte) (s Service, mask uint32, err error) {
	proto, line := word(line)
	where, line := word(line)
	switch string(proto) {
	case "FWM":
		mark, err := strconv.ParseUint(string(where), 16, 32)
		if err != nil {
			return s, 0, err
		}
		s.FWMark = uint32(mark)
	case "TCP":
		s.Protocol = TCP
	case "UDP":
		s.Protocol = UDP
	case "SCTP":
		s.Protocol = SCTP
	}
	if s.FWMark == 0 {
		a, err := parseProcAddr(where)
		if err != nil {
			return s, 0, err
		}
		s.Key = AddrKey(s.Protocol, a)
	}
	scheduler, line := word(line)
	s.Scheduler = string(scheduler)
	for len(line) > 0 {
		var w []byte
		if w, line = word(line); string(w) != "persistent" {
			continue
		}
		_, line = word(line) // the timeout, in ticks
		var text []byte
		text, line = word(line)
		m, err := strconv.ParseUint(string(text), 16, 32)
		if err != nil {
			return s, 0, err
		}
		s.Flags |= Persistent
		mask = uint32(m)
	}
	return s, mask, nil
}

func parseProcDestination(line []byte) (d Destination, err error) {
	arrow, line := word(line)
	where, line := word(line)
	forward, line := word(line)
	weight, _ := word(line)
	if string(arrow) != "->" {
		return d, errors.New("neither a service nor a destination")
	}
	a, err := parseProcAddr(where)
	if err != nil {
		return d, err
	}
	d.Addr, d.Port = a.Addr(), a.Port()
	switch string(forward) {
	case "Masq":
		d.Forwarding = Masq
	case "Local":
		d.Forwarding = Local
	case "Tunnel":
		d.Forwarding = Tunnel
	case "Route":
		d.Forwarding = DR
	case "Bypass":
		d.Forwarding = Bypass
	default:
		return d, errors.New("an unknown way of forwarding")
	}
	w, err := strconv.ParseInt(string(weight), 10, 64)
	d.Weight = uint32(w)
	return d, err
}

// parseProcAddr reads C000020A:0050 and [2001:0db8:...:0001]:0050.
func parseProcAddr(b []byte) (netip.AddrPort, error) {
	i := bytes.LastIndexByte(b, ':')
	if i < 0 || len(b)-i != 5 {
		return netip.AddrPort{}, errors.New("an address without a port")
	}
	var port [2]byte
	if _, err := hex.Decode(port[:], b[i+1:]); err != nil {
		return netip.AddrPort{}, err
	}
	var addr netip.Addr
	if host := b[:i]; len(host) == 8 {
		var v4 [4]byte
		if _, err := hex.Decode(v4[:], host); err != nil {
			return netip.AddrPort{}, err
		}
		addr = netip.AddrFrom4(v4)
	} else {
		if len(host) < 2 || host[0] != '[' || host[len(host)-1] != ']' {
			return netip.AddrPort{}, errors.New("not an address")
		}
		var err error
		if addr, err = netip.ParseAddr(string(host[1 : len(host)-1])); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port[:])), nil
}

func word(b []byte) (w, rest []byte) {
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		return b[:i], b[i:]
	}
	return b, nil
}
