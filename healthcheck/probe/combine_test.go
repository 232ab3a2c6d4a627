package probe

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// after gives a result after a while, or what a probe gives whose context ends.
func after(d time.Duration, res healthcheck.Result) healthcheck.Probe {
	return healthcheck.ProbeFunc(func(ctx context.Context, _ netip.AddrPort) healthcheck.Result {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return res
		case <-ctx.Done():
			return failed(ctx, phaseAnswer, "an answer", ctx.Err())
		}
	})
}

func TestCombined(t *testing.T) {
	const second = time.Second
	good := healthcheck.Result{}
	warned := healthcheck.Result{Warning: "ends soon"}
	bad := healthcheck.Result{Class: healthcheck.BadStatus, Phase: "answer", Found: "503"}
	refused := healthcheck.Result{Class: healthcheck.Refused, Phase: "connect", Found: "connection refused"}
	local := healthcheck.Result{Class: healthcheck.Local, Phase: "connect", Found: "no files"}
	type parts []healthcheck.Probe
	for _, tt := range []struct {
		name  string
		make  func(...Part) (*Combined, error)
		parts parts
		want  outcome
		takes time.Duration
	}{
		{"all succeed", All, parts{after(second, good), after(2*second, good)}, fine, 2 * second},
		{"all succeed with warnings", All, parts{after(0, warned), after(0, warned)}, outcome{warning: "a: ends soon; b: ends soon"}, 0},
		{"one fails, which ends the others", All, parts{after(time.Hour, good), after(second, bad)}, outcome{class: healthcheck.BadStatus, phase: "b: answer", found: "503"}, second},
		{"one is inconclusive", All, parts{after(0, local), after(second, good)}, outcome{class: healthcheck.Local, phase: "a: connect", found: "no files"}, second},
		{"a failure goes before what is inconclusive", All, parts{after(0, local), after(second, bad)}, outcome{class: healthcheck.BadStatus, phase: "b: answer"}, second},
		{"one runs into the timeout", All, parts{after(0, good), after(time.Hour, good)}, outcome{class: healthcheck.Timeout, phase: "b: answer"}, 10 * second},

		{"one of any succeeds, which ends the others", Any, parts{after(time.Hour, good), after(second, warned)}, outcome{warning: "b: ends soon"}, second},
		{"one of any succeeds after a failure", Any, parts{after(0, bad), after(second, good)}, fine, second},
		{"all of any fail", Any, parts{after(second, bad), after(0, refused)}, outcome{class: healthcheck.BadStatus, phase: "a: answer", expected: "one of 2", found: "a: 503; b: connection refused"}, second},
		{"the only one of any fails", Any, parts{after(0, refused)}, outcome{class: healthcheck.Refused, phase: "a: connect", found: "connection refused"}, 0},
		{"one of any is inconclusive", Any, parts{after(0, bad), after(0, local)}, outcome{class: healthcheck.Local, phase: "b: connect"}, 0},
		{"any runs into the timeout", Any, parts{after(0, refused), after(time.Hour, good)}, outcome{class: healthcheck.Refused, phase: "a: connect", found: "no answer"}, 10 * second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var named []Part
				for i, p := range tt.parts {
					named = append(named, Part{Name: string(rune('a' + i)), Probe: p})
				}
				p, err := tt.make(named...)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*second)
				defer cancel()
				began := time.Now()
				tt.want.check(t, p.Probe(ctx, netip.AddrPort{}))
				if took := time.Since(began); took != tt.takes {
					t.Errorf("it took %v, want %v", took, tt.takes)
				}
			})
		})
	}
}

// Combinations of combinations, and of real probes.
func TestCombinedOfReal(t *testing.T) {
	s := serve(t, say(okAnswer))
	inner, err := Any(Part{"dead", newTCP(t, TCPConfig{Port: nobody(t).Port()})}, Part{"live", newTCP(t, TCPConfig{})})
	if err != nil {
		t.Fatal(err)
	}
	p, err := All(Part{"port", inner}, Part{"web", newHTTP(t, HTTPConfig{Path: "/"})})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, p, s.addr, fine)
	ask(t, inner, nobody(t), outcome{class: healthcheck.Refused, phase: "dead: connect", found: "dead: connection refused; live: connection refused"})
}

func TestCombinedPanic(t *testing.T) {
	p, err := All(Part{"a", healthcheck.ProbeFunc(func(context.Context, netip.AddrPort) healthcheck.Result { panic("oh") })}, Part{"b", after(time.Hour, healthcheck.Result{})})
	if err != nil {
		t.Fatal(err)
	}
	res, err := healthcheck.Once(t.Context(), healthcheck.Check{ID: "x", Probe: p, Timeout: time.Hour})
	if err != nil || res.Class != healthcheck.Local || !strings.Contains(res.Found, "oh") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestCombinedFaults(t *testing.T) {
	ok := after(0, healthcheck.Result{})
	many := make([]Part, MaxParts+1)
	for i := range many {
		many[i] = Part{Name: string(rune('a' + i)), Probe: ok}
	}
	for _, parts := range [][]Part{nil, many, {{"", ok}}, {{"a", nil}}, {{"a", ok}, {"a", ok}}} {
		if _, err := All(parts...); err == nil {
			t.Errorf("%v was taken", parts)
		}
		if _, err := Any(parts...); err == nil {
			t.Errorf("%v was taken", parts)
		}
	}
}
