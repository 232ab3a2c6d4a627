package lbchecks

import (
	"fmt"
	"regexp"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
	"github.com/ipvskit/ipvskit/lbstate"
)

// checkOf is a check of the state as the engine has it. lbstate has validated
// it; an error says that this program cannot do what a newer one accepted.
func checkOf(id string, c lbstate.ResolvedCheck, known lbstate.HealthState) (healthcheck.Check, error) {
	p, err := probeOf(c.Check)
	if err != nil {
		return healthcheck.Check{}, err
	}
	check := healthcheck.Check{
		ID: id, Target: c.Backend, Probe: p, Initial: toEngine(known),
		Interval: time.Duration(c.Check.Interval), DownInterval: time.Duration(c.Check.DownInterval),
		Timeout: time.Duration(c.Check.Timeout),
		Rise:    c.Check.Rise, Fall: c.Check.Fall,
	}
	return check, check.Validate()
}

func probeOf(c lbstate.HealthCheck) (healthcheck.Probe, error) {
	switch c.Type {
	case "tcp":
		return probe.NewTCP(probe.TCPConfig{Address: c.Address, Port: uint16(c.Port)})
	case "http":
		return httpProbe(c)
	}
	return nil, fmt.Errorf("type %q is not one that this program can run", c.Type)
}

func httpProbe(c lbstate.HealthCheck) (healthcheck.Probe, error) {
	cfg := probe.HTTPConfig{Path: c.Path, Port: uint16(c.Port), Host: c.Host, URL: c.URL}
	var err error
	if cfg.Status, err = probe.ParseStatus(c.ExpectStatus); err != nil {
		return nil, err
	}
	if c.ExpectBody != "" {
		if cfg.Body.Match, err = regexp.Compile(c.ExpectBody); err != nil {
			return nil, err
		}
	}
	return probe.NewHTTP(cfg)
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
