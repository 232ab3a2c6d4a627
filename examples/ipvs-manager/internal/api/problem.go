package api

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/ipvskit/ipvskit/lbstate"
)

// problem is an error as RFC 9457 has it.
type problem struct {
	Type     string          `json:"type"` // "about:blank", or a urn:ipvskit: name that programs may rely on
	Title    string          `json:"title"`
	Status   int             `json:"status"`
	Detail   string          `json:"detail,omitempty"`
	Instance string          `json:"instance,omitempty"`
	Outcome  string          `json:"outcome,omitempty"`  // of a write: "not applied" or "unknown"
	Revision *uint64         `json:"revision,omitempty"` // of a conflict: the current one; 0: there is no such object
	Faults   []lbstate.Fault `json:"faults,omitempty"`
	Plan     *lbstate.Plan   `json:"plan,omitempty"` // of a plan that is out of date: the one that holds now

	allow      string // methods, for 405
	accept     string // media types, for 415; of a patch in a header of their own (RFC 5789)
	retryAfter int    // seconds, for 503
}

// Types of problem that a program can act on.
const (
	typeInvalid     = "urn:ipvskit:invalid"         // faults say which fields
	typeConflict    = "urn:ipvskit:conflict"        // revision says the current one
	typeUnavailable = "urn:ipvskit:unavailable"     // not applied: try again
	typeUnknown     = "urn:ipvskit:outcome-unknown" // look before trying again
	typeForeign     = "urn:ipvskit:foreign-origin"  // a browser was led here by another site
	typePlan        = "urn:ipvskit:plan-changed"    // plan says what would be done now
	typeKey         = "urn:ipvskit:key-reused"      // a new change needs an idempotency key of its own
	typeCompacted   = "urn:ipvskit:compacted"       // the history does not go back that far
)

const (
	notApplied     = "not applied"
	outcomeUnknown = "unknown"
)

// refused is a problem of the request itself: nothing was written.
func refused(status int, detail string) *problem {
	return &problem{Status: status, Detail: detail}
}

func (p *problem) send(w http.ResponseWriter, r *http.Request) {
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	p.Instance = r.URL.Path
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	switch {
	case p.accept != "" && r.Method == http.MethodPatch:
		h.Set("Accept-Patch", p.accept)
	case p.accept != "":
		h.Set("Accept", p.accept)
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p) // fails only when the client is gone
}
