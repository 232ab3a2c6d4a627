package formation

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// normalize brings an HTTP address of a server to the one spelling in which
// addresses are compared: host:port, the host in lower case or as the shortest
// form of its IP address, IPv6 in brackets. A scheme before it is dropped. Names
// are not resolved: two servers may see different answers.
func normalize(address string) (string, error) {
	s := strings.TrimSpace(address)
	if rest, ok := strings.CutPrefix(s, "http://"); ok {
		s = strings.TrimSuffix(rest, "/")
	} else if rest, ok := strings.CutPrefix(s, "https://"); ok {
		s = strings.TrimSuffix(rest, "/")
	}
	bad := func(reason string) (string, error) {
		return "", fmt.Errorf("address %q %s; it must be host:port, as in 192.0.2.1:8010 or [2001:db8::1]:8010", address, reason)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		var parse *net.AddrError
		if errors.As(err, &parse) {
			return bad("cannot be read: " + parse.Err)
		}
		return bad("cannot be read")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return bad("has no port between 1 and 65535")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip = ip.Unmap(); ip.IsUnspecified() || ip.IsMulticast() {
			return bad("is not one that others can reach")
		}
		host = ip.String()
	} else {
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		if host == "" || len(host) > 253 || host[0] == '.' || strings.Contains(host+".", "..") || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return bad("has no host name")
		}
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// normalizeList normalizes, sorts, and drops what is there twice.
func normalizeList(addresses []string) ([]string, error) {
	list := make([]string, 0, len(addresses))
	for _, a := range addresses {
		n, err := normalize(a)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// sameAddress compares addresses that come from others.
func sameAddress(a, b string) bool {
	if a == b {
		return true
	}
	na, errA := normalize(a)
	nb, errB := normalize(b)
	return errA == nil && errB == nil && na == nb
}
