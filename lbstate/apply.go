package lbstate

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// table is a view that one command changes.
type table struct {
	view
	counters
	term  uint64       // of the entry that the command came in
	at    int64        // Unix milliseconds, by the proposer's clock
	fresh []indexEntry // to be written at the end of the command
}

// Apply applies commands; see the package documentation. The result for each
// is a BatchResult, or the error that refuses it. An error of Apply itself
// means that this node cannot know what the state should be: it must stop.
func (s *State) Apply(tx *bbolt.Tx, term, _ uint64, cmds [][]byte) ([]any, error) {
	root, err := rootBucket(tx)
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, data := range cmds {
		c, err := decodeCommand(data)
		if err != nil {
			return nil, err
		}
		t := &table{view: view{root}, term: term, at: c.GetAt()}
		if t.counters, err = t.numbers(); err != nil {
			return nil, err
		}
		before := t.revision
		res, err := t.apply(c)
		s.dirty = s.dirty || t.revision != before
		var refusal refused
		switch {
		case errors.As(err, &refusal):
			results[i] = refusal.error
		case err != nil:
			return nil, err
		default:
			results[i] = res
		}
	}
	return results, nil
}

// rootBucket returns the state's bucket, which the first command makes with all
// that is in it.
func rootBucket(tx *bbolt.Tx) (*bbolt.Bucket, error) {
	if root := tx.Bucket([]byte(Bucket)); root != nil {
		return root, nil
	}
	root, err := tx.CreateBucket([]byte(Bucket))
	if err != nil {
		return nil, err
	}
	for _, b := range buckets {
		if _, err := root.CreateBucket(b); err != nil {
			return nil, err
		}
	}
	return root, nil
}

func (t *table) apply(c *lbstatepb.Command) (BatchResult, error) {
	if c.GetKey() != "" {
		res, known, err := t.done(c)
		if err != nil || known {
			return res, err
		}
	}
	res, err := t.change(c)
	if err != nil {
		return res, err
	}
	if c.GetKey() != "" {
		if err := t.remember(c, res); err != nil {
			return res, err
		}
	}
	return res, t.put(metaBucket, countersKey, t.counters.encode())
}

func (t *table) change(c *lbstatepb.Command) (BatchResult, error) {
	switch k := c.GetKind().(type) {
	case *lbstatepb.Command_Transaction:
		x := newTxn(t.view, t.revision, t.at)
		for _, op := range k.Transaction.GetOperations() {
			if err := x.operate(op); err != nil {
				return BatchResult{}, err
			}
		}
		return t.commit(c, x)
	case *lbstatepb.Command_Rollback:
		x, err := t.rollback(k.Rollback)
		if err != nil {
			return BatchResult{}, err
		}
		return t.commit(c, x)
	case *lbstatepb.Command_Health:
		return t.reportHealth(k.Health.GetTransitions())
	case *lbstatepb.Command_PruneHistory:
		return t.pruneHistory(k.PruneHistory.GetBefore())
	}
	return BatchResult{}, errors.New("command of a kind that this program does not know")
}

// commit writes what a transaction makes, as one revision.
func (t *table) commit(c *lbstatepb.Command, x *txn) (BatchResult, error) {
	if err := x.settle(); err != nil {
		return BatchResult{}, err
	}
	res := x.result()
	changed := x.changed()
	if len(changed) == 0 {
		return res, nil
	}
	t.revision = x.rev
	// All that goes leaves before anything comes, so that two services can swap
	// their listeners.
	for _, ch := range changed {
		if s := ch.old.Service; s != nil && !ch.keepsListener() {
			if err := t.unlist(*s); err != nil {
				return res, err
			}
		}
	}
	names := make([]string, 0, len(changed))
	for _, ch := range changed {
		if err := t.write(ch); err != nil {
			return res, err
		}
		names = append(names, ch.ref.String())
	}
	if err := t.indexFresh(); err != nil {
		return res, err
	}
	if err := t.account(c, changed); err != nil {
		return res, err
	}
	slices.Sort(names)
	return res, t.publish(names)
}

