package main

import (
	"context"
	"net/netip"
	"runtime"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

// idle measures what checks cost that have been run once and wait, and what it
// costs to add one to them.
func idle(j job.Job) error {
	p := &at{}
	e, err := healthcheck.New(healthcheck.Config{})
	if err != nil {
		return err
	}
	before := heap()
	add := func(from, to int) error {
		var batch []healthcheck.Check
		for i := from; i < to; i++ {
			batch = append(batch, healthcheck.Check{ID: job.Name(i), Target: netip.AddrPortFrom(job.Address(i), 80), Probe: p, Interval: time.Hour})
		}
		return e.Update(batch, nil)
	}
	if err := add(0, j.Targets); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(context.Background()) }()
	for e.Stats().Up < j.Targets {
		time.Sleep(10 * time.Millisecond)
	}
	each := int(heap()-before) / j.Targets
	const more = 2000
	began := time.Now()
	for i := range more {
		if err := add(j.Targets+i, j.Targets+i+1); err != nil {
			return err
		}
	}
	took := time.Since(began) / more
	e.Close()
	if err := <-done; err != nil {
		return err
	}
	return tell(job.Idle{BytesEach: each, AddEach: took})
}

// at is a probe that succeeds at once.
type at struct{}

func (*at) Probe(context.Context, netip.AddrPort) healthcheck.Result { return healthcheck.Result{} }

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
