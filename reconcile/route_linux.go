package reconcile

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// routeConn reads interfaces through rtnetlink and binds addresses in batches.
type routeConn struct {
	mu    sync.Mutex // one request at a time on conn
	conn  *rtnetlink.Conn
	batch *batchConn
}

func openRoute() (*routeConn, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	batch, err := openBatch(unix.NETLINK_ROUTE)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	return &routeConn{conn: conn, batch: batch}, nil
}

func (c *routeConn) close() {
	c.conn.Close()
	c.batch.close()
}

func (c *routeConn) list() ([]Link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	links, err := c.conn.Link.List()
	if err != nil {
		return nil, err
	}
	out := make([]Link, 0, len(links))
	at := map[uint32]int{}
	for _, l := range links {
		if l.Attributes == nil {
			continue
		}
		at[l.Index] = len(out)
		link := Link{Name: l.Attributes.Name, Up: l.Flags&unix.IFF_UP != 0}
		if l.Attributes.Info != nil {
			link.Kind = l.Attributes.Info.Kind
		}
		if l.Attributes.Alias != nil {
			link.Alias = *l.Attributes.Alias
		}
		out = append(out, link)
	}
	err = c.batch.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(m []byte) error {
		index, prefix, err := decodeAddress(m)
		if i, ok := at[index]; ok && prefix.IsValid() {
			out[i].Addresses = append(out[i].Addresses, prefix)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		slices.SortFunc(out[i].Addresses, netip.Prefix.Compare)
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// decodeAddress reads a struct ifaddrmsg with its attributes.
func decodeAddress(m []byte) (index uint32, p netip.Prefix, err error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, p, errDamaged
	}
	f := family(m[:1])
	index = binary.NativeEndian.Uint32(m[4:])
	var local, addr netip.Addr
	err = attributes(m[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFA_LOCAL:
			local = address(v, f)
		case unix.IFA_ADDRESS:
			addr = address(v, f)
		}
		return nil
	})
	// On a point-to-point link IFA_LOCAL is this host's; IPv6 has only IFA_ADDRESS.
	if !local.IsValid() {
		local = addr
	}
	return index, netip.PrefixFrom(local, int(m[1])), err
}

func (c *routeConn) link(op Op) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if op.Kind == AddLink {
		err := c.conn.Link.New(&rtnetlink.LinkMessage{
			Attributes: &rtnetlink.LinkAttributes{Name: op.Link, Info: &rtnetlink.LinkInfo{Kind: "dummy"}},
		})
		if err != nil {
			return err
		}
	}
	index, err := c.index(op.Link)
	if err != nil {
		return err
	}
	switch op.Kind {
	case AddLink, SetAlias:
		// The kernel takes no alias in the message that makes a link. Without it,
		// and without addresses, the link is adopted the next time.
		return c.conn.Link.Set(&rtnetlink.LinkMessage{
			Index: index, Attributes: &rtnetlink.LinkAttributes{Alias: &op.Value},
		})
	case LinkUp:
		return c.conn.Link.Set(&rtnetlink.LinkMessage{Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
	case DelLink:
		return c.conn.Link.Delete(index)
	}
	return syscall.EOPNOTSUPP
}

// index is the link's number; ENODEV if there is none of the name.
func (c *routeConn) index(name string) (uint32, error) {
	links, err := c.conn.Link.List()
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		if l.Attributes != nil && l.Attributes.Name == name {
			return l.Index, nil
		}
	}
	return 0, syscall.ENODEV
}

// addresses carries out at most batchSize address operations on one link.
func (c *routeConn) addresses(ops []Op, errs map[int]error, at int) {
	c.mu.Lock()
	index, err := c.index(ops[0].Link)
	c.mu.Unlock()
	if err != nil {
		for i := range ops {
			errs[at+i] = err
		}
		return
	}
	c.batch.do(len(ops), func(b []byte, i int) ([]byte, uint16, uint16) {
		op := &ops[i]
		ip := net.IP(op.Addr.AsSlice())
		family, _ := familyNumber(FamilyOf(op.Addr))
		// Nobody else is asked whether he has the address: every director has it.
		var flags uint32
		if FamilyOf(op.Addr) == IPv6 {
			flags = unix.IFA_F_NODAD
		}
		b = append(b, byte(family), byte(op.Addr.BitLen()), byte(flags), unix.RT_SCOPE_UNIVERSE)
		b = binary.NativeEndian.AppendUint32(b, index)
		b = putAttr(b, unix.IFA_LOCAL, ip...)
		b = putAttr(b, unix.IFA_ADDRESS, ip...)
		if op.Kind == DelAddress {
			return b, unix.RTM_DELADDR, 0
		}
		b = putAttr32(b, unix.IFA_FLAGS, flags)
		return b, unix.RTM_NEWADDR, unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}, errs, at)
}
