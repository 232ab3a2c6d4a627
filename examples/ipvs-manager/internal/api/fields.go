package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"

	"github.com/ipvskit/ipvskit/lbstate"
)

// fields is an object of a body being read: each field that is asked for is
// taken out, so that what remains is unknown. All faults are collected.
type fields struct {
	path   string // with its final dot, empty at the root
	m      map[string]any
	faults *faults
}

type faults struct {
	unknown []lbstate.Fault // what could not be read: 400
	invalid []lbstate.Fault // what was read and may not be: 422
}

// problem is that of the faults; nil where there are none.
func (f *faults) problem() *problem {
	switch {
	case len(f.unknown) > 0:
		return unreadable(append(f.unknown, f.invalid...)...)
	case len(f.invalid) > 0:
		return invalid(f.invalid...)
	}
	return nil
}

func unreadable(faults ...lbstate.Fault) *problem {
	return &problem{Type: typeInvalid, Status: http.StatusBadRequest, Detail: "the body cannot be read as what it should be", Faults: faults}
}

// parseFields reads a body of JSON or YAML that is an object.
func parseFields(body []byte) (*fields, *problem) {
	d := yaml.NewDecoder(bytes.NewReader(body))
	d.SetStrict(true) // no key twice
	var root node
	var more any
	err := d.Decode(&root)
	if err == nil || errors.Is(err, io.EOF) {
		err = root.err
		if !errors.Is(d.Decode(&more), io.EOF) {
			err = errors.New("there is more after the object")
		}
	}
	m, is := root.value.(map[string]any)
	if err == nil && !is {
		err = errors.New("an object is expected")
	}
	if err != nil {
		return nil, unreadable(lbstate.Fault{Reason: "not JSON or YAML: " + strings.ToValidUTF8(err.Error(), "\uFFFD")})
	}
	return &fields{m: m, faults: &faults{}}, nil
}

// node is any value of YAML, of which JSON is a part. A bare word that YAML 1.1
// takes for a boolean, as in snat: off, stays the word: lbstate's own decoders
// do the same where a text is asked for.
type node struct {
	value any
	err   error // kept here, so that a list's tells nothing but that it is none
}

// UnmarshalYAML implements yaml.Unmarshaler; null never comes here.
func (n *node) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	var list []node
	var m map[string]node
	switch {
	case unmarshal(&text) == nil:
		n.err = unmarshal(&n.value)
		switch v := n.value.(type) {
		case string, nil:
		case bool:
			if text != strconv.FormatBool(v) {
				n.value = text
			}
		default:
			n.value = json.Number(fmt.Sprint(v))
		}
	case unmarshal(&list) == nil:
		values := make([]any, len(list))
		for i, item := range list {
			values[i] = item.value
			n.err = errors.Join(n.err, item.err)
		}
		n.value = values
	default:
		n.err = unmarshal(&m)
		values := make(map[string]any, len(m))
		for k, item := range m {
			values[k] = item.value
			n.err = errors.Join(n.err, item.err)
		}
		n.value = values
	}
	return nil
}

func (f *fields) fault(name string, found any, allowed, reason string) {
	f.faults.invalid = append(f.faults.invalid, lbstate.Fault{Path: f.path + name, Found: fmt.Sprintf("%.100v", found), Allowed: allowed, Reason: reason})
}

// take returns a field of a type; what is null is not there.
func take[T any](f *fields, name, want string) (T, bool) {
	v, there := f.m[name]
	delete(f.m, name)
	t, is := v.(T)
	if there && v != nil && !is {
		f.fault(name, v, want, "is not "+want)
	}
	return t, is
}

func (f *fields) text(name string) string {
	s, _ := take[string](f, name, "a text")
	return s
}

// revision is a number of the state's counter; nil where it is missing.
func (f *fields) revision(name string) *uint64 {
	n, is := take[json.Number](f, name, "a number")
	if !is {
		return nil
	}
	v, err := strconv.ParseUint(n.String(), 10, 64)
	if err != nil || v > math.MaxInt64 {
		f.fault(name, n, "a revision, such as 12", "is not a revision")
		return nil
	}
	return &v
}

// object is a field that is an object; nil where it is missing.
func (f *fields) object(name string) *fields {
	m, is := take[map[string]any](f, name, "an object")
	if !is {
		return nil
	}
	return &fields{f.path + name + ".", m, f.faults}
}

// objects is a field that is a list of objects.
func (f *fields) objects(name string) []*fields {
	list, _ := take[[]any](f, name, "a list")
	var out []*fields
	for i, v := range list {
		at := fmt.Sprintf("%s[%d]", name, i)
		m, is := v.(map[string]any)
		if !is {
			f.fault(at, v, "an object", "is not an object")
			continue
		}
		out = append(out, &fields{f.path + at + ".", m, f.faults})
	}
	return out
}

// done names the fields that were not asked for.
func (f *fields) done() {
	for _, name := range slices.Sorted(maps.Keys(f.m)) {
		f.faults.unknown = append(f.faults.unknown, lbstate.Fault{Path: f.path + fmt.Sprintf("%.100s", name), Reason: "there is no such field"})
	}
}

// decodeIn reads all fields of an object as lbstate does, and takes its faults
// over.
func decodeIn[T any](f *fields, decode func([]byte) (T, error)) T {
	data, err := json.Marshal(f.m)
	var v T
	if err == nil {
		v, err = decode(data)
	}
	var syntax *lbstate.SyntaxError
	var wrong *lbstate.ValidationError
	switch {
	case errors.As(err, &syntax):
		f.faults.unknown = append(f.faults.unknown, f.under(syntax.Faults)...)
	case errors.As(err, &wrong):
		f.faults.invalid = append(f.faults.invalid, f.under(wrong.Faults)...)
	case err != nil:
		f.faults.unknown = append(f.faults.unknown, lbstate.Fault{Path: strings.TrimSuffix(f.path, "."), Reason: err.Error()})
	}
	return v
}

// under puts the object's path before that of faults.
func (f *fields) under(found []lbstate.Fault) []lbstate.Fault {
	for i := range found {
		found[i].Path = strings.TrimSuffix(f.path+found[i].Path, ".")
	}
	return found
}
