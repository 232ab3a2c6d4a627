package lbstate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"sigs.k8s.io/yaml"
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

// DecodeService reads a service from JSON or YAML. Everything that is wrong is
// reported at once: *SyntaxError for text that is neither, and for fields that
// do not exist; *ValidationError for values of the wrong form. Ranges are
// Validate's matter.
func DecodeService(data []byte) (Service, error) {
	var s Service
	err := decode(data, func(o *object) {
		s = Service{
			Name: o.text("name"), Labels: o.labels("labels"),
			VIP: o.addr("vip"), Port: o.integer("port"), Protocol: Protocol(o.text("protocol")),
			Family: Family(o.text("family")), Scheduler: o.text("scheduler"), SchedulerFlags: o.texts("scheduler_flags"),
			Forwarding: Forwarding(o.text("forwarding")), OnePacket: o.boolean("one_packet"),
			SNAT: SNATMode(o.text("snat")), Agents: o.labels("agents"), HealthCheck: o.check("health_check"),
		}
		mark := o.integer("fwmark")
		if mark < 0 || mark > 1<<32-1 {
			o.r.fault(o.path+"fwmark", mark, "1 to 4294967295", "is out of range")
		}
		s.FWMark = uint32(mark)
		if revision := o.integer("revision"); revision >= 0 {
			s.Revision = uint64(revision)
		} else {
			o.r.fault(o.path+"revision", revision, "0 or more", "is negative")
		}
		if p := o.sub("persistence"); p != nil {
			s.Persistence = &Persistence{Timeout: p.duration("timeout"), Prefix: p.integer("prefix")}
			p.done()
		}
		for _, b := range o.list("backends") {
			s.Backends = append(s.Backends, b.backend())
		}
	})
	return s, err
}

// DecodeBackend reads one backend, as DecodeService does a service.
func DecodeBackend(data []byte) (Backend, error) {
	var b Backend
	err := decode(data, func(o *object) { b = o.backendFields() })
	return b, err
}

// reader collects the faults of one document.
type reader struct {
	unknown []Fault // fields that do not exist
	invalid []Fault // values of the wrong form
}

func (r *reader) fault(path string, found any, allowed, reason string) {
	r.invalid = append(r.invalid, Fault{Path: path, Found: clip(found), Allowed: allowed, Reason: reason})
}

func clip(v any) string {
	s := fmt.Sprint(v)
	return s[:min(len(s), 100)]
}

func decode(data []byte, fields func(*object)) error {
	syntax := func(err error) error {
		return &SyntaxError{[]Fault{{Path: "", Reason: "not JSON or YAML: " + err.Error()}}}
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return syntax(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var root any
	if err := d.Decode(&root); err != nil {
		return syntax(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return syntax(fmt.Errorf("there is more after the object"))
	}
	m, ok := root.(map[string]any)
	if !ok {
		return syntax(fmt.Errorf("an object is expected"))
	}
	r := &reader{}
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
	r    *reader
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
		s, ok := v.(string)
		if !ok {
			o.r.fault(o.path+name+"."+clip(k), v, "a text", "is not a text")
		}
		labels[k] = s
	}
	return labels
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

func (o *object) backend() Backend {
	b := o.backendFields()
	o.done()
	return b
}

func (o *object) backendFields() Backend {
	b := Backend{
		Address: o.addr("address"), Port: o.integer("port"), State: BackendState(o.text("state")),
		Forwarding: Forwarding(o.text("forwarding")), HealthCheck: o.check("health_check"),
	}
	if w, ok := o.number("weight"); ok {
		b.Weight = &w
	}
	return b
}

func (o *object) check(name string) *HealthCheck {
	c := o.sub(name)
	if c == nil {
		return nil
	}
	defer c.done()
	return &HealthCheck{
		Type: c.text("type"), Address: c.addr("address"), Port: c.integer("port"), Path: c.text("path"),
		Host: c.text("host"), URL: c.text("url"), ExpectStatus: c.text("expect_status"), ExpectBody: c.text("expect_body"),
		Interval: c.duration("interval"), Timeout: c.duration("timeout"), Rise: c.integer("rise"), Fall: c.integer("fall"),
	}
}
