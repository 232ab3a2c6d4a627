package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Via says how connections leave this host, so that a probe can take the path
// that a director's traffic takes. Its zero value leaves it to the kernel.
type Via struct {
	Source    netip.Addr // local address
	Interface string     // Linux: SO_BINDTODEVICE
	Mark      uint32     // Linux: SO_MARK; needs CAP_NET_ADMIN
}

func (v Via) validate() error {
	if (v.Interface != "" || v.Mark != 0) && !canBind {
		return fmt.Errorf("interface %q, mark %d: only Linux can bind a probe to them", v.Interface, v.Mark)
	}
	return nil
}

// dialer makes connections the way that Via says; halfOpen ones are not seen by
// the program that listens, where the operating system can do that.
func (v Via) dialer(halfOpen bool) net.Dialer {
	d := net.Dialer{KeepAlive: -1} // a probe's connection is too short for it
	if halfOpen || v.Interface != "" || v.Mark != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = v.set(int(fd), halfOpen) }); cerr != nil {
				return cerr
			}
			return err
		}
	}
	return d
}

// tcp connects to a numeric address.
func (v Via) tcp(ctx context.Context, target netip.AddrPort, halfOpen bool) (*net.TCPConn, error) {
	if err := v.suits(target); err != nil {
		return nil, err
	}
	d := v.dialer(halfOpen)
	return d.DialTCP(ctx, "tcp", v.local(), target)
}

// connect is tcp for those that need no more than a net.Conn.
func (v Via) connect(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	conn, err := v.tcp(ctx, target, false)
	if err != nil {
		return nil, err // not a nil *TCPConn in an interface
	}
	return conn, nil
}

// goResolver is Go's own: the C library's would hold a thread for each look-up,
// beyond the timeout too.
var goResolver = &net.Resolver{PreferGo: true}

// named connects to a host and port that are written out; a name is resolved.
func (v Via) named(ctx context.Context, address string) (net.Conn, error) {
	d := v.dialer(false)
	d.Resolver = goResolver
	if v.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(v.local())
	}
	conn, err := d.DialContext(ctx, "tcp", address)
	if v.Source.IsValid() && errors.As(err, new(*net.AddrError)) {
		err = localError{fmt.Errorf("no address of %s is of the family of source %v: %w", address, v.Source, err)}
	}
	return conn, err
}

func (v Via) local() netip.AddrPort {
	if !v.Source.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(v.Source, 0)
}

// at is target, with what a config says in place of parts of it.
func at(target netip.AddrPort, address netip.Addr, port uint16) netip.AddrPort {
	if address.IsValid() {
		target = netip.AddrPortFrom(address, target.Port())
	}
	if port != 0 {
		target = netip.AddrPortFrom(target.Addr(), port)
	}
	return target
}

// hostPort is target as a Host header has it. A zone is this host's own
// business (RFC 6874, section 4).
func hostPort(target netip.AddrPort) string {
	return netip.AddrPortFrom(target.Addr().WithZone(""), target.Port()).String()
}

// hostname is a host, or host and port, without the port.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// suits refuses a target that cannot be asked from here, whoever it is.
func (v Via) suits(target netip.AddrPort) error {
	if err := asked(target); err != nil {
		return err
	}
	return v.reaches(target.Addr())
}

func (v Via) reaches(addr netip.Addr) error {
	if v.Source.IsValid() && v.Source.Unmap().Is4() != addr.Unmap().Is4() {
		return localError{fmt.Errorf("source %v and target %v are of different families", v.Source, addr)}
	}
	return nil
}

// asked refuses what package net would take for this host itself.
func asked(target netip.AddrPort) error {
	if !target.Addr().IsValid() || target.Port() == 0 {
		return localError{fmt.Errorf("no address and port to ask: %v", target)}
	}
	return nil
}

// bind makes c end with ctx's deadline, and at once when ctx is canceled. The
// returned function undoes the second.
func bind(ctx context.Context, c interface{ SetDeadline(time.Time) error }) (release func() bool) {
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline) //nolint:errcheck // an error shows up at the next read
	}
	return context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // an error shows up at the next read
	})
}
