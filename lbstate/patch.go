package lbstate

import (
	"context"
	"encoding/json"
	"errors"
)

// Patch changes some fields of an object: patch is a JSON Merge Patch (RFC
// 7396), as JSON or YAML, over the object as it is shown, defaults filled in. A
// field that is null goes back to its default; a list is replaced whole. A
// revision in it is a precondition like o.IfRevision; with neither, what others
// change at the same time in other fields stays. Settings that were never written
// are patched over the defaults. Errors: ErrNotFound, *SyntaxError, and Put's.
func (st *Store) Patch(ctx context.Context, ref Ref, patch []byte, o WriteOptions) (WriteResult, error) {
	var fields map[string]any
	if err := decode(patch, maxObjectBytes, func(obj *object) {
		fields, obj.m = obj.m, nil
	}); err != nil {
		return WriteResult{}, err
	}
	_, conditional := fields["revision"]
	conditional = conditional || o.IfRevision != nil
	for try := 1; ; try++ {
		old, err := st.Object(ctx, ref, ReadOptions{})
		if errors.Is(err, ErrNotFound) && ref == settingsRef {
			defaults := Settings{}.WithDefaults()
			old, err = Object{Settings: &defaults}, nil
		}
		if err != nil {
			return WriteResult{}, err
		}
		obj, err := merged(ref.Kind, old, fields)
		if err != nil {
			return WriteResult{}, err
		}
		if obj.Ref() != ref {
			return WriteResult{}, &ValidationError{[]Fault{{Path: "name", Found: clip(obj.Ref().Name), Allowed: ref.Name, Reason: "cannot be changed: an object is not renamed"}}}
		}
		op := Operation{Put: obj, IfRevision: o.IfRevision}
		if !conditional {
			op.IfRevision = new(uint64)
			*op.IfRevision = old.Revision()
		}
		res, err := st.patch(ctx, ref, fields, op, o)
		var conflict *ConflictError
		if !conditional && errors.As(err, &conflict) && try < maxStale {
			continue
		}
		return res, err
	}
}

// patch proposes one try. Under an idempotency key the patch is what was asked
// for, not what it made of the object that it met.
func (st *Store) patch(ctx context.Context, ref Ref, fields map[string]any, op Operation, o WriteOptions) (WriteResult, error) {
	o.IfRevision = nil
	tx, warnings, err := st.transaction(ctx, []Operation{op})
	if err != nil {
		return WriteResult{}, err
	}
	request := struct {
		Patch  Ref
		Fields map[string]any
	}{ref, fields}
	res, err := st.propose(ctx, o, request, transactionCommand(tx))
	if err == nil {
		res.Warnings = warnings
	}
	return res.single(), err
}

// merged is an object with a merge patch applied.
func merged(kind Kind, old Object, fields map[string]any) (Object, error) {
	data, err := json.Marshal(old.value())
	if err != nil {
		return Object{}, err
	}
	m, err := parse(data)
	if err != nil {
		return Object{}, err
	}
	delete(m, "revision")
	return decodeObjectTree(kind, mergePatch(m, fields))
}

// mergePatch is MergePatch of RFC 7396, section 2. It changes neither argument.
func mergePatch(target any, patch map[string]any) map[string]any {
	out := map[string]any{}
	if m, ok := target.(map[string]any); ok {
		for k, v := range m {
			out[k] = v
		}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			out[k] = mergePatch(out[k], v)
		default:
			out[k] = copied(v)
		}
	}
	return out
}

// copied is a value without what it shares.
func copied(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, item := range v {
			m[k] = copied(item)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = copied(item)
		}
		return list
	}
	return v
}
