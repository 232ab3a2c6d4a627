package lbstate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// The history keeps, for each revision that changed the configuration, who
// changed what, and the form that each changed object had before. Dropping the
// oldest entry so frees exactly what it kept, and a write costs the same
// however long the history is.

// ErrCompacted says that the history no longer has a revision.
var ErrCompacted = errors.New("is no longer kept")

// versionKey is where the form that an object got in a revision rests once it
// is no longer the object's present one.
func versionKey(ref Ref, revision uint64) []byte {
	return append(pairKey(ref.String(), ""), revisionKey(revision)...)
}

// account adds the current revision to the history, with the forms that it
// replaced, and drops what the limits no longer allow.
func (t *table) account(c *lbstatepb.Command, changed []*change) error {
	entry := &lbstatepb.Change{At: t.at, Author: c.GetAuthor(), Reason: c.GetReason()}
	size := 0
	for _, ch := range changed {
		before := ch.old.Revision()
		entry.Objects = append(entry.Objects, &lbstatepb.ChangedObject{Kind: string(ch.ref.Kind), Name: ch.ref.Name, Before: before, Outcome: ch.outcome})
		if before != 0 {
			key := versionKey(ch.ref, before)
			if err := t.put(versionsBucket, key, ch.old.raw); err != nil {
				return err
			}
			size += len(key) + len(ch.old.raw)
		}
		if ch.outcome == Deleted {
			key := versionKey(ch.ref, t.revision)
			if err := t.put(versionsBucket, key, nil); err != nil {
				return err
			}
			size += len(key)
		}
	}
	entry.Bytes = uint64(size + proto.Size(entry)) // of the entry without this
	body, err := encode(entry)
	if err != nil {
		return err
	}
	if err := t.put(historyBucket, revisionKey(t.revision), body); err != nil {
		return err
	}
	t.config = t.revision
	t.history++
	t.historyBytes += entry.GetBytes()
	settings, err := t.settings()
	if err != nil {
		return err
	}
	for range maxDrops {
		if t.history <= uint64(settings.HistoryRevisions) && t.historyBytes <= uint64(settings.HistoryBytes) {
			return nil
		}
		if err := t.dropOldest(); err != nil {
			return err
		}
	}
	return nil
}

// dropOldest drops the oldest entry, and the forms that only it needed.
func (t *table) dropOldest() error {
	c := t.root.Bucket(historyBucket).Cursor()
	k, data := c.First()
	body, err := unseal(historyBucket, k, data)
	if err != nil {
		return err
	}
	var entry lbstatepb.Change
	if err := unmarshal(historyBucket, k, body, &entry); err != nil {
		return err
	}
	revision := number(k)
	for _, o := range entry.GetObjects() {
		ref := Ref{Kind(o.GetKind()), o.GetName()}
		if err := t.delete(versionsBucket, versionKey(ref, o.GetBefore())); err != nil {
			return err
		}
		if o.GetOutcome() == Deleted {
			if err := t.delete(versionsBucket, versionKey(ref, revision)); err != nil {
				return err
			}
		}
	}
	t.history--
	t.historyBytes -= entry.GetBytes()
	t.floor = revision
	return c.Delete()
}

// maxPruned is how many entries one command may name to be dropped.
const maxPruned = 1000

// pruneHistory drops the entries of before a revision, at most maxPruned.
func (t *table) pruneHistory(before uint64) (BatchResult, error) {
	res := BatchResult{Revision: t.revision, Outcome: Unchanged}
	for range maxPruned {
		k, _ := t.root.Bucket(historyBucket).Cursor().First()
		if k == nil || number(k) >= before {
			break
		}
		if err := t.dropOldest(); err != nil {
			return res, err
		}
		res.Outcome = Changed
	}
	return res, nil
}

// kept refuses a revision that the state has not had, or whose configuration
// is no longer known.
func (v view) kept(revision uint64) error {
	n, err := v.numbers()
	switch {
	case err != nil:
		return err
	case revision > n.revision:
		return refused{fmt.Errorf("revision %d: the state is at %d: %w", revision, n.revision, ErrNotFound)}
	case revision < n.floor:
		return refused{fmt.Errorf("revision %d %w: the history goes back to %d", revision, ErrCompacted, n.floor)}
	}
	return nil
}

