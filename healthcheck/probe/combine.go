package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// MaxParts is how many probes a combination may have.
const MaxParts = 16

// Part is a probe of a combination, with a name for its results.
type Part struct {
	Name  string
	Probe healthcheck.Probe
}

// Combined is a probe that asks in several ways at once, within one timeout. It
// is made by All or Any; combinations may be combined.
type Combined struct {
	parts []Part
	any   bool
}

// All succeeds when each part does. The first failure ends the others; when
// there is none, an inconclusive part makes the whole so.
func All(parts ...Part) (*Combined, error) { return combine(parts, false) }

// Any succeeds when one part does, which ends the others. When none does, an
// inconclusive part makes the whole so.
func Any(parts ...Part) (*Combined, error) { return combine(parts, true) }

func combine(parts []Part, either bool) (*Combined, error) {
	if len(parts) == 0 || len(parts) > MaxParts {
		return nil, fmt.Errorf("combined probe: %d parts, want 1 to %d", len(parts), MaxParts)
	}
	var faults []error
	seen := map[string]bool{}
	for i, p := range parts {
		if p.Name == "" || seen[p.Name] {
			faults = append(faults, fmt.Errorf("combined probe: part %d is called %q, want a name of its own", i, p.Name))
		}
		if p.Probe == nil {
			faults = append(faults, fmt.Errorf("combined probe: part %q has no probe", p.Name))
		}
		seen[p.Name] = true
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Combined{parts: append([]Part(nil), parts...), any: either}, nil
}

// Probe asks in all ways at once, and returns when each has ended.
func (p *Combined) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu      sync.Mutex // guards what follows
		decided bool
		verdict healthcheck.Result // of the part that decided
		fault   any
		running sync.WaitGroup
	)
	results := make([]healthcheck.Result, len(p.parts))
	for i, part := range p.parts {
		running.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					mu.Lock()
					fault = r
					mu.Unlock()
					cancel()
				}
			}()
			res := named(part.Name, part.Probe.Probe(within, target))
			mu.Lock()
			defer mu.Unlock()
			results[i] = res
			if !decided && res.Conclusive() && res.OK() == p.any {
				decided, verdict = true, res
				cancel()
			}
		})
	}
	running.Wait()
	if fault != nil {
		panic(fault) // the engine makes an inconclusive result of it
	}
	if decided {
		return verdict
	}
	return p.summary(results)
}

// named says in a result which part it is of.
func named(name string, res healthcheck.Result) healthcheck.Result {
	if !res.OK() {
		res.Phase = strings.TrimSuffix(name+": "+res.Phase, ": ")
	}
	if res.Warning != "" {
		res.Warning = name + ": " + res.Warning
	}
	return res
}

// summary is the result when no part decided: all succeeded, or all of any
// failed, or some were inconclusive.
func (p *Combined) summary(results []healthcheck.Result) healthcheck.Result {
	var warnings, found []string
	var inconclusive, worst *healthcheck.Result
	for i := range results {
		res := &results[i]
		switch {
		case !res.Conclusive():
			inconclusive = res
		case !res.OK() && worst == nil:
			worst = res
		}
		if res.Warning != "" {
			warnings = append(warnings, res.Warning)
		}
		found = append(found, p.parts[i].Name+": "+res.Found)
	}
	switch {
	case inconclusive != nil:
		return *inconclusive
	case worst == nil:
		return healthcheck.Result{Warning: strings.Join(warnings, "; ")}
	case len(results) == 1:
		return *worst
	}
	return healthcheck.Result{
		Class: worst.Class, Phase: worst.Phase, Expected: "one of " + fmt.Sprint(len(results)) + " probes to succeed",
		Found: quote(strings.Join(found, "; ")), Advice: worst.Advice,
	}
}
