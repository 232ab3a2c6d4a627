package lbstate

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// HistoryEntry is the account of one revision of the configuration.
type HistoryEntry struct {
	Revision uint64          `json:"revision"`
	At       time.Time       `json:"at"` // by the proposer's clock
	Author   string          `json:"author,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Objects  []ObjectHistory `json:"objects"`
}

// ObjectHistory says what became of an object in a revision.
type ObjectHistory struct {
	Ref
	Outcome string `json:"outcome"`
	Before  uint64 `json:"before,omitempty"` // its revision before; 0: it did not exist
}

// HistoryOptions say what to list.
type HistoryOptions struct {
	ReadOptions
	Before uint64 // only earlier revisions; 0: from the newest on
	Limit  int    // default 100, at most 1000
	Object Ref    // only revisions that changed it; zero: all
}

// History lists the revisions of the configuration that are kept, newest
// first.
func (st *Store) History(ctx context.Context, o HistoryOptions) (entries []HistoryEntry, err error) {
	limit := min(o.Limit, 1000)
	if limit <= 0 {
		limit = 100
	}
	err = st.read(ctx, o.ReadOptions, func(r *reader) error {
		return r.newest(o.Before, func(revision uint64, p *lbstatepb.Change) bool {
			if e := historyEntry(revision, p); o.Object == (Ref{}) || slices.ContainsFunc(e.Objects, func(h ObjectHistory) bool { return h.Ref == o.Object }) {
				entries = append(entries, e)
			}
			return len(entries) < limit
		})
	})
	return entries, err
}

func historyEntry(revision uint64, p *lbstatepb.Change) HistoryEntry {
	e := HistoryEntry{Revision: revision, At: time.UnixMilli(p.GetAt()).UTC(), Author: p.GetAuthor(), Reason: p.GetReason()}
	for _, o := range p.GetObjects() {
		e.Objects = append(e.Objects, ObjectHistory{Ref{Kind(o.GetKind()), o.GetName()}, o.GetOutcome(), o.GetBefore()})
	}
	return e
}

// At returns the configuration as it was at a revision: of health too, which
// changes no configuration. Errors: ErrCompacted, ErrNotFound for one that is
// yet to come.
func (st *Store) At(ctx context.Context, revision uint64, o ReadOptions) (c Configuration, err error) {
	err = st.read(ctx, o, func(r *reader) error {
		if err := plainly(r.kept(revision)); err != nil {
			return err
		}
		refs, err := r.ever()
		if err != nil {
			return err
		}
		for _, ref := range refs {
			rec, err := r.recordAt(ref, revision)
			if err != nil {
				return err
			}
			c.add(rec.Object)
		}
		return nil
	})
	return c, err
}

// Configuration returns the present configuration, and its revision.
func (st *Store) Configuration(ctx context.Context, o ReadOptions) (c Configuration, revision uint64, err error) {
	err = st.read(ctx, o, func(r *reader) error {
		revision = r.config
		for _, kind := range kinds {
			if err := r.each(kind, nil, func(rec record) error {
				c.add(rec.Object)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return c, revision, err
}

// Diff compares the configurations of two revisions, object by object: what
// makes the second of the first. Errors are At's.
func (st *Store) Diff(ctx context.Context, from, to uint64, o ReadOptions) (diffs []ObjectDiff, err error) {
	err = st.read(ctx, o, func(r *reader) error {
		if err := plainly(errors.Join(r.kept(from), r.kept(to))); err != nil {
			return err
		}
		refs, err := r.touched(min(from, to), max(from, to))
		if err != nil {
			return err
		}
		sortRefs(refs)
		for _, ref := range refs {
			before, err := r.recordAt(ref, from)
			if err != nil {
				return err
			}
			after, err := r.recordAt(ref, to)
			if err != nil {
				return err
			}
			d, ok, err := diffObjects(before.Object, after.Object)
			if err != nil {
				return err
			}
			if ok {
				diffs = append(diffs, d)
			}
		}
		return nil
	})
	return diffs, err
}

// Rollback makes the configuration what it was at a revision, as a new one.
// With o.IfRevision it does so only if that is the revision of the last change
// of any configuration: what was reviewed is then what happens. The health of
// backends that stay is kept. Errors are At's and Transact's.
func (st *Store) Rollback(ctx context.Context, revision uint64, o WriteOptions) (BatchResult, error) {
	p := &lbstatepb.Rollback{To: revision, IfRevision: o.IfRevision}
	request := struct {
		Rollback   uint64
		IfRevision *uint64
	}{revision, o.IfRevision}
	return st.propose(ctx, o, request, &lbstatepb.Command{Kind: &lbstatepb.Command_Rollback{Rollback: p}})
}

// PruneHistory drops the entries of the history that are older than the
// settings allow (Settings.HistoryAge), by the clock of this node, and returns
// whether there were any. Someone has to call it now and then, such as the
// leader, since no clock is read when commands are applied.
func (st *Store) PruneHistory(ctx context.Context, o WriteOptions) (pruned bool, err error) {
	for {
		var before uint64
		err := st.read(ctx, ReadOptions{}, func(r *reader) error {
			settings, err := r.settings()
			if err != nil || settings.HistoryAge == 0 {
				return err
			}
			oldest := st.now().Add(-time.Duration(settings.HistoryAge)).UnixMilli()
			n := 0
			return r.entries(0, r.revision, func(revision uint64, p *lbstatepb.Change) (bool, error) {
				if p.GetAt() >= oldest {
					return false, nil
				}
				before = revision + 1
				n++
				return n < maxPruned, nil
			})
		})
		if err != nil || before == 0 {
			return pruned, err
		}
		_, err = st.propose(ctx, o, nil, &lbstatepb.Command{Kind: &lbstatepb.Command_PruneHistory{PruneHistory: &lbstatepb.PruneHistory{Before: before}}})
		if err != nil {
			return pruned, err
		}
		pruned = true
	}
}

// plainly takes the mark of a command's refusal off an error.
func plainly(err error) error {
	var r refused
	if errors.As(err, &r) {
		return r.error
	}
	return err
}
