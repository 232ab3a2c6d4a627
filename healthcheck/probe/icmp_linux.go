package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

const canPing = true

// icmp makes a socket that hears addr alone: a ping socket, else a raw one.
func (v Via) icmp(addr netip.Addr) (*os.File, error) {
	family, proto := syscall.AF_INET, syscall.IPPROTO_ICMP
	if addr.Is6() {
		family, proto = syscall.AF_INET6, syscall.IPPROTO_ICMPV6
	}
	const flags = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|flags, proto)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		fd, err = syscall.Socket(family, syscall.SOCK_RAW|flags, proto)
	}
	if err != nil {
		return nil, localError{fmt.Errorf("open a socket for ICMP: %w", err)}
	}
	f := os.NewFile(uintptr(fd), "icmp "+addr.String())
	if err := v.aim(fd, addr); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (v Via) aim(fd int, addr netip.Addr) error {
	if err := v.reaches(addr); err != nil { // the kernel takes any family here
		return err
	}
	if err := v.set(fd, false); err != nil {
		return err
	}
	if v.Source.IsValid() {
		from, err := sockaddr(v.Source)
		if err == nil {
			err = syscall.Bind(fd, from)
		}
		if err != nil {
			return localError{fmt.Errorf("bind to %v: %w", v.Source, err)}
		}
	}
	to, err := sockaddr(addr)
	if err != nil {
		return localError{err}
	}
	if err := syscall.Connect(fd, to); err != nil {
		return fmt.Errorf("connect to %v: %w", addr, err)
	}
	return nil
}

func sockaddr(addr netip.Addr) (syscall.Sockaddr, error) {
	if addr.Is4() {
		return &syscall.SockaddrInet4{Addr: addr.As4()}, nil
	}
	sa := &syscall.SockaddrInet6{Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		i, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("zone %s: %w", zone, err)
		}
		sa.ZoneId = uint32(i.Index)
	}
	return sa, nil
}
