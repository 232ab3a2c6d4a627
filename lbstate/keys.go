package lbstate

import (
	"fmt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// KeyReusedError says that an idempotency key was used before, for another
// change; nothing was written.
type KeyReusedError struct{ Key string }

func (e *KeyReusedError) Error() string {
	return fmt.Sprintf("idempotency key %q was used for another change: a new change needs a key of its own", e.Key)
}

// done returns what a command did that was applied under the same key.
func (v view) done(c *lbstatepb.Command) (BatchResult, bool, error) {
	var d lbstatepb.Done
	known, err := v.message(keysBucket, []byte(c.GetKey()), &d)
	if err != nil || !known {
		return BatchResult{}, false, err
	}
	if d.GetRequest() != c.GetRequest() {
		return BatchResult{}, false, refused{&KeyReusedError{c.GetKey()}}
	}
	res := BatchResult{Revision: d.GetRevision()}
	for _, o := range d.GetOutcomes() {
		res.Objects = append(res.Objects, ObjectOutcome{Ref{Kind(o.GetKind()), o.GetName()}, o.GetOutcome(), o.GetRevision()})
	}
	res.Outcome = overall(res.Objects)
	return res, true, nil
}

// remember keeps what a command did under its key, and forgets the oldest key
// that the limit no longer allows.
func (t *table) remember(c *lbstatepb.Command, res BatchResult) error {
	d := &lbstatepb.Done{Request: c.GetRequest(), Revision: res.Revision}
	for _, o := range res.Objects {
		d.Outcomes = append(d.Outcomes, &lbstatepb.ObjectOutcome{Kind: string(o.Kind), Name: o.Name, Outcome: o.Outcome, Revision: o.Revision})
	}
	body, err := encode(d)
	if err != nil {
		return err
	}
	if err := t.put(keysBucket, []byte(c.GetKey()), body); err != nil {
		return err
	}
	t.keys++
	if err := t.put(keyOrderBucket, revisionKey(t.keys), []byte(c.GetKey())); err != nil {
		return err
	}
	settings, err := t.settings()
	if err != nil {
		return err
	}
	order := t.root.Bucket(keyOrderBucket).Cursor()
	for range maxDrops {
		k, data := order.First()
		if k == nil || t.keys-min(t.keys, number(k)) < uint64(settings.IdempotencyKeys) {
			return nil
		}
		key, err := unseal(keyOrderBucket, k, data)
		if err != nil {
			return err
		}
		if err := t.delete(keysBucket, key); err != nil {
			return err
		}
		if err := order.Delete(); err != nil {
			return err
		}
	}
	return nil
}