// write stores one changed object, and what depends on it.
func (t *table) write(c *change) error {
	key := []byte(c.ref.String())
	if !c.new.exists() {
		if err := t.delete(objectsBucket, key); err != nil {
			return err
		}
	} else if err := t.put(objectsBucket, key, c.body); err != nil {
		return err
	}
	if c.ref.Kind != KindService {
		return nil
	}
	if s := c.new.Service; s != nil && !c.keepsListener() {
		if err := t.put(listenersBucket, []byte(s.listenerKey()), []byte(s.Name)); err != nil {
			return err
		}
	}
	if err := t.index(c.old.Service, c.new.Service); err != nil {
		return err
	}
	return t.keepHealth(c.old.Service, c.new.Service)
}

// keepsListener says whether a service has the listener that it had.
func (c *change) keepsListener() bool {
	old, now := c.old.Service, c.new.Service
	return old != nil && now != nil && old.VIP == now.VIP && old.Port == now.Port && old.Protocol == now.Protocol &&
		old.FWMark == now.FWMark && old.Family == now.Family
}

// index makes the indexes of a service's addresses and checks what its new
// form says. Either form may be nil.
func (t *table) index(old, now *Service) error {
	if old != nil && now != nil && old.indexedLike(now) {
		return nil
	}
	var before, after []indexEntry
	if old != nil {
		before = old.indexed()
	}
	if now != nil {
		after = now.indexed()
	}
	if slices.Equal(before, after) {
		return nil
	}
	fresh := map[indexEntry]bool{}
	for _, e := range after {
		fresh[e] = true
	}
	for _, e := range before {
		if fresh[e] {
			delete(fresh, e)
		} else if err := t.delete([]byte(e.bucket), []byte(e.key)); err != nil {
			return err
		}
	}
	for _, e := range after {
		if fresh[e] {
			t.fresh = append(t.fresh, e)
		}
	}
	return nil
}

// indexFresh writes what index has found to be new, in the order of keys: bbolt
// splits no page before the end of a transaction, so keys out of order would
// each move all that come after.
func (t *table) indexFresh() error {
	slices.SortFunc(t.fresh, func(a, b indexEntry) int {
		return cmp.Or(strings.Compare(a.bucket, b.bucket), strings.Compare(a.key, b.key))
	})
	for _, e := range t.fresh {
		if err := t.put([]byte(e.bucket), []byte(e.key), nil); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) unlist(s Service) error { return t.delete(listenersBucket, []byte(s.listenerKey())) }

// publish tells what the current revision changed to those who watch, and
// forgets the revisions that are kept no longer.
func (t *table) publish(names []string) error {
	body, err := encode(&lbstatepb.Names{Names: names})
	if err != nil {
		return err
	}
	if err := t.put(changesBucket, revisionKey(t.revision), body); err != nil {
		return err
	}
	settings, err := t.settings()
	if err != nil {
		return err
	}
	return t.dropFirst(changesBucket, t.revision-min(t.revision, uint64(settings.ChangeRevisions)))
}

// maxDrops bounds what one command drops from a list that grows by at most one
// a command, so that a limit that was lowered does not stall a command.
const maxDrops = 64

// dropFirst drops the entries up to a number from a bucket whose keys are
// numbers.
func (t *table) dropFirst(bucket []byte, last uint64) error {
	c := t.root.Bucket(bucket).Cursor()
	for range maxDrops {
		k, _ := c.First()
		if k == nil || number(k) > last {
			return nil
		}
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) put(bucket, key, body []byte) error {
	return t.root.Bucket(bucket).Put(key, seal(bucket, key, body))
}

func (t *table) delete(bucket, key []byte) error { return t.root.Bucket(bucket).Delete(key) }

// unmarshal reads a value that this program or an older one wrote.
func unmarshal(bucket, key, body []byte, into proto.Message) error {
	if err := proto.Unmarshal(body, into); err != nil {
		return damaged(bucket, key, err.Error())
	}
	return nil
}
