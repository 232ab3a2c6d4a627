package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// greeting is what a server prints first: where everything is.
func greeting(cfg config, d *director, who *identity.Source) string {
	var b strings.Builder
	fmt.Fprintf(&b, "ipvs-manager %s · %s %q\n", version(), cfg.role, cfg.nodeID)
	scheme := "http"
	if who != nil {
		scheme = "https"
	}
	fmt.Fprintf(&b, "  page, API    %s://%s/\n", scheme, local(cfg, cfg.serverPort))
	fmt.Fprintf(&b, "  agents       %s (gRPC)\n", local(cfg, cfg.grpcPort))
	fmt.Fprintf(&b, "  raft         %s, announced as %s\n", cfg.listenAddress(cfg.raftPort()), cfg.advertise)
	fmt.Fprintf(&b, "  cluster      %s\n", strings.Join(cfg.cluster, ", "))
	fmt.Fprintf(&b, "  data         %s\n", cfg.volDir)
	b.WriteString(identified(who))
	if d != nil {
		b.WriteString(d.plane.describe(cfg))
	}
	return b.String()
}

// identified is who this process is to the others.
func identified(who *identity.Source) string {
	if who == nil {
		return "  identity     none: plain text\n"
	}
	return fmt.Sprintf("  identity     %v, certificate until %s\n", who.ID(), who.Expires().UTC().Format(time.RFC3339))
}

func (p plane) describe(cfg config) string {
	if p.simulated() {
		return "  data plane   SIMULATED: no packet is forwarded\n"
	}
	return fmt.Sprintf("  data plane   this kernel, VIPs on interface %s\n", cfg.tuning.dummyName)
}

// warn says at each start what people must know about it.
func warn(cfg config, log *zap.Logger, d *director) {
	if d != nil && d.plane.simulated() {
		log.Warn("the data plane is simulated. " + d.plane.notice)
	}
	if cfg.execChecks {
		log.Info("started with --allow_exec_checks: whoever may write services has programs run here", zap.String("directory", cfg.execDir))
	}
	if cfg.insecure {
		log.Warn("started with --insecure: traffic between servers, agents and browsers is neither encrypted nor authenticated; whoever reaches the ports controls the load balancer")
	}
}

// local is an address at which this host reaches one of its own ports.
func local(cfg config, port int) string {
	host := cfg.listen
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}
