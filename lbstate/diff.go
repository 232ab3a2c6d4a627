package lbstate

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
)

// Action is what turns one form of an object into another.
type Action string

const (
	ActionCreate Action = "create"
	ActionChange Action = "change"
	ActionDelete Action = "delete"
)

// ObjectDiff is the difference between two forms of an object.
type ObjectDiff struct {
	Ref
	Action Action        `json:"action"`
	Fields []FieldChange `json:"fields,omitempty"` // by path; of a change alone
}

// FieldChange is a field that differs. The path of a backend's field has its
// key: backends[10.1.0.1:80].weight.
type FieldChange struct {
	Path string `json:"path"`
	From any    `json:"from,omitempty"` // as JSON has it; nil: it was not there
	To   any    `json:"to,omitempty"`   // nil: it is gone
}

func (c FieldChange) String() string {
	show := func(v any) string {
		if v == nil {
			return "nothing"
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		return string(text)
	}
	return fmt.Sprintf("%s: %s → %s", c.Path, show(c.From), show(c.To))
}

// setByState are the fields that the state sets: they are no difference.
var setByState = []string{"revision", "drain_since"}

// diffObjects compares two forms of one object, of which either may be missing;
// ok is false where nothing differs.
func diffObjects(before, after Object) (d ObjectDiff, ok bool, err error) {
	switch {
	case !before.exists() && !after.exists():
		return d, false, nil
	case !before.exists():
		return ObjectDiff{Ref: after.Ref(), Action: ActionCreate}, true, nil
	case !after.exists():
		return ObjectDiff{Ref: before.Ref(), Action: ActionDelete}, true, nil
	}
	a, err := tree(before)
	if err != nil {
		return d, false, err
	}
	b, err := tree(after)
	if err != nil {
		return d, false, err
	}
	d = ObjectDiff{Ref: before.Ref(), Action: ActionChange}
	diffMaps(&d.Fields, "", a, b)
	return d, len(d.Fields) > 0, nil
}

// tree is an object as JSON has it.
func tree(o Object) (m map[string]any, err error) {
	data, err := json.Marshal(o.value())
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(data, &m)
}

func diffMaps(fields *[]FieldChange, prefix string, a, b map[string]any) {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		if !slices.Contains(setByState, key) {
			diffValues(fields, prefix+key, a[key], b[key])
		}
	}
}

func diffValues(fields *[]FieldChange, path string, a, b any) {
	if am, ok := a.(map[string]any); ok {
		if bm, ok := b.(map[string]any); ok {
			diffMaps(fields, path+".", am, bm)
			return
		}
	}
	ak, aok := keyed(a)
	bk, bok := keyed(b)
	if aok && bok {
		keys := slices.AppendSeq(slices.Collect(maps.Keys(ak)), maps.Keys(bk))
		slices.Sort(keys)
		n := len(*fields)
		for _, key := range slices.Compact(keys) {
			diffValues(fields, path+"["+key+"]", ak[key], bk[key])
		}
		if len(*fields) > n {
			return
		}
		// The same backends in another order are another configuration.
		if order, other := orderOf(a), orderOf(b); !slices.Equal(order, other) {
			*fields = append(*fields, FieldChange{Path: path, From: order, To: other})
		}
		return
	}
	if !reflect.DeepEqual(a, b) {
		*fields = append(*fields, FieldChange{Path: path, From: a, To: b})
	}
}

// keyed is a list of backends by key; a missing list is an empty one.
func keyed(v any) (map[string]any, bool) {
	list, ok := v.([]any)
	if !ok {
		return nil, v == nil
	}
	m := make(map[string]any, len(list))
	for _, item := range list {
		key, ok := backendKey(item)
		if !ok || m[key] != nil {
			return nil, false
		}
		m[key] = item
	}
	return m, true
}

func orderOf(v any) (keys []string) {
	list, _ := v.([]any)
	for _, item := range list {
		key, _ := backendKey(item)
		keys = append(keys, key)
	}
	return keys
}

func backendKey(item any) (string, bool) {
	m, ok := item.(map[string]any)
	if !ok {
		return "", false
	}
	text, _ := m["address"].(string)
	port, _ := m["port"].(float64)
	addr, err := netip.ParseAddr(text)
	return netip.AddrPortFrom(addr, uint16(port)).String(), err == nil
}
