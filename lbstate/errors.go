package lbstate

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotFound says that an object, a backend or a revision does not exist.
var ErrNotFound = errors.New("not found")

// ConflictError says that a precondition did not hold: nothing was written.
type ConflictError struct {
	Object  string // "service web"
	Current uint64 // the object's revision; 0: it does not exist
	Wanted  uint64
}

func (e *ConflictError) Error() string {
	switch {
	case e.Wanted == 0:
		return fmt.Sprintf("%s exists already, at revision %d", e.Object, e.Current)
	case e.Current == 0:
		return fmt.Sprintf("%s does not exist, but the change expects revision %d", e.Object, e.Wanted)
	}
	return fmt.Sprintf("%s is at revision %d, but the change expects %d: read it again, then repeat the change", e.Object, e.Current, e.Wanted)
}

// Fault is one thing that is wrong with an object.
type Fault struct {
	Object  string `json:"object,omitempty"`  // "service/web", where there are several
	Path    string `json:"path"`              // "backends[2].weight"
	Found   string `json:"found,omitempty"`   // what stands there
	Allowed string `json:"allowed,omitempty"` // what may stand there
	Reason  string `json:"reason"`            // a sentence
}

func (f Fault) String() string {
	s := f.Reason
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	if f.Object != "" {
		s = f.Object + ": " + s
	}
	if f.Allowed != "" {
		s += " (allowed: " + f.Allowed + ")"
	}
	return s
}

// ValidationError carries every fault of an object; nothing was written.
type ValidationError struct{ Faults []Fault }

func (e *ValidationError) Error() string { return "invalid: " + join(e.Faults) }

// SyntaxError says that input could not be read as the object it should be:
// not JSON or YAML, or a field that does not exist.
type SyntaxError struct{ Faults []Fault }

func (e *SyntaxError) Error() string { return "unreadable: " + join(e.Faults) }

func join(faults []Fault) string {
	parts := make([]string, len(faults))
	for i, f := range faults {
		parts[i] = f.String()
	}
	return strings.Join(parts, "; ")
}

// NotApplied says whether err is certain proof that a write was and will never
// be applied. False leaves that unknown.
func NotApplied(err error) bool {
	var conflict *ConflictError
	var stale *staleError
	var invalid *ValidationError
	var syntax *SyntaxError
	var reused *KeyReusedError
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCompacted) || errors.As(err, &conflict) || errors.As(err, &stale) ||
		errors.As(err, &invalid) || errors.As(err, &syntax) || errors.As(err, &reused) {
		return true
	}
	var n interface{ NotApplied() bool }
	return errors.As(err, &n) && n.NotApplied()
}
