package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	badBurst = 10              // attempts at once
	badEvery = 2 * time.Second // another one
	maxHosts = 4096            // remembered
)

var errTooOften = errors.New("too many tokens that are not accepted came from this address; wait before trying again")

// throttle bounds how often each host may be wrong. A host that is right is
// never kept out by it, so nobody can lock out who comes from the same address.
// Hosts beyond those that it remembers share one allowance.
type throttle struct {
	now func() time.Time

	mu    sync.Mutex // guards the fields below
	hosts map[netip.Prefix]*allowance
	rest  allowance
}

// allowance is a bucket of attempts, which fills with time.
type allowance struct {
	used time.Duration // of badBurst times badEvery
	at   time.Time
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, hosts: map[netip.Prefix]*allowance{}}
}

// take counts an attempt that failed, or is about to cost something.
func (t *throttle) take(host netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	a := t.hosts[host]
	if a == nil && len(t.hosts) >= maxHosts {
		for h, old := range t.hosts {
			if old.left(now) == 0 {
				delete(t.hosts, h)
			}
		}
	}
	switch {
	case a != nil:
	case len(t.hosts) < maxHosts:
		a = &allowance{}
		t.hosts[host] = a
	default:
		a = &t.rest
	}
	used := a.left(now)
	if used+badEvery > badBurst*badEvery {
		return errTooOften
	}
	a.used, a.at = used+badEvery, now
	return nil
}

// left is what is still used at a moment.
func (a *allowance) left(now time.Time) time.Duration { return max(0, a.used-now.Sub(a.at)) }

// hostOf is the part of an address that one host has: of IPv6 its /64.
func hostOf(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // of an address without a zone it cannot fail
	return p
}
