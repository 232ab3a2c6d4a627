package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Probe asks a target once. One Probe value serves any number of checks and is
// called concurrently.
//
// Probe must return soon after ctx ends, and must not keep a goroutine or a
// descriptor beyond its return. ctx carries the check's timeout as a deadline,
// counted from the call. A panic is recovered and makes the result
// inconclusive.
type Probe interface {
	Probe(ctx context.Context, target netip.AddrPort) Result
}

// ProbeFunc is a function that is a Probe.
type ProbeFunc func(ctx context.Context, target netip.AddrPort) Result

// Probe calls f.
func (f ProbeFunc) Probe(ctx context.Context, target netip.AddrPort) Result { return f(ctx, target) }

// State is what is known of a target.
type State uint8

// The states. Unknown is left by the first success, or by Fall failures.
const (
	Unknown State = iota
	Up
	Down
)

var stateNames = [...]string{"unknown", "up", "down"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", s)
}

// MarshalText gives the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Check is one thing to probe for ever. It is a value: an Engine keeps a copy.
type Check struct {
	// ID names the check; it also decides its phase, so the same set of checks
	// is spread in the same way on every host. Required.
	ID string

	// Target is handed to Probe. It may be zero for a Probe that knows its own.
	Target netip.AddrPort

	// Probe asks the target. Required, and comparable: it is a pointer, as a
	// rule, shared by all checks that ask in the same way.
	Probe Probe

	// Interval is the time from one probe to the next, 10 ms at least.
	// Default 2 s. DoubtInterval replaces it while results disagree with the
	// state but are too few to change it, DownInterval while the target is down or
	// unknown. Both default to Interval.
	Interval      time.Duration
	DoubtInterval time.Duration
	DownInterval  time.Duration

	// Timeout bounds one probe, counted from its start. Default 1 s.
	Timeout time.Duration

	// Rise is how many successes in a row bring a target up that is down
	// (default 2), Fall how many failures in a row bring it down (default 3). A
	// target of which nothing is known is up after one success.
	Rise, Fall int

	// Initial is the state that the Sink already knows. It stands until the
	// check's own results change it.
	Initial State

	// Canary marks a target that is expected to be always up (a gateway, a
	// resolver): when all of them answer, a mass failure is not this host's.
	Canary bool
}

// Bounds of a Check's fields.
const (
	MinInterval = 10 * time.Millisecond
	MaxInterval = 7 * 24 * time.Hour
)

func (c Check) withDefaults() Check {
	if c.Interval == 0 {
		c.Interval = 2 * time.Second
	}
	if c.DoubtInterval == 0 {
		c.DoubtInterval = c.Interval
	}
	if c.DownInterval == 0 {
		c.DownInterval = c.Interval
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	if c.Rise == 0 {
		c.Rise = 2
	}
	if c.Fall == 0 {
		c.Fall = 3
	}
	return c
}

// Validate names every fault of the check; nil says that an Engine takes it.
func (c Check) Validate() error { return c.withDefaults().validate() }

// validate expects a Check with its defaults filled in.
func (c Check) validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("check %q: "+format, append([]any{c.ID}, args...)...))
	}
	if c.ID == "" {
		fault("id is empty")
	}
	if c.Probe == nil {
		fault("probe is nil")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"interval", c.Interval}, {"doubt interval", c.DoubtInterval}, {"down interval", c.DownInterval}} {
		if d.value < MinInterval || d.value > MaxInterval {
			fault("%s is %v, want %v to %v", d.name, d.value, MinInterval, MaxInterval)
		}
	}
	if c.Timeout <= 0 || c.Timeout > MaxInterval {
		fault("timeout is %v, want more than 0 and at most %v", c.Timeout, MaxInterval)
	}
	if c.Rise < 1 || c.Rise > math.MaxInt16 {
		fault("rise is %d, want 1 to %d", c.Rise, math.MaxInt16)
	}
	if c.Fall < 1 || c.Fall > math.MaxInt16 {
		fault("fall is %d, want 1 to %d", c.Fall, math.MaxInt16)
	}
	if c.Initial > Down {
		fault("initial state is %v", c.Initial)
	}
	return errors.Join(faults...)
}
