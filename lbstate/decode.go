package lbstate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MarshalText writes the duration as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

// document collects the faults of one document.
type document struct {
	unknown []Fault // fields that do not exist
	invalid []Fault // values of the wrong form
}

func (r *document) fault(path string, found any, allowed, reason string) {
	r.invalid = append(r.invalid, Fault{Path: path, Found: clip(found), Allowed: allowed, Reason: reason})
}

// clip shows a value, or its beginning.
func clip(v any) string {
	s := fmt.Sprint(v)
	return strings.ToValidUTF8(s[:min(len(s), 100)], "\uFFFD")
}

func decode(data []byte, most int, fields func(*object)) error {
	syntax := func(err error) error {
		return &SyntaxError{[]Fault{{Path: "", Reason: "not JSON or YAML: " + strings.ToValidUTF8(err.Error(), "\uFFFD")}}}
	}
	if len(data) > most {
		return syntax(fmt.Errorf("%d bytes; at most %d are read", len(data), most))
	}
	m, err := parse(data)
	if err != nil {
		return syntax(err)
	}
	return decodeTree(m, fields)
}

// decodeTree reads the fields of an object that was parsed.
func decodeTree(m map[string]any, fields func(*object)) error {
	r := &document{}
	o := &object{r: r, m: m}
	fields(o)
	o.done()
	switch {
	case len(r.unknown) > 0:
		return &SyntaxError{append(r.unknown, r.invalid...)}
	case len(r.invalid) > 0:
		return &ValidationError{r.invalid}
	}
	return nil
}

// object is one JSON object being read: each field that is asked for is taken
// out, so that what remains is unknown.
type object struct {
	r    *document
	path string // with its final dot, empty at the root
	m    map[string]any
}

func (o *object) take(name string) (any, bool) {
	v, ok := o.m[name]
	delete(o.m, name)
	return v, ok && v != nil
}

func (o *object) done() {
	names := make([]string, 0, len(o.m))
	for name := range o.m {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		o.r.unknown = append(o.r.unknown, Fault{Path: clip(o.path + name), Reason: "there is no such field"})
	}
}

func field[T any](o *object, name, want string) (T, bool) {
	v, ok := o.take(name)
	if !ok {
		var zero T
		return zero, false
	}
	if w, ok := v.(word); ok {
		v = w.as(*new(T))
	}
	t, is := v.(T)
	if !is {
		o.r.fault(o.path+name, v, want, "is not "+want)
	}
	return t, is
}

func (o *object) text(name string) string {
	s, _ := field[string](o, name, "a text")
	return s
}

func (o *object) boolean(name string) bool {
	b, _ := field[bool](o, name, "true or false")
	return b
}

func (o *object) number(name string) (int, bool) {
	n, ok := field[json.Number](o, name, "a number")
	if !ok {
		return 0, false
	}
	i, err := n.Int64()
	if err != nil {
		o.r.fault(o.path+name, n, "a whole number", "is not a whole number")
		return 0, false
	}
	return int(i), true
}

func (o *object) integer(name string) int {
	n, _ := o.number(name)
	return n
}

func (o *object) addr(name string) netip.Addr {
	s, ok := field[string](o, name, "an IP address")
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		o.r.fault(o.path+name, s, "an IPv4 or IPv6 address", fmt.Sprintf("%q is not an IP address", clip(s)))
	}
	return a.Unmap()
}

func (o *object) duration(name string) Duration {
	s, ok := field[string](o, name, `a duration such as "1.5s"`)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		o.r.fault(o.path+name, s, `such as "300ms", "1.5s", "2m"`, fmt.Sprintf("%q is not a duration", clip(s)))
	}
	return Duration(d)
}

func (o *object) texts(name string) []string {
	l, _ := field[[]any](o, name, "a list")
	var texts []string
	for i, v := range l {
		if w, ok := v.(word); ok {
			v = w.text
		}
		s, ok := v.(string)
		if !ok {
			o.r.fault(fmt.Sprintf("%s%s[%d]", o.path, name, i), v, "a text", "is not a text")
		}
		texts = append(texts, s)
	}
	return texts
}

func (o *object) labels(name string) map[string]string {
	m, _ := field[map[string]any](o, name, "an object of texts")
	if m == nil {
		return nil
	}
	labels := make(map[string]string, len(m))
	for k, v := range m {
		if w, ok := v.(word); ok {
			v = w.text
		}
		s, ok := v.(string)
		if !ok {
			o.r.fault(o.path+name+"."+clip(k), v, "a text", "is not a text")
		}
		labels[k] = s
	}
	return labels
}

func (o *object) prefixes(name string) (prefixes []netip.Prefix) {
	for i, text := range o.texts(name) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			o.r.fault(fmt.Sprintf("%s%s[%d]", o.path, name, i), text, "such as 192.0.2.0/24", fmt.Sprintf("%q is not a prefix", clip(text)))
		}
		prefixes = append(prefixes, p)
	}
	return prefixes
}

// natural reads a number that cannot be negative, up to a bound.
func (o *object) natural(name string, most uint64) uint64 {
	n := o.integer(name)
	if n < 0 || uint64(n) > most {
		o.r.fault(o.path+name, n, fmt.Sprintf("0 to %d", most), "is out of range")
		return 0
	}
	return uint64(n)
}

func (o *object) instant(name string) time.Time {
	s, ok := field[string](o, name, "an instant such as 2006-01-02T15:04:05Z")
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		o.r.fault(o.path+name, s, "such as 2006-01-02T15:04:05Z", fmt.Sprintf("%q is not an instant", clip(s)))
	}
	return t
}

func (o *object) sub(name string) *object {
	m, ok := field[map[string]any](o, name, "an object")
	if !ok {
		return nil
	}
	return &object{r: o.r, path: o.path + name + ".", m: m}
}

func (o *object) list(name string) []*object {
	l, _ := field[[]any](o, name, "a list")
	var subs []*object
	for i, v := range l {
		m, ok := v.(map[string]any)
		if !ok {
			o.r.fault(fmt.Sprintf("%s%s[%d]", o.path, name, i), v, "an object", "is not an object")
			continue
		}
		subs = append(subs, &object{r: o.r, path: fmt.Sprintf("%s%s[%d].", o.path, name, i), m: m})
	}
	return subs
}
