package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// checkExposure refuses to open ports off loopback, or to trust servers there,
// without certificates, unless --insecure says so (INV-40).
func checkExposure(c config, args []string) error {
	if c.insecure || c.secured() {
		return nil
	}
	flag, address := exposed(c)
	if flag == "" {
		return nil
	}
	given := shellJoin(args)
	how := `Make a key once, copy it to every server by a safe way, and start each with it:

    ipvs-manager keygen --key_file cluster.key
    ipvs-manager ` + given + ` --key_file cluster.key`
	if c.role == roleAgent {
		how = fmt.Sprintf(`Make a credential for this director where the cluster's key is, copy it here by
a safe way, and start with it:

    ipvs-manager agent-cert --key_file cluster.key --name %s
    ipvs-manager %s --key_file %s.key`, c.agentName, given, c.agentName)
	}
	return fmt.Errorf(`--%s %s is not on loopback, and there is no key.

Without one traffic would be neither encrypted nor authenticated: whoever
reaches the ports could change the load balancer, and whoever can answer in a
server's place could tell an agent what to program. %s

Own certificates do instead: --tls_cert, --tls_key and --tls_ca. On a network
that you trust, say that you want neither:

    ipvs-manager %s --insecure`, flag, address, how, given)
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
