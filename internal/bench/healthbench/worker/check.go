package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/probe"
	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

// tally counts between "begin" and "end".
type tally struct {
	mu    sync.Mutex // guards what follows
	found job.Found
	late  []time.Duration
}

func (m *tally) Probed(class healthcheck.Class, _, lateness time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch class {
	case healthcheck.OK:
		m.found.OK++
		m.late = append(m.late, lateness)
	case healthcheck.Local:
		m.found.Local++
	default:
		m.found.Failed++
		m.found.Classes[class.String()]++
	}
}

func (m *tally) Skipped(runs int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.found.Skipped += runs
}

func (m *tally) Transitioned(healthcheck.State, healthcheck.State) {}
func (m *tally) Reported(int, error)                               {}
func (m *tally) HoldChanged(bool)                                  {}

// Report counts falls of targets that answer.
func (m *tally) Report(_ context.Context, batch []healthcheck.Transition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range batch {
		if t.To == healthcheck.Down && !strings.HasPrefix(t.ID, "hole") {
			m.found.FalseDowns++
		}
	}
	return nil
}

func (m *tally) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.found = job.Found{Classes: map[string]int{}, FalseDowns: m.found.FalseDowns} // these count from the start
	m.late = m.late[:0]
}

func (m *tally) end() job.Found {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.found
	if len(m.late) > 0 {
		late := slices.Clone(m.late)
		slices.Sort(late)
		f.P50, f.P99, f.Max = late[len(late)/2], late[len(late)*99/100], late[len(late)-1]
	}
	return f
}

func probeOf(kind string) (healthcheck.Probe, error) {
	switch kind {
	case "tcp":
		return probe.NewTCP(probe.TCPConfig{})
	case "http", "https":
		return probe.NewHTTP(probe.HTTPConfig{Path: "/", Scheme: kind, TLS: probe.TLSConfig{SkipVerify: true}}) // keepalived does not verify
	}
	return nil, fmt.Errorf("no kind %q", kind)
}

// check runs the engine: it says "ready" when every target has been judged, and
// what it found between the lines "begin" and "end".
func check(j job.Job, in *bufio.Scanner) error {
	p, err := probeOf(j.Kind)
	if err != nil {
		return err
	}
	checks := make([]healthcheck.Check, j.Targets)
	for i := range checks {
		c := healthcheck.Check{
			ID: job.Name(i), Target: netip.AddrPortFrom(job.Address(i), j.Ports.Of(j.Kind)), Probe: p,
			Interval: job.Interval, Timeout: job.Timeout,
		}
		if i < j.Holes {
			c.ID = "hole " + c.ID
			c.Target = netip.AddrPortFrom(job.Address(i), j.Ports.Hole)
		}
		checks[i] = c
	}
	m := &tally{found: job.Found{Classes: map[string]int{}}}
	e, err := healthcheck.New(healthcheck.Config{Sink: m, Metrics: m, Hold: healthcheck.Hold{Share: 1}})
	if err != nil {
		return err
	}
	if err := e.Update(checks, nil); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(context.Background()) }()
	for e.Stats().Unknown > 0 {
		time.Sleep(50 * time.Millisecond)
	}
	if err := tell("ready"); err != nil {
		return err
	}
	before, stop := e.Stats().Lag, clock()
	for in.Scan() {
		switch in.Text() {
		case "begin":
			m.begin()
			stop()
			before, stop = e.Stats().Lag, clock()
		case "end":
			f, s := m.end(), e.Stats()
			f.Timer, stop = stop(), clock()
			f.Lag, f.Unknown, f.Up, f.Down = s.Lag-before, s.Unknown, s.Up, s.Down
			if err := tell(f); err != nil {
				return err
			}
		}
	}
	stop()
	e.Close()
	return <-done
}

// clock measures how late a bare timer is in this process, until stop is called.
// One that is late stands also for those that were due while it was.
func clock() (stop func() (p99 time.Duration)) {
	const every = 20 * time.Millisecond
	quit, done := make(chan struct{}), make(chan []time.Duration)
	go func() {
		var late []time.Duration
		defer func() { done <- late }()
		for {
			due := time.Now().Add(every)
			select {
			case <-quit:
				return
			case <-time.After(time.Until(due)):
				for d := time.Since(due); d > 0; d -= every {
					late = append(late, d)
				}
			}
		}
	}()
	return func() time.Duration {
		close(quit)
		late := <-done
		slices.Sort(late)
		if len(late) == 0 {
			return 0
		}
		return late[len(late)*99/100]
	}
}
