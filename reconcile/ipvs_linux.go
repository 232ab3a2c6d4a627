package reconcile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cloudflare/ipvs"
	"github.com/cloudflare/ipvs/netmask"
	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// ipvsConn reads through cloudflare/ipvs and writes in batches of its own.
type ipvsConn struct {
	client ipvs.Client
	batch  *batchConn
	family uint16 // generic netlink's number of IPVS

	mu   sync.Mutex
	proc *os.File // guarded by mu; /proc/net/ip_vs of the namespace
	buf  []byte   // guarded by mu
}

// openIPVS opens IPVS in the namespace of the calling thread.
func openIPVS() (*ipvsConn, error) {
	g, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	defer g.Close()
	family, err := g.GetFamily("IPVS")
	if errors.Is(err, os.ErrNotExist) {
		modprobe("ip_vs")
		family, err = g.GetFamily("IPVS")
	}
	if err != nil {
		return nil, fmt.Errorf("this kernel has no IPVS: %w; as root: modprobe ip_vs (a container uses its host's kernel; "+
			"some small and cloud kernels leave it out, Debian's and Ubuntu's generic ones have it)", err)
	}
	c := &ipvsConn{family: family.ID}
	if c.client, err = ipvs.New(); err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	if c.batch, err = openBatch(unix.NETLINK_GENERIC); err != nil {
		c.close()
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	// The file keeps to the namespace in which it was opened, whichever thread
	// reads it. /proc/net would be that of the main thread.
	if c.proc, err = os.Open("/proc/thread-self/net/ip_vs"); err != nil {
		c.close()
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	return c, nil
}

func (c *ipvsConn) close() {
	if cl, ok := c.client.(interface{ Close() error }); ok {
		cl.Close()
	}
	if c.batch != nil {
		c.batch.close()
	}
	if c.proc != nil {
		c.proc.Close()
	}
}

func (c *ipvsConn) list(ctx context.Context) ([]ServiceState, error) {
	services, err := c.client.Services()
	if err != nil && !isEmpty(err) {
		return nil, err
	}
	out := make([]ServiceState, 0, len(services))
	for _, s := range services {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		state, err := c.withDestinations(s)
		if err != nil {
			return nil, err
		}
		out = append(out, state)
	}
	return out, nil
}

func (c *ipvsConn) get(k Key) (ServiceState, error) {
	in, err := kernelKey(k)
	if err != nil {
		return ServiceState{}, err
	}
	s, err := c.client.Service(in)
	if err != nil {
		return ServiceState{}, err
	}
	return c.withDestinations(s)
}

func (c *ipvsConn) withDestinations(s ipvs.ServiceExtended) (ServiceState, error) {
	out := ServiceState{Service: fromKernel(s.Service), Counters: countersOf(s.Stats64)}
	ds, err := c.client.Destinations(s.Service)
	if err != nil && !isEmpty(err) {
		return out, fmt.Errorf("destinations of %s: %w", out.Key, err)
	}
	for _, d := range ds {
		out.Destinations = append(out.Destinations, DestinationState{
			Destination: Destination{
				Addr: d.Address.Unmap(), Port: d.Port, Forwarding: Forwarding(d.FwdMethod), Weight: d.Weight,
				Upper: d.UpperThreshold, Lower: d.LowerThreshold,
				Encap: Encapsulation(d.TunnelType), EncapPort: d.TunnelPort, EncapFlags: TunnelFlags(d.TunnelFlags),
			}.Normal(),
			Active: d.ActiveConnections, Inactive: d.InactiveConnections, Persistent: d.PersistentConnections,
			Counters: countersOf(d.Stats64),
		})
	}
	return out, nil
}

// isEmpty tells the library's word for an empty list from the kernel's ENOENT,
// which errors.Is(err, os.ErrNotExist) takes for the same.
func isEmpty(err error) bool {
	var errno syscall.Errno
	return errors.Is(err, os.ErrNotExist) && !errors.As(err, &errno)
}

func kernelKey(k Key) (ipvs.Service, error) {
	s := ipvs.Service{Port: k.Port, FWMark: k.FWMark, Protocol: ipvs.Protocol(k.Protocol)}
	switch k.Family {
	case IPv4:
		s.Family, s.Netmask = ipvs.INET, netmask.MaskFrom(32, 32)
	case IPv6:
		s.Family, s.Netmask = ipvs.INET6, netmask.MaskFrom(128, 128)
	default:
		return s, fmt.Errorf("%s: %w", k.Family, syscall.EAFNOSUPPORT)
	}
	s.Address = k.Addr
	return s, nil
}

func fromKernel(s ipvs.Service) Service {
	out := Service{
		Key:       Key{Family: IPv4, Protocol: Protocol(s.Protocol), Port: s.Port, FWMark: s.FWMark},
		Scheduler: s.Scheduler, Flags: Flags(s.Flags), Timeout: time.Duration(s.Timeout) * time.Second,
		Prefix: s.Netmask.Bits(),
	}
	if s.Family == ipvs.INET6 {
		out.Family = IPv6
	}
	if s.FWMark == 0 {
		out.Addr = s.Address.Unmap()
	} else {
		out.Protocol, out.Port = 0, 0
	}
	if out.Flags&Persistent == 0 {
		out.Timeout = 0 // the kernel keeps what was given, without a use for it
	}
	return out.Normal()
}

func countersOf(s ipvs.Stats) Counters {
	return Counters{
		Connections: s.Connections, PacketsIn: s.IncomingPackets, PacketsOut: s.OutgoingPackets,
		BytesIn: s.IncomingBytes, BytesOut: s.OutgoingBytes,
		ConnectionRate: s.ConnectionRate, PacketRateIn: s.IncomingPacketRate, PacketRateOut: s.OutgoingPacketRate,
		ByteRateIn: s.IncomingByteRate, ByteRateOut: s.OutgoingByteRate,
	}
}

// Commands and attributes of linux/ip_vs.h.
const (
	cmdNewService, cmdSetService, cmdDelService = 1, 2, 3
	cmdNewDest, cmdSetDest, cmdDelDest          = 5, 6, 7

	attrService, attrDest = 1, 2

	svcFamily, svcProtocol, svcAddr, svcPort, svcMark = 1, 2, 3, 4, 5
	svcScheduler, svcFlags, svcTimeout, svcNetmask    = 6, 7, 8, 9
	dstAddr, dstPort, dstForwarding, dstWeight        = 1, 2, 3, 4
	dstUpper, dstLower                                = 5, 6
	dstFamily, dstEncap, dstEncapPort, dstEncapFlags  = 11, 13, 14, 15
)

var ipvsCommands = map[OpKind]byte{
	AddService: cmdNewService, SetService: cmdSetService, DelService: cmdDelService,
	AddDestination: cmdNewDest, SetDestination: cmdSetDest, DelDestination: cmdDelDest,
}

// do carries out at most batchSize service and destination operations.
func (c *ipvsConn) do(ops []Op, errs map[int]error, at int) {
	c.batch.do(len(ops), func(b []byte, i int) ([]byte, uint16, uint16) {
		op := &ops[i]
		b = append(b, ipvsCommands[op.Kind], 1, 0, 0) // generic netlink's header: command, version
		full := op.Kind == AddService || op.Kind == SetService
		b = putNested(b, attrService, func(b []byte) []byte { return putService(b, op.Service, full) })
		if op.Kind >= AddDestination {
			b = putNested(b, attrDest, func(b []byte) []byte { return putDestination(b, op.Dest) })
		}
		return b, c.family, 0
	}, errs, at)
}

func putService(b []byte, s Service, full bool) []byte {
	// A family that IPVS does not have goes as it is: the kernel says so.
	family, err := familyNumber(s.Family)
	if err != nil {
		family = uint16(s.Family)
	}
	b = putAttr16(b, svcFamily, family)
	if s.FWMark != 0 {
		b = putAttr32(b, svcMark, s.FWMark)
	} else {
		b = putAttr16(b, svcProtocol, uint16(s.Protocol))
		b = putAttr(b, svcAddr, s.Addr.AsSlice()...)
		b = putAttrPort(b, svcPort, s.Port)
	}
	if !full {
		return b
	}
	s = s.Normal()
	b = putAttr(b, svcScheduler, append([]byte(s.Scheduler), 0)...)
	// The flags, and which of them are given.
	flags := binary.NativeEndian.AppendUint32(nil, uint32(s.Flags))
	b = putAttr(b, svcFlags, append(flags, 0xff, 0xff, 0xff, 0xff)...)
	b = putAttr32(b, svcTimeout, uint32(s.Timeout/time.Second))
	if s.Family == IPv6 {
		return putAttr32(b, svcNetmask, uint32(s.Prefix))
	}
	var mask [4]byte
	binary.BigEndian.PutUint32(mask[:], ^uint32(0)<<(32-min(32, s.Prefix)))
	return putAttr(b, svcNetmask, mask[:]...)
}

func putDestination(b []byte, d Destination) []byte {
	family, _ := familyNumber(FamilyOf(d.Addr))
	b = putAttr16(b, dstFamily, family)
	b = putAttr(b, dstAddr, d.Addr.AsSlice()...)
	b = putAttrPort(b, dstPort, d.Port)
	b = putAttr32(b, dstForwarding, uint32(d.Forwarding))
	b = putAttr32(b, dstWeight, d.Weight)
	b = putAttr32(b, dstUpper, d.Upper)
	b = putAttr32(b, dstLower, d.Lower)
	b = putAttr(b, dstEncap, byte(d.Encap))
	b = putAttrPort(b, dstEncapPort, d.EncapPort)
	return putAttr16(b, dstEncapFlags, uint16(d.EncapFlags))
}

// fingerprint reads the kernel's text list: 14 times as fast as netlink.
func (c *ipvsConn) fingerprint() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.proc.Seek(0, 0); err != nil {
		return 0, err
	}
	if c.buf == nil {
		c.buf = make([]byte, 1<<17)
	}
	var p procParser
	held := 0
	for {
		n, err := c.proc.Read(c.buf[held:])
		if n > 0 {
			held = p.feed(c.buf[:held+n], c.buf)
		}
		if n == 0 || err != nil {
			return p.finish(err)
		}
	}
}
