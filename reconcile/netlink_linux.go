package reconcile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// batchSize is how many messages go in one send. The kernel works on all of
// them before it returns; more gain nothing (docs/kernel.md).
const batchSize = 64

// batchConn sends batches of requests on a netlink socket of its own, and
// assigns the errors to the requests. A last, empty one alone asks to be
// acknowledged: the kernel answers the others only if they fail. (One whose work
// ends with EINTR it never answers, acknowledgement asked for or not:
// netlink_rcv_skb. The netlink package drops the sequence number of a failed
// request, so this reads the socket itself.)
type batchConn struct {
	mu  sync.Mutex
	fd  int    // guarded by mu; -1: closed
	seq uint32 // guarded by mu
	out []byte // guarded by mu
	in  []byte // guarded by mu
}

func openBatch(protocol int) (*batchConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &batchConn{fd: fd, in: make([]byte, 1<<16)}
	err = errors.Join(
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})),
		// An error without the request that it answers: a batch of failures fits
		// into the receive buffer.
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)),
		// The kernel answers before send returns; this is for the day when it does not.
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})),
	)
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *batchConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// do sends n requests in one message. put appends the i-th request's payload,
// behind its netlink header, and gives its type and flags. An error of put is
// that request's.
func (c *batchConn) do(n int, put func(b []byte, i int) (payload []byte, typ, flags uint16), errs map[int]error, at int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seq + 1
	b := c.out[:0]
	for i := range n {
		c.seq++
		start := len(b)
		b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
		var typ, flags uint16
		b, typ, flags = put(b, i)
		putHeader(b[start:], typ, flags|unix.NLM_F_REQUEST, c.seq)
	}
	c.seq++
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	putHeader(b[len(b)-unix.SizeofNlMsghdr:], unix.NLMSG_NOOP, unix.NLM_F_REQUEST|unix.NLM_F_ACK, c.seq)
	c.out = b
	fail := func(from int, err error) {
		for i := from; i < n; i++ {
			if errs[at+i] == nil {
				errs[at+i] = err
			}
		}
	}
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		fail(0, os.NewSyscallError("send", err))
		return
	}
	for {
		m, _, err := unix.Recvfrom(c.fd, c.in, 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			// Which of them were done is not known: they are read back.
			fail(0, os.NewSyscallError("receive", err))
			return
		}
		for in := c.in[:m]; len(in) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(in))
			typ := binary.NativeEndian.Uint16(in[4:])
			seq := binary.NativeEndian.Uint32(in[8:])
			if size < unix.SizeofNlMsghdr || size > len(in) {
				fail(0, errDamaged)
				return
			}
			i := int(int32(seq - first))
			if typ == unix.NLMSG_ERROR && size >= unix.SizeofNlMsghdr+4 && i >= 0 && i <= n {
				if i == n {
					return
				}
				if code := int32(binary.NativeEndian.Uint32(in[unix.SizeofNlMsghdr:])); code != 0 {
					errs[at+i] = syscall.Errno(-code)
				}
			}
			in = in[min(len(in), align4(size)):]
		}
	}
}

// dump asks for a list and calls each with the payload of every answer, which is
// only lent. After an error of each the rest of the list is read and dropped.
func (c *batchConn) dump(typ uint16, payload []byte, each func([]byte) error) error {
	return c.exchange(typ, unix.NLM_F_DUMP, payload, each)
}

// ask sends one request and calls each with the payload of its one answer.
func (c *batchConn) ask(typ uint16, payload []byte, each func([]byte) error) error {
	return c.exchange(typ, 0, payload, each)
}

func (c *batchConn) exchange(typ, flags uint16, payload []byte, each func([]byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	b := append(c.out[:0], make([]byte, unix.SizeofNlMsghdr)...)
	b = append(b, payload...)
	putHeader(b, typ, flags|unix.NLM_F_REQUEST, c.seq)
	c.out = b
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send", err)
	}
	var failed error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("receive", err)
		}
		for in := c.in[:n]; len(in) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(in))
			if size < unix.SizeofNlMsghdr || size > len(in) {
				return errDamaged
			}
			m, what, seq := in[unix.SizeofNlMsghdr:size], binary.NativeEndian.Uint16(in[4:]), binary.NativeEndian.Uint32(in[8:])
			in = in[min(len(in), align4(size)):]
			if seq != c.seq {
				continue
			}
			switch what {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if len(m) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m)); code < 0 {
						return syscall.Errno(-code)
					}
				}
				return failed
			}
			if failed == nil {
				failed = each(m)
			}
			if flags&unix.NLM_F_DUMP == 0 {
				return failed
			}
		}
	}
}

// putHeader fills in the netlink header at the start of a message.
func putHeader(b []byte, typ, flags uint16, seq uint32) {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
}

func align4(n int) int { return (n + 3) &^ 3 }

// putAttr appends a netlink attribute.
func putAttr(b []byte, typ uint16, data ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func putAttr16(b []byte, typ, v uint16) []byte {
	return putAttr(b, typ, binary.NativeEndian.AppendUint16(nil, v)...)
}

func putAttr32(b []byte, typ uint16, v uint32) []byte {
	return putAttr(b, typ, binary.NativeEndian.AppendUint32(nil, v)...)
}

func putAttrPort(b []byte, typ, port uint16) []byte {
	return putAttr(b, typ, byte(port>>8), byte(port))
}

// putNested appends an attribute of attributes, which put appends.
func putNested(b []byte, typ uint16, put func([]byte) []byte) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = put(b)
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	binary.NativeEndian.PutUint16(b[start+2:], typ|unix.NLA_F_NESTED)
	return b
}

func familyNumber(f Family) (uint16, error) {
	switch f {
	case IPv4:
		return unix.AF_INET, nil
	case IPv6:
		return unix.AF_INET6, nil
	}
	return 0, fmt.Errorf("%s: %w", f, syscall.EAFNOSUPPORT)
}
