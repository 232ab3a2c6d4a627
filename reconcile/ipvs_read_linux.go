package reconcile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reading is done by messages of our own: cloudflare/ipvs does not know the
// persistence engine and sync daemons, and takes several times as long.

const (
	cmdGetService, cmdGetDest                = 4, 8
	cmdNewDaemon, cmdDelDaemon, cmdGetDaemon = 9, 10, 11
	cmdZero                                  = 16

	attrDaemon = 3

	svcEngine, svcStats64             = 11, 12
	dstActive, dstInactive, dstSticky = 7, 8, 9
	dstStats64                        = 12

	daemonState, daemonInterface, daemonID       = 1, 2, 3
	daemonMaxLen, daemonGroup, daemonGroup6      = 4, 5, 6
	daemonPort, daemonTTL                        = 7, 8
	statConns, statPacketsIn, statPacketsOut     = 1, 2, 3
	statBytesIn, statBytesOut                    = 4, 5
	rateConns, ratePacketsIn, ratePacketsOut     = 6, 7, 8
	rateBytesIn, rateBytesOut                    = 9, 10
	genlHeader                               int = 4
)

func genl(b []byte, cmd byte) []byte { return append(b, cmd, 1, 0, 0) }

func (c *ipvsConn) list(ctx context.Context) ([]ServiceState, error) {
	out := []ServiceState{}
	err := c.batch.dump(c.family, genl(nil, cmdGetService), func(m []byte) error {
		s, err := decodeServiceMessage(m)
		out = append(out, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.readDestinations(&out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *ipvsConn) get(k Key) (ServiceState, error) {
	var s ServiceState
	request := putNested(genl(nil, cmdGetService), attrService, func(b []byte) []byte {
		return putService(b, Service{Key: k}, false)
	})
	err := c.batch.ask(c.family, request, func(m []byte) (err error) {
		s, err = decodeServiceMessage(m)
		return err
	})
	if err != nil {
		return ServiceState{}, err
	}
	return s, c.readDestinations(&s)
}

func (c *ipvsConn) readDestinations(s *ServiceState) error {
	request := putNested(genl(nil, cmdGetDest), attrService, func(b []byte) []byte {
		return putService(b, Service{Key: s.Key}, false)
	})
	err := c.batch.dump(c.family, request, func(m []byte) error {
		d, err := decodeDestinationMessage(m, s.Family)
		s.Destinations = append(s.Destinations, d)
		return err
	})
	if err != nil {
		return fmt.Errorf("destinations of %s: %w", s.Key, err)
	}
	return nil
}

func (c *ipvsConn) daemons() ([]SyncDaemon, error) {
	var out []SyncDaemon
	err := c.batch.dump(c.family, genl(nil, cmdGetDaemon), func(m []byte) error {
		d, err := decodeDaemonMessage(m)
		out = append(out, d)
		return err
	})
	slices.SortFunc(out, func(a, b SyncDaemon) int { return int(a.Role) - int(b.Role) })
	return out, err
}

func (c *ipvsConn) state() (IPVS, error) {
	info, err := c.client.Info()
	if err != nil {
		return IPVS{}, fmt.Errorf("read IPVS's version: %w", err)
	}
	timeouts, err := c.client.Config()
	if err != nil {
		return IPVS{}, fmt.Errorf("read IPVS's timeouts: %w", err)
	}
	daemons, err := c.daemons()
	if err != nil {
		return IPVS{}, fmt.Errorf("list the sync daemons: %w", err)
	}
	seconds := func(n uint32) time.Duration { return time.Duration(n) * time.Second }
	return IPVS{
		Version:   fmt.Sprintf("%d.%d.%d", info.Version[0], info.Version[1], info.Version[2]),
		TableSize: info.ConnectionTableSize,
		Timeouts:  Timeouts{seconds(timeouts.TCPTimeout), seconds(timeouts.TCPFinTimeout), seconds(timeouts.UDPTimeout)},
		Daemons:   daemons,
	}, nil
}

var errDamaged = errors.New("netlink: a damaged answer")

// attributes calls f for each attribute of b.
func attributes(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return errDamaged
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size]); err != nil {
			return err
		}
		b = b[min(len(b), align4(size)):]
	}
	return nil
}

// nested finds the attribute of a message that holds what it is about.
func nested(m []byte, typ uint16, f func(typ uint16, v []byte) error) error {
	if len(m) < genlHeader {
		return errDamaged
	}
	return attributes(m[genlHeader:], func(t uint16, v []byte) error {
		if t != typ {
			return nil
		}
		return attributes(v, f)
	})
}

// number reads an unsigned number of the host's order, of whatever size.
func number(v []byte) uint64 {
	switch len(v) {
	case 1:
		return uint64(v[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(v))
	case 4:
		return uint64(binary.NativeEndian.Uint32(v))
	case 8:
		return binary.NativeEndian.Uint64(v)
	}
	return 0
}

func port(v []byte) uint16 {
	if len(v) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

func text(v []byte) string {
	s, _, _ := strings.Cut(string(v), "\x00")
	return s
}

// address reads the kernel's union of addresses, by the family.
func address(v []byte, f Family) netip.Addr {
	switch {
	case f == IPv4 && len(v) >= 4:
		return netip.AddrFrom4([4]byte(v[:4]))
	case f == IPv6 && len(v) >= 16:
		return netip.AddrFrom16([16]byte(v[:16]))
	}
	return netip.Addr{}
}

func family(v []byte) Family {
	switch number(v) {
	case unix.AF_INET:
		return IPv4
	case unix.AF_INET6:
		return IPv6
	}
	return 0
}

func decodeServiceMessage(m []byte) (ServiceState, error) {
	var s ServiceState
	var at, mask []byte
	err := nested(m, attrService, func(typ uint16, v []byte) error {
		switch typ {
		case svcFamily:
			s.Family = family(v)
		case svcProtocol:
			s.Protocol = Protocol(number(v))
		case svcAddr:
			at = v
		case svcPort:
			s.Port = port(v)
		case svcMark:
			s.FWMark = uint32(number(v))
		case svcScheduler:
			s.Scheduler = text(v)
		case svcEngine:
			s.Engine = text(v)
		case svcFlags:
			if len(v) < 4 {
				return errDamaged
			}
			s.Flags = Flags(binary.NativeEndian.Uint32(v))
		case svcTimeout:
			s.Timeout = time.Duration(number(v)) * time.Second
		case svcNetmask:
			mask = v
		case svcStats64:
			return decodeCounters(v, &s.Counters)
		}
		return nil
	})
	if err != nil || len(mask) < 4 {
		return s, errors.Join(err, lacking(mask, 4))
	}
	if s.Family == IPv6 {
		s.Prefix = int(binary.NativeEndian.Uint32(mask))
	} else {
		for m := binary.BigEndian.Uint32(mask); m&(1<<31) != 0; m <<= 1 {
			s.Prefix++
		}
	}
	if s.FWMark == 0 {
		s.Addr = address(at, s.Family)
	} else {
		s.Protocol, s.Port = 0, 0
	}
	if s.Flags&Persistent == 0 {
		s.Timeout = 0 // the kernel keeps what was given, without a use for it
	}
	s.Service = s.Service.Normal()
	return s, nil
}

func lacking(v []byte, n int) error {
	if len(v) < n {
		return errDamaged
	}
	return nil
}

// decodeDestinationMessage needs the service's family for kernels that do not
// tell the destination's.
func decodeDestinationMessage(m []byte, f Family) (DestinationState, error) {
	var d DestinationState
	var at []byte
	err := nested(m, attrDest, func(typ uint16, v []byte) error {
		switch typ {
		case dstFamily:
			f = family(v)
		case dstAddr:
			at = v
		case dstPort:
			d.Port = port(v)
		case dstForwarding:
			d.Forwarding = Forwarding(number(v) & 7)
		case dstWeight:
			d.Weight = uint32(number(v))
		case dstUpper:
			d.Upper = uint32(number(v))
		case dstLower:
			d.Lower = uint32(number(v))
		case dstActive:
			d.Active = uint32(number(v))
		case dstInactive:
			d.Inactive = uint32(number(v))
		case dstSticky:
			d.Persistent = uint32(number(v))
		case dstEncap:
			d.Encap = Encapsulation(number(v))
		case dstEncapPort:
			d.EncapPort = port(v)
		case dstEncapFlags:
			d.EncapFlags = TunnelFlags(number(v))
		case dstStats64:
			return decodeCounters(v, &d.Counters)
		}
		return nil
	})
	d.Addr = address(at, f)
	if err == nil && !d.Addr.IsValid() {
		err = errDamaged
	}
	d.Destination = d.Destination.Normal()
	return d, err
}

func decodeCounters(b []byte, c *Counters) error {
	fields := [...]*uint64{
		statConns: &c.Connections, statPacketsIn: &c.PacketsIn, statPacketsOut: &c.PacketsOut,
		statBytesIn: &c.BytesIn, statBytesOut: &c.BytesOut,
		rateConns: &c.ConnectionRate, ratePacketsIn: &c.PacketRateIn, ratePacketsOut: &c.PacketRateOut,
		rateBytesIn: &c.ByteRateIn, rateBytesOut: &c.ByteRateOut,
	}
	return attributes(b, func(typ uint16, v []byte) error {
		if int(typ) < len(fields) && fields[typ] != nil {
			*fields[typ] = number(v)
		}
		return nil
	})
}

func decodeDaemonMessage(m []byte) (SyncDaemon, error) {
	var d SyncDaemon
	err := nested(m, attrDaemon, func(typ uint16, v []byte) error {
		switch typ {
		case daemonState:
			d.Role = SyncRole(number(v))
		case daemonInterface:
			d.Interface = text(v)
		case daemonID:
			d.ID = uint8(number(v))
		case daemonMaxLen:
			d.MaxLen = uint16(number(v))
		case daemonGroup:
			d.Group = address(v, IPv4)
		case daemonGroup6:
			d.Group = address(v, IPv6)
		case daemonPort:
			d.Port = uint16(number(v)) // in the host's order, unlike a service's
		case daemonTTL:
			d.TTL = uint8(number(v))
		}
		return nil
	})
	return d, err
}

func putDaemon(b []byte, d SyncDaemon) []byte {
	b = putAttr32(b, daemonState, uint32(d.Role))
	b = putAttr(b, daemonInterface, append([]byte(d.Interface), 0)...)
	b = putAttr32(b, daemonID, uint32(d.ID))
	if d.MaxLen != 0 {
		b = putAttr16(b, daemonMaxLen, d.MaxLen)
	}
	switch FamilyOf(d.Group) {
	case IPv4:
		b = putAttr(b, daemonGroup, d.Group.Unmap().AsSlice()...)
	case IPv6:
		b = putAttr(b, daemonGroup6, d.Group.AsSlice()...)
	}
	if d.Port != 0 {
		b = putAttr16(b, daemonPort, d.Port)
	}
	if d.TTL != 0 {
		b = putAttr(b, daemonTTL, d.TTL)
	}
	return b
}
