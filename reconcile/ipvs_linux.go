package reconcile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cloudflare/ipvs"
	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// ipvsConn asks for IPVS's settings through cloudflare/ipvs; services it reads and
// writes by messages of its own.
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
	if lack := lacks(unix.CAP_SYS_MODULE); err != nil && lack != nil {
		return nil, fmt.Errorf("this kernel has no IPVS, or its module is not loaded: %w: %w", err, lack)
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
	StartDaemon: cmdNewDaemon, StopDaemon: cmdDelDaemon, Zero: cmdZero,
}

// do carries out at most batchSize messages to IPVS.
func (c *ipvsConn) do(ops []Op, errs map[int]error, at int) {
	c.batch.do(len(ops), func(b []byte, i int) ([]byte, uint16, uint16) {
		op := &ops[i]
		b = genl(b, ipvsCommands[op.Kind])
		switch op.Kind {
		case StartDaemon, StopDaemon:
			return putNested(b, attrDaemon, func(b []byte) []byte { return putDaemon(b, *op.Daemon) }), c.family, 0
		case Zero:
			if op.Service.Key == (Key{}) {
				return b, c.family, 0
			}
		}
		full := op.Kind == AddService || op.Kind == SetService
		b = putNested(b, attrService, func(b []byte) []byte { return putService(b, op.Service, full) })
		if op.Kind >= AddDestination && op.Kind <= DelDestination {
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
	// Without the attribute the kernel takes an engine away.
	if s.Engine != "" {
		b = putAttr(b, svcEngine, append([]byte(s.Engine), 0)...)
	}
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

func (c *ipvsConn) setTimeouts(t Timeouts) error {
	return c.client.SetConfig(ipvs.Config{
		TCPTimeout: uint32(t.TCP / time.Second), TCPFinTimeout: uint32(t.TCPFin / time.Second), UDPTimeout: uint32(t.UDP / time.Second),
	})
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
