package lbstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v2"
)

// parse reads one JSON or YAML document, which must be an object without a key
// that stands twice. Values are as encoding/json has them, with json.Number for
// each number, and word for what YAML takes for a boolean.
func parse(data []byte) (map[string]any, error) {
	if json.Valid(data) { // not all JSON is YAML 1.1; this also bounds the depth
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		v, err := parseJSON(d)
		if err != nil {
			return nil, err
		}
		return asObject(v)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.SetStrict(true) // no key twice
	var root value
	var more any
	if err := d.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the object")
	}
	if root.err != nil {
		return nil, root.err
	}
	return asObject(root.is)
}

func asObject(v any) (map[string]any, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("an object is expected")
	}
	return m, nil
}

// parseJSON reads the next value of valid JSON, and refuses keys that stand
// twice.
func parseJSON(d *json.Decoder) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, _ := k.(string)
			if _, twice := m[key]; twice {
				return nil, fmt.Errorf("the key %q stands twice in one object", clip(key))
			}
			if m[key], err = parseJSON(d); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return m, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseJSON(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	return t, nil
}

// word is a bare word that YAML 1.1 takes for a boolean, though it may be meant
// as a text: snat: off.
type word struct {
	value bool
	text  string
}

// as returns what the word is where a value like want is asked for.
func (w word) as(want any) any {
	switch want.(type) {
	case string:
		if !strings.EqualFold(w.text, "true") && !strings.EqualFold(w.text, "false") {
			return w.text
		}
	case bool:
		return w.value
	}
	return w.value
}

// MarshalJSON writes a boolean.
func (w word) MarshalJSON() ([]byte, error) { return json.Marshal(w.value) }

func (w word) String() string { return w.text }

// value reads any value. It keeps its error to itself, so that a list's tells
// nothing but that it is none.
type value struct {
	is  any
	err error
}

// UnmarshalYAML implements yaml.Unmarshaler; null never comes here.
func (n *value) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	var list []value
	var m map[string]value
	if unmarshal(&text) == nil {
		n.err = unmarshal(&n.is)
		switch v := n.is.(type) {
		case string, nil:
		case bool:
			n.is = word{v, text}
		default:
			n.is = json.Number(fmt.Sprint(v))
		}
		return nil
	}
	if unmarshal(&list) == nil {
		values := make([]any, len(list))
		for i := range list {
			values[i] = list[i].is
			n.err = errors.Join(n.err, list[i].err)
		}
		n.is = values
		return nil
	}
	n.err = unmarshal(&m)
	values := make(map[string]any, len(m))
	for k, v := range m {
		values[k] = v.is
		n.err = errors.Join(n.err, v.err)
	}
	n.is = values
	return nil
}