// recordAt returns an object as it was at a revision that is kept; it does not exist
// where there was none.
func (v view) recordAt(ref Ref, revision uint64) (record, error) {
	now, ok, err := v.record(ref)
	if err != nil || ok && now.Revision() <= revision || v.root == nil {
		return now, err
	}
	key := versionKey(ref, revision)
	prefix := key[:len(key)-8]
	c := v.root.Bucket(versionsBucket).Cursor()
	var data []byte
	k, _ := c.Seek(versionKey(ref, revision+1))
	if k == nil {
		k, data = c.Last()
	} else {
		k, data = c.Prev()
	}
	if !bytes.HasPrefix(k, prefix) || len(k) != len(key) {
		return record{}, nil
	}
	body, err := unseal(versionsBucket, k, data)
	if err != nil || len(body) == 0 {
		return record{}, err
	}
	r, err := decodeRecord(ref.Kind, body)
	if err != nil {
		return record{}, damaged(versionsBucket, k, err.Error())
	}
	return r, nil
}

// entries calls fn with the history's entries after a revision, up to another,
// oldest first, until fn returns false.
func (v view) entries(after, upTo uint64, fn func(revision uint64, entry *lbstatepb.Change) (bool, error)) error {
	if v.root == nil {
		return nil
	}
	c := v.root.Bucket(historyBucket).Cursor()
	for k, data := c.Seek(revisionKey(after + 1)); k != nil && number(k) <= upTo; k, data = c.Next() {
		body, err := unseal(historyBucket, k, data)
		if err != nil {
			return err
		}
		var entry lbstatepb.Change
		if err := unmarshal(historyBucket, k, body, &entry); err != nil {
			return err
		}
		if more, err := fn(number(k), &entry); err != nil || !more {
			return err
		}
	}
	return nil
}

// newest calls fn with the history's entries before a revision (0: all), newest
// first, until fn returns false.
func (v view) newest(before uint64, fn func(revision uint64, entry *lbstatepb.Change) bool) error {
	if v.root == nil {
		return nil
	}
	c := v.root.Bucket(historyBucket).Cursor()
	k, data := c.Last()
	if before != 0 {
		if k, data = c.Seek(revisionKey(before)); k == nil {
			k, data = c.Last()
		}
	}
	for ; k != nil; k, data = c.Prev() {
		if before != 0 && number(k) >= before {
			continue
		}
		body, err := unseal(historyBucket, k, data)
		if err != nil {
			return err
		}
		var entry lbstatepb.Change
		if err := unmarshal(historyBucket, k, body, &entry); err != nil {
			return err
		}
		if !fn(number(k), &entry) {
			return nil
		}
	}
	return nil
}

// ever lists the objects that exist, and those that the history still has a
// form of, in the order of kinds, then by name.
func (v view) ever() ([]Ref, error) {
	seen := map[string]bool{}
	if v.root == nil {
		return nil, nil
	}
	c := v.root.Bucket(objectsBucket).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		seen[string(k)] = true
	}
	c = v.root.Bucket(versionsBucket).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if len(k) < 9 {
			return nil, damaged(versionsBucket, k, "is no name and revision")
		}
		seen[string(k[:len(k)-9])] = true
	}
	refs := make([]Ref, 0, len(seen))
	for name := range seen {
		ref, err := parseRef(name)
		if err != nil {
			return nil, damaged(objectsBucket, []byte(name), err.Error())
		}
		refs = append(refs, ref)
	}
	sortRefs(refs)
	return refs, nil
}

// sortRefs sorts by kind, in the order in which objects are created, then by
// name.
func sortRefs(refs []Ref) {
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)), cmp.Compare(a.Name, b.Name))
	})
}

// touched lists the objects that the configuration changed after a revision,
// up to another, each once, in the order of their first change.
func (v view) touched(after, upTo uint64) ([]Ref, error) {
	seen := map[Ref]bool{}
	var refs []Ref
	err := v.entries(after, upTo, func(_ uint64, entry *lbstatepb.Change) (bool, error) {
		for _, o := range entry.GetObjects() {
			ref := Ref{Kind(o.GetKind()), o.GetName()}
			if !seen[ref] {
				seen[ref] = true
				refs = append(refs, ref)
			}
		}
		return true, nil
	})
	return refs, err
}

// rollback is the transaction that makes the configuration what it was.
func (t *table) rollback(r *lbstatepb.Rollback) (*txn, error) {
	if r.IfRevision != nil && r.GetIfRevision() != t.config {
		return nil, refused{&ConflictError{Object: "configuration", Current: t.config, Wanted: r.GetIfRevision()}}
	}
	if err := t.kept(r.GetTo()); err != nil {
		return nil, err
	}
	refs, err := t.touched(r.GetTo(), t.revision)
	if err != nil {
		return nil, err
	}
	x := newTxn(t.view, t.revision, t.at)
	for _, ref := range refs {
		c, err := x.load(ref)
		if err != nil {
			return nil, err
		}
		if c.new, err = t.recordAt(ref, r.GetTo()); err != nil {
			return nil, err
		}
		c.new.raw, c.put = nil, true
	}
	return x, nil
}
