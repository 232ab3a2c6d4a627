package lbchecks

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
	"github.com/ipvskit/ipvskit/lbstate"
)

// maxRoots bounds how many sets of authorities a prober remembers.
const maxRoots = 64

// prober makes probes of checks, as far as this host allows them. Not safe for
// concurrent use.
type prober struct {
	execDir string                                               // of programs; empty: none may be run
	make    func(lbstate.HealthCheck) (healthcheck.Probe, error) // in place of probeOf, for tests
	roots   map[string]*x509.CertPool                            // by their PEM: many checks have the same
}

// checkOf is a check of the state as the engine has it. One that cannot be run
// here is one whose results are inconclusive, and say why.
func (p *prober) checkOf(id string, c lbstate.ResolvedCheck, known lbstate.HealthState) (healthcheck.Check, error) {
	makeProbe := p.probeOf
	if p.make != nil {
		makeProbe = p.make
	}
	asks, err := makeProbe(c.Check)
	if err != nil {
		asks = &unrunnable{err}
	}
	check := healthcheck.Check{
		ID: id, Target: c.Backend, Probe: asks, Initial: toEngine(known),
		Interval: time.Duration(c.Check.Interval), DownInterval: time.Duration(c.Check.DownInterval),
		Timeout: time.Duration(c.Check.Timeout),
		Rise:    c.Check.Rise, Fall: c.Check.Fall,
	}
	return check, check.Validate()
}

// unrunnable stands for a probe that this host cannot make. No target is
// blamed for it.
type unrunnable struct{ why error }

// Probe is inconclusive.
func (p *unrunnable) Probe(context.Context, netip.AddrPort) healthcheck.Result {
	res := healthcheck.Result{Class: healthcheck.Local, Phase: "preparation", Expected: "a check that this host can run", Found: p.why.Error()}
	if errors.Is(p.why, probe.ErrNotAllowed) {
		res.Advice = "allow programs (ipvs-manager: --allow_exec_checks) on every server that may lead, or use another type of check"
	}
	return res
}

// probeOf makes the probe of a check that lbstate has validated. An error says
// that this host or this program cannot ask so.
func (p *prober) probeOf(c lbstate.HealthCheck) (healthcheck.Probe, error) {
	port, via := uint16(c.Port), viaOf(c.Via)
	switch c.Type {
	case lbstate.CheckTypeTCP, lbstate.CheckTypeTLS:
		send, expect, err := conversation(c)
		if err != nil {
			return nil, err
		}
		cfg := probe.TCPConfig{Address: c.Address, Port: port, Full: c.Mode == lbstate.ModeFull, Send: send, Expect: expect, Via: via}
		if c.Type == lbstate.CheckTypeTLS {
			t, err := p.tlsOf(c.TLS)
			if err != nil {
				return nil, err
			}
			cfg.TLS = &t
		}
		return made(probe.NewTCP(cfg))
	case lbstate.CheckTypeHTTP, lbstate.CheckTypeHTTPS:
		return p.httpProbe(c, via)
	case lbstate.CheckTypeUDP:
		send, expect, err := conversation(c)
		if err != nil {
			return nil, err
		}
		return made(probe.NewUDP(probe.UDPConfig{Address: c.Address, Port: port, Send: send, Expect: expect, Quiet: time.Duration(c.Quiet), Via: via}))
	case lbstate.CheckTypeDNS:
		if c.DNS == nil {
			return nil, errors.New("a check of type dns without a name to ask for")
		}
		return made(probe.NewDNS(probe.DNSConfig{
			Address: c.Address, Port: port, Name: c.DNS.Name, Type: c.DNS.Type, TCP: c.DNS.TCP, NoRecursion: c.DNS.NoRecursion,
			Codes: c.DNS.ExpectCodes, Want: c.DNS.ExpectAddresses, Via: via,
		}))
	case lbstate.CheckTypeICMP:
		return made(probe.NewICMP(probe.ICMPConfig{Address: c.Address, Size: c.PacketSize, Via: via}))
	case lbstate.CheckTypeSMTP:
		cfg := probe.SMTPConfig{Address: c.Address, Port: port, Hello: c.Hello, Via: via}
		if c.TLS != nil {
			t, err := p.tlsOf(c.TLS)
			if err != nil {
				return nil, err
			}
			cfg.TLS, cfg.Implicit = &t, c.TLS.Implicit
		}
		return made(probe.NewSMTP(cfg))
	case lbstate.CheckTypeGRPC:
		cfg := probe.GRPCConfig{Address: c.Address, Port: port, Service: c.GRPCService, Host: c.Host, Via: via}
		if c.TLS != nil {
			t, err := p.tlsOf(c.TLS)
			if err != nil {
				return nil, err
			}
			cfg.TLS = &t
		}
		return made(probe.NewGRPC(cfg))
	case lbstate.CheckTypeExec:
		return p.execProbe(c)
	case lbstate.CheckTypeAll, lbstate.CheckTypeAny:
		return p.combined(c)
	}
	return nil, fmt.Errorf("type %q is not one that this program knows; it is older than the check", c.Type)
}

