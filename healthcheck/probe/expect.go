package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// DefaultLimit is how many bytes of an answer are read at most by default.
const DefaultLimit = 64 << 10

// Expect says what an answer must contain. Both fields may be set; its zero
// value is content with anything, and nothing is read.
type Expect struct {
	Contains string         // a substring
	Match    *regexp.Regexp // RE2, so its time is linear in the answer's length
	Limit    int            // how many bytes are read at most; default DefaultLimit
}

func (x Expect) any() bool { return x.Contains == "" && x.Match == nil }

func (x Expect) limit() int {
	if x.Limit > 0 {
		return x.Limit
	}
	return DefaultLimit
}

func (x Expect) met(answer []byte) bool {
	return (x.Contains == "" || strings.Contains(string(answer), x.Contains)) &&
		(x.Match == nil || x.Match.Match(answer))
}

func (x Expect) String() string {
	var parts []string
	if x.Contains != "" {
		parts = append(parts, strconv.Quote(quote(x.Contains)))
	}
	if x.Match != nil {
		parts = append(parts, "a match of "+strconv.Quote(quote(x.Match.String())))
	}
	return strings.Join(parts, " and ")
}

// read reads from a stream that may stay open until the answer is met. One that
// comes in very many pieces is not looked at after each, which would take time
// by the square of its length, but whatever ends it, all of it counts.
func (x Expect) read(ctx context.Context, r io.Reader, phase string) healthcheck.Result {
	const eager = 64 // pieces
	var answer []byte
	chunk := make([]byte, 2048)
	looked := 0 // how long the answer was when it was last looked at
	for pieces := 0; ; pieces++ {
		n, err := r.Read(chunk[:min(len(chunk), x.limit()-len(answer))])
		answer = append(answer, chunk[:n]...)
		full := len(answer) >= x.limit()
		if pieces < eager || err != nil || full || len(answer)-looked > looked/8 {
			looked = len(answer)
			if looked > 0 && x.met(answer) {
				return healthcheck.Result{}
			}
		}
		switch {
		case errors.Is(err, io.EOF) && len(answer) > 0:
			return x.unmet(answer, phase, false)
		case err != nil:
			res := failed(ctx, phase, x.String(), err)
			if len(answer) > 0 {
				res.Found += " (so far " + strconv.Quote(quote(string(answer))) + ")"
			}
			return res
		case full:
			return x.unmet(answer, phase, true)
		}
	}
}

// unmet is the result for an answer that was read in full, or up to the limit.
func (x Expect) unmet(answer []byte, phase string, cut bool) healthcheck.Result {
	res := healthcheck.Result{
		Class: healthcheck.BadBody, Phase: phase, Expected: x.String(),
		Found: strconv.Quote(quote(string(answer))),
	}
	if cut {
		res.Found += fmt.Sprintf(" (only the first %d bytes are looked at)", x.limit())
		res.Advice = "make the answer shorter, or raise the limit"
	}
	return res
}
