package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// checkExposure refuses to open ports off loopback, or to trust servers there,
// unless --insecure says so: there is no access control yet.
func checkExposure(c config, args []string) error {
	if c.insecure {
		return nil
	}
	flag, address := exposed(c)
	if flag == "" {
		return nil
	}
	return fmt.Errorf(`--%s %s is not on loopback.

Traffic there is neither encrypted nor authenticated yet: whoever reaches the
ports can change the load balancer, and whoever can answer in a server's place
can tell an agent what to program. On a network that you trust, say so:

    ipvs-manager %s --insecure`, flag, address, shellJoin(args))
}

// exposed returns the first flag whose address is not on loopback.
func exposed(c config) (flag, address string) {
	type given struct {
		flag      string
		addresses []string
	}
	all := []given{{"grpc_address", c.grpcAddress}}
	if c.role != roleAgent {
		all = []given{{"adverties", []string{c.advertise}}, {"listen", []string{c.listen}}, {"cluster", c.cluster}}
	}
	for _, g := range all {
		for _, a := range g.addresses {
			if !isLoopback(a) {
				return g.flag, a
			}
		}
	}
	return "", ""
}

// isLoopback judges a host or host:port without asking a resolver, whose answer
// may change. A name other than localhost counts as elsewhere.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

func shellJoin(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[](){}<>|&;#~!") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
