package access

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Limits of what an object holds, in bytes unless said otherwise.
const (
	maxName      = 63
	maxHolder    = 253                          // as in certificates
	maxRef       = maxHolder + len("operator/") // an object's name, of any kind
	maxNote      = 1024
	maxWhy       = 512 // of a revocation
	maxLabels    = 32  // labels
	maxAuthor    = 256
	maxReason    = 2048
	maxSerial    = 64
	nameAllowed  = "1 to 63 letters, digits, '.', '_' and '-'"
	rolesAllowed = "viewer, operator, admin"
)

func validName(s string, most int) bool {
	return len(s) >= 1 && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}

func validSerial(s string) bool {
	return len(s) >= 1 && len(s) <= maxSerial && s[0] != '0' && strings.Trim(s, "0123456789abcdef") == ""
}

// PlainSerial writes a serial number as certificates are compared: hexadecimal
// in lower case, without colons and leading zeros.
func PlainSerial(s string) string {
	return strings.TrimLeft(strings.ToLower(strings.ReplaceAll(strings.TrimSpace(s), ":", "")), "0")
}

type faults []lbstate.Fault

func (f *faults) add(path, found, allowed, reason string) {
	*f = append(*f, lbstate.Fault{Path: path, Found: found, Allowed: allowed, Reason: reason})
}

func (f *faults) text(path, s string, most int) {
	switch {
	case len(s) > most:
		f.add(path, fmt.Sprintf("%d bytes", len(s)), fmt.Sprintf("at most %d", most), "is too long")
	case s != strings.ToValidUTF8(s, "\uFFFD"):
		f.add(path, clip(s), "UTF-8", "is not a text")
	}
}

func (f *faults) name(path, s string) {
	if !validName(s, maxName) {
		f.add(path, clip(s), nameAllowed, "is not a name")
	}
}

func (f *faults) role(path string, r Role) {
	if !r.known() {
		f.add(path, clip(string(r)), rolesAllowed, "is not a role")
	}
}

// time admits what the state can keep: whole milliseconds of years with four
// digits.
func (f *faults) time(path string, t time.Time) {
	if !t.IsZero() && (t.Year() < 2000 || t.Year() > 9999) {
		f.add(path, t.String(), "a time such as 2030-01-02T15:04:05Z, or nothing", "is out of range")
	}
}

func (f faults) err() error {
	if len(f) == 0 {
		return nil
	}
	return &lbstate.ValidationError{Faults: f}
}

// Validate names every fault.
func (u User) Validate() error {
	var f faults
	f.name("name", u.Name)
	f.role("role", u.Role)
	f.text("note", u.Note, maxNote)
	if u.PasswordHash != nil && *u.PasswordHash != "" {
		if _, err := ParsePHC(*u.PasswordHash); err != nil {
			f.add("password_hash", "", phcAllowed, err.Error()) // what was found may be a password
		}
	}
	return f.err()
}

// Validate names every fault.
func (t Token) Validate() error {
	var f faults
	f.name("id", t.ID)
	f.name("user", t.User)
	f.role("role", t.Role)
	f.text("note", t.Note, maxNote)
	f.time("expires", t.Expires)
	if t.Hash == ([len(t.Hash)]byte{}) {
		f.add("hash", "nothing", "the SHA-256 of a secret", "is missing")
	}
	return f.err()
}

// Validate names every fault.
func (r Revocation) Validate() error {
	var f faults
	switch {
	case r.Kind == bySerial && !validSerial(r.Name):
		f.add("name", clip(r.Name), "1 to 64 hexadecimal digits in lower case, without leading zeros", "is not a serial number")
	case r.Kind == bySerial:
	case !slices.Contains([]string{holderServer, holderAgent, holderOperator}, r.Kind):
		f.add("kind", clip(r.Kind), "server, agent, operator, serial", "is not what can be revoked")
	case !validName(r.Name, maxHolder):
		f.add("name", clip(r.Name), "1 to 253 letters, digits, '.', '_' and '-'", "is not a name in a certificate")
	}
	if strings.TrimSpace(r.Reason) == "" {
		f.add("reason", "nothing", "a text", "is missing: who is refused is told why")
	}
	f.text("reason", r.Reason, maxWhy)
	f.time("until", r.Until)
	return f.err()
}

// Validate names every fault.
func (c Credential) Validate() error {
	var f faults
	if !slices.Contains([]string{holderServer, holderAgent, holderOperator}, c.Role) {
		f.add("role", clip(c.Role), "server, agent, operator", "is not a role of a certificate")
	}
	if !validName(c.Name, maxHolder) {
		f.add("name", clip(c.Name), "1 to 253 letters, digits, '.', '_' and '-'", "is not a name in a certificate")
	}
	f.text("note", c.Note, maxNote)
	if c.Labels != nil && c.Role != holderAgent {
		f.add("labels", fmt.Sprint(len(c.Labels)), "none", "only an agent has labels")
	}
	if len(c.Labels) > maxLabels {
		f.add("labels", fmt.Sprint(len(c.Labels)), fmt.Sprintf("at most %d", maxLabels), "are too many")
	}
	for _, k := range sortedKeys(c.Labels) {
		if v := c.Labels[k]; !validName(k, maxName) || v != "" && !validName(v, maxName) {
			f.add("labels", clip(k+"="+v), "a key of "+nameAllowed+"; a value the same or nothing", "is not a label")
		}
	}
	return f.err()
}