// made keeps a nil pointer out of the interface.
func made[P healthcheck.Probe](p P, err error) (healthcheck.Probe, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *prober) httpProbe(c lbstate.HealthCheck, via probe.Via) (healthcheck.Probe, error) {
	_, expect, err := conversation(c)
	if err != nil {
		return nil, err
	}
	cfg := probe.HTTPConfig{
		Path: c.Path, Address: c.Address, Port: uint16(c.Port), Host: c.Host, URL: c.URL, Version: c.HTTPVersion, Method: c.Method,
		Redirects: c.FollowRedirects, Body: expect, Via: via,
	}
	if c.Type == lbstate.CheckTypeHTTPS {
		cfg.Scheme = "https"
	}
	if cfg.TLS, err = p.tlsOf(c.TLS); err != nil {
		return nil, err
	}
	if cfg.Status, err = probe.ParseStatus(c.ExpectStatus); err != nil {
		return nil, err
	}
	if len(c.Headers) > 0 {
		cfg.Header = http.Header{}
		for name, value := range c.Headers {
			cfg.Header.Set(name, value)
		}
	}
	return made(probe.NewHTTP(cfg))
}

// execProbe runs a program of this host's own directory: what the state says is
// the name of a file in it, and nothing more.
func (p *prober) execProbe(c lbstate.HealthCheck) (healthcheck.Probe, error) {
	switch {
	case p.execDir == "":
		return nil, probe.ErrNotAllowed
	case c.Exec == nil || c.Exec.Program == "" || filepath.Base(c.Exec.Program) != c.Exec.Program || c.Exec.Program[0] == '.':
		return nil, errors.New("a check of type exec without the name of a program")
	}
	path := filepath.Join(p.execDir, c.Exec.Program)
	return made(probe.NewExec(probe.ExecConfig{Path: path, Args: c.Exec.Args, Allowed: []string{path}}))
}

// combined asks in several ways at once. A part that this host cannot run is
// inconclusive: what comes of that the others decide.
func (p *prober) combined(c lbstate.HealthCheck) (healthcheck.Probe, error) {
	parts := make([]probe.Part, len(c.Checks))
	for i, part := range c.Checks {
		asks, err := p.probeOf(part)
		if err != nil {
			asks = &unrunnable{err}
		}
		parts[i] = probe.Part{Name: fmt.Sprintf("checks[%d] %s", i, part.Type), Probe: asks}
	}
	if c.Type == lbstate.CheckTypeAny {
		return made(probe.Any(parts...))
	}
	return made(probe.All(parts...))
}

// conversation is what a check sends and expects.
func conversation(c lbstate.HealthCheck) (send []byte, expect probe.Expect, err error) {
	if send, err = lbstate.Unescape(c.Send); err != nil {
		return nil, expect, fmt.Errorf("send: %w", err)
	}
	wanted, err := lbstate.Unescape(c.Expect)
	if err != nil {
		return nil, expect, fmt.Errorf("expect: %w", err)
	}
	expect.Contains, expect.Limit = string(wanted), c.ExpectLimit
	if c.ExpectBody != "" {
		expect.Match, err = regexp.Compile(c.ExpectBody)
	}
	return send, expect, err
}

func viaOf(v *lbstate.CheckVia) probe.Via {
	if v == nil {
		return probe.Via{}
	}
	return probe.Via{Source: v.Source, Interface: v.Interface, Mark: v.Mark}
}

func (p *prober) tlsOf(t *lbstate.CheckTLS) (cfg probe.TLSConfig, err error) {
	if t == nil {
		return cfg, nil
	}
	cfg = probe.TLSConfig{ServerName: t.ServerName, SkipVerify: t.SkipVerify, WarnBefore: time.Duration(t.MinDays) * 24 * time.Hour}
	if t.CA == "" {
		return cfg, nil
	}
	pool := p.roots[t.CA]
	if pool == nil {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(t.CA)) {
			return cfg, errors.New("tls.ca has no certificate")
		}
		if p.roots == nil || len(p.roots) >= maxRoots { // what checks use they keep
			p.roots = map[string]*x509.CertPool{}
		}
		p.roots[t.CA] = pool
	}
	cfg.Roots = pool
	return cfg, nil
}

// name is what logs call a check. The hash tells apart those that ask the same
// backend in different ways; who shares one shares the check.
func name(c lbstate.ResolvedCheck) string {
	return fmt.Sprintf("%s %s %016x", c.Backend, c.Check.Type, c.Hash)
}

func toEngine(s lbstate.HealthState) healthcheck.State {
	switch s {
	case lbstate.Up:
		return healthcheck.Up
	case lbstate.Down:
		return healthcheck.Down
	}
	return healthcheck.Unknown
}

func fromEngine(s healthcheck.State) lbstate.HealthState {
	switch s {
	case healthcheck.Up:
		return lbstate.Up
	case healthcheck.Down:
		return lbstate.Down
	}
	return lbstate.Unknown
}
