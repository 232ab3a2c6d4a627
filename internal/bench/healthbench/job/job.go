// Package job is what the benchmark's processes tell each other.
package job

import (
	"fmt"
	"net/netip"
	"time"
)

// Job is what a worker is to do.
type Job struct {
	Task    string // serve, check, idle, busy
	Kind    string // of checks: tcp, http, https
	Targets int
	Holes   int // of these, those that do not answer
	Ports   Ports
}

// Ports are those that a serving worker listens at, on every address.
type Ports struct {
	TCP, HTTP, HTTPS, Hole uint16
}

// Of is the port for a kind of check.
func (p Ports) Of(kind string) uint16 {
	return map[string]uint16{"tcp": p.TCP, "http": p.HTTP, "https": p.HTTPS}[kind]
}

// Intervals of the checks.
const (
	Interval = time.Second
	Timeout  = time.Second
)

// Address is that of the i-th target.
func Address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)})
}

// Name is what the i-th check is called.
func Name(i int) string { return fmt.Sprintf("%v check", Address(i)) }

// Found is what a checking worker found in its window.
type Found struct {
	OK, Failed, Local int            // results
	Classes           map[string]int // of those that failed
	FalseDowns        int            // targets that answer and were called down
	P50, P99, Max     time.Duration  // lateness of successes
	Timer             time.Duration  // p99 lateness of a bare timer in the same process
	Skipped           int
	Lag               time.Duration
	Unknown, Up, Down int // at the end
}

// Idle is what idle checks cost.
type Idle struct {
	BytesEach int
	AddEach   time.Duration // to add one to all of them, while they run
}
