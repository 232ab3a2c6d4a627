package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// TCPConfig says how a TCP probe asks.
type TCPConfig struct {
	// Address and Port are asked instead of the target's, where they are set.
	Address netip.Addr
	Port    uint16

	// Full completes the handshake and closes the connection in order. By
	// default, on Linux, the connection is only half opened: the program that
	// listens never sees it. With TLS, Send or Expect it is always a full one.
	Full bool

	// TLS asks for a handshake once connected; the name that the certificate must
	// have is the address that is asked, unless ServerName says another.
	TLS *TLSConfig

	// Send is sent once connected. Expect must be found in what comes back;
	// empty: nothing is read.
	Send   []byte
	Expect Expect

	Via Via
}

// TCP is a probe that connects, and may make a TLS handshake or a short
// conversation. It is made by NewTCP.
type TCP struct {
	cfg  TCPConfig
	full bool
}

// NewTCP makes a TCP probe.
func NewTCP(cfg TCPConfig) (*TCP, error) {
	if err := cfg.Via.validate(); err != nil {
		return nil, fmt.Errorf("tcp probe: %w", err)
	}
	return &TCP{cfg: cfg, full: cfg.Full || cfg.TLS != nil || len(cfg.Send) > 0 || !cfg.Expect.any()}, nil
}

// Probe connects to target.
func (p *TCP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	target = at(target, p.cfg.Address, p.cfg.Port)
	conn, err := p.cfg.Via.tcp(ctx, target, !p.full)
	if err != nil {
		return failed(ctx, phaseConnect, "a TCP connection to "+target.String(), err)
	}
	defer conn.Close()
	if p.cfg.TLS == nil && len(p.cfg.Send) == 0 && p.cfg.Expect.any() {
		return healthcheck.Result{}
	}
	defer bind(ctx, conn)()
	if p.cfg.TLS == nil {
		return converse(ctx, conn, p.cfg.Send, p.cfg.Expect)
	}
	secure, err := p.cfg.TLS.handshake(ctx, conn, target.Addr().WithZone("").String())
	if err != nil {
		return failed(ctx, phaseTLS, "a TLS handshake with "+target.String(), err)
	}
	res := converse(ctx, secure, p.cfg.Send, p.cfg.Expect)
	if res.OK() {
		res.Warning = p.cfg.TLS.warning(secure)
		secure.Close() // tells the server before the connection is gone
	}
	return res
}

// converse sends and waits for what is expected.
func converse(ctx context.Context, conn net.Conn, send []byte, want Expect) healthcheck.Result {
	if len(send) > 0 {
		if _, err := conn.Write(send); err != nil {
			return failed(ctx, phaseRequest, "to send "+fmt.Sprint(len(send))+" bytes", err)
		}
	}
	if want.any() {
		return healthcheck.Result{}
	}
	return want.read(ctx, conn, phaseAnswer)
}
