package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// DefaultQuiet is how long a UDP probe waits for a refusal when it expects no
// answer.
const DefaultQuiet = 200 * time.Millisecond

// UDPConfig says how a UDP probe asks.
type UDPConfig struct {
	// Address and Port are asked instead of the target's, where they are set.
	Address netip.Addr
	Port    uint16

	// Send is the datagram that is sent; it may be empty, but it is sent.
	Send []byte
	// Expect must be met by the first datagram that comes back. When it is empty,
	// any answer is a success, and so is silence for Quiet (default
	// DefaultQuiet): all that is known then is that no ICMP error came back.
	Expect Expect
	Quiet  time.Duration

	Via Via
}

// UDP is a probe that sends one datagram. It is made by NewUDP.
type UDP struct{ cfg UDPConfig }

// NewUDP makes a UDP probe.
func NewUDP(cfg UDPConfig) (*UDP, error) {
	if cfg.Quiet == 0 {
		cfg.Quiet = DefaultQuiet
	}
	switch {
	case cfg.Quiet < 0:
		return nil, fmt.Errorf("udp probe: quiet is %v, want 0 or more", cfg.Quiet)
	case len(cfg.Send) > 65507:
		return nil, fmt.Errorf("udp probe: %d bytes to send, want at most 65507", len(cfg.Send))
	}
	if err := cfg.Via.validate(); err != nil {
		return nil, fmt.Errorf("udp probe: %w", err)
	}
	return &UDP{cfg: cfg}, nil
}

// Probe sends a datagram to target.
func (p *UDP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	target = at(target, p.cfg.Address, p.cfg.Port)
	expected := "no refusal by " + target.String()
	if !p.cfg.Expect.any() {
		expected = p.cfg.Expect.String()
	}
	conn, err := p.cfg.Via.udp(ctx, target)
	if err != nil {
		return failed(ctx, phaseConnect, expected, err)
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	if _, err := conn.Write(p.cfg.Send); err != nil {
		return failed(ctx, phaseRequest, expected, err)
	}
	quiet := false
	if p.cfg.Expect.any() {
		end := time.Now().Add(p.cfg.Quiet)
		if deadline, ok := ctx.Deadline(); !ok || end.Before(deadline) {
			quiet = true
			conn.SetReadDeadline(end) //nolint:errcheck // an error shows up at the next read
		}
	}
	answer := make([]byte, min(p.cfg.Expect.limit(), 65535)+1)
	n, err := conn.Read(answer)
	switch {
	case quiet && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
		return healthcheck.Result{}
	case err != nil:
		res := failed(ctx, phaseAnswer, expected, err)
		if res.Class == healthcheck.Timeout {
			res.Advice = "check that the service answers such a datagram, and that no firewall drops it"
		}
		return res
	case p.cfg.Expect.any():
		return healthcheck.Result{}
	}
	cut := n > p.cfg.Expect.limit()
	if answer = answer[:min(n, p.cfg.Expect.limit())]; !p.cfg.Expect.met(answer) {
		return p.cfg.Expect.unmet(answer, phaseAnswer, cut)
	}
	return healthcheck.Result{}
}

// udp makes a socket that hears target alone.
func (v Via) udp(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	if err := v.suits(target); err != nil {
		return nil, err
	}
	d := v.dialer(false)
	conn, err := d.DialUDP(ctx, "udp", v.local(), target)
	if err != nil {
		return nil, err // not a nil *UDPConn in an interface
	}
	return conn, nil
}
