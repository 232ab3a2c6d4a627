package probe

import (
	"net/netip"
	"testing"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// A source that cannot reach the target's family is this host's fault, by
// whatever way it asks.
func TestSourceOfAnotherFamily(t *testing.T) {
	at := nobody(t)
	via := Via{Source: netip.MustParseAddr("::1")}
	url := "http://" + at.String() + "/"
	probes := map[string]healthcheck.Probe{
		"tcp":  newTCP(t, TCPConfig{Via: via}),
		"udp":  newUDP(t, UDPConfig{Via: via}),
		"http": newHTTP(t, HTTPConfig{Path: "/", Via: via}),
		"url":  newHTTP(t, HTTPConfig{URL: url, Via: via}),
		"dns":  newDNS(t, DNSConfig{Name: "a.example", Via: via}),
		"smtp": newSMTP(t, SMTPConfig{Via: via}),
		"grpc": newGRPC(t, GRPCConfig{Via: via}),
	}
	if icmp, err := NewICMP(ICMPConfig{Via: via}); err == nil {
		probes["icmp"] = icmp
	} else if canPing {
		t.Error(err)
	}
	for name, p := range probes {
		t.Run(name, func(t *testing.T) {
			ask(t, p, at, outcome{class: healthcheck.Local, phase: "connect"})
		})
	}
}
