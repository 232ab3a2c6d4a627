package healthcheck

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Class says what kind of answer a probe got. Only OK counts as a success, and
// only Local counts as nothing at all.
type Class uint8

// The classes.
const (
	OK          Class = iota
	Refused           // the target, or a firewall, refused
	Timeout           // no answer in time
	Unreachable       // no route, or a router said so
	Reset             // an open connection was reset
	TLS               // handshake or certificate
	BadStatus         // an answer with a status that was not wanted
	BadBody           // an answer with content that was not wanted
	Protocol          // an answer that is not of the protocol, or none before the end
	DNS               // a name could not be resolved
	Local             // inconclusive: this host was late, out of ports or files, or stopping
	numClasses
)

var classNames = [...]string{
	"ok", "refused", "timeout", "unreachable", "reset", "tls",
	"status", "body", "protocol", "dns", "local",
}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", c)
}

// MarshalText gives the class's name.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Classes are all classes, in order; for metrics.
func Classes() []Class {
	all := make([]Class, numClasses)
	for i := range all {
		all[i] = Class(i)
	}
	return all
}

// Result is the outcome of one probe. The texts are for people, and not stable.
type Result struct {
	Class    Class         `json:"class"`
	Phase    string        `json:"phase,omitempty"`    // connect, tls, request, answer, ...; where it failed
	Expected string        `json:"expected,omitempty"` // what would have been a success
	Found    string        `json:"found,omitempty"`    // what came instead
	Advice   string        `json:"advice,omitempty"`   // what to do about it
	Warning  string        `json:"warning,omitempty"`  // for a success too: a certificate that ends soon, say
	Latency  time.Duration `json:"latency"`            // from the probe's start to its verdict; set by the engine when 0
}

// MarshalJSON gives the latency as text, to the microsecond.
func (r Result) MarshalJSON() ([]byte, error) {
	type plain Result // without this method
	return json.Marshal(struct {
		plain
		Latency string `json:"latency"`
	}{plain(r), r.Latency.Round(time.Microsecond).String()})
}

// OK says whether the probe succeeded.
func (r Result) OK() bool { return r.Class == OK }

// Conclusive says whether the result says anything about the target.
func (r Result) Conclusive() bool { return r.Class != Local }

// String is one line: phase, expected, found, what to do.
func (r Result) String() string {
	var b strings.Builder
	b.WriteString(r.Class.String())
	if r.Class == OK && r.Warning != "" {
		return b.String() + "; " + r.Warning
	}
	if r.Phase != "" {
		b.WriteString(" in " + r.Phase)
	}
	if r.Expected != "" {
		b.WriteString(": expected " + r.Expected)
	}
	if r.Found != "" {
		if r.Expected != "" {
			b.WriteString(", found " + r.Found)
		} else {
			b.WriteString(": " + r.Found)
		}
	}
	if r.Advice != "" {
		b.WriteString("; " + r.Advice)
	}
	return b.String()
}

// sameStory says whether two results differ in nothing but their latency.
func (r Result) sameStory(o Result) bool {
	r.Latency, o.Latency = 0, 0
	return r == o
}

// Transition is a change of a check's effective state, as told to a Sink.
type Transition struct {
	ID string
	// From is the state that the Sink was last told (or Check.Initial), To the
	// present one. They are equal in a confirmation (Config.Confirmations), where
	// an earlier report's outcome is unknown, and when Held alone changed.
	From, To State
	// Held says that the target has fallen by its own results, and To is Up only
	// because that is not believed (Config.Holds).
	Held   bool
	At     time.Time // when the state changed
	Result Result    // the result that decided it
	Epoch  uint64    // Config.Epoch
	Seq    uint64    // counts up within an epoch; the highest of an ID is its latest
}

// Sink takes transitions. One call is outstanding at a time. After an error the
// same transitions, or later ones of the same checks, are reported again with
// back-off, so Report must be idempotent. It must return when ctx ends, and
// must not keep batch.
type Sink interface {
	Report(ctx context.Context, batch []Transition) error
}

// SinkFunc is a function that is a Sink.
type SinkFunc func(ctx context.Context, batch []Transition) error

// Report calls f.
func (f SinkFunc) Report(ctx context.Context, batch []Transition) error { return f(ctx, batch) }
