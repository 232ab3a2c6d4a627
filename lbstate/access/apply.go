package access

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// Limits that are part of command version 1.
const (
	maxUsers         = 10_000
	maxTokens        = 100_000
	maxTokensPerUser = 1000
	maxRevocations   = 100_000
	maxCredentials   = 100_000
	maxIssued        = 8 // of a credential
	maxHistory       = 10_000
	maxHistoryBytes  = 8 << 20
	maxDrops         = 64 // entries of the history, by one command
)

var limits = [...]uint64{maxUsers, maxTokens, maxRevocations, maxCredentials} // in the order of kinds

// refused marks an error that is a command's result: the rules forbid it.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// malformed refuses what no Store would have proposed.
func malformed(err error) error {
	return refused{&lbstate.ValidationError{Faults: []lbstate.Fault{{Reason: err.Error()}}}}
}

// table is a view that one command changes.
type table struct {
	view
	counters
	command *accesspb.Command
	changes []change // worked out, and not written
}

// change is one object before and after; nil: there is none.
type change struct {
	ref      lbstate.Ref
	old, new *accesspb.Object
}

func (c change) outcome() string {
	switch {
	case c.new == nil:
		return lbstate.Deleted
	case c.old == nil:
		return lbstate.Created
	}
	return lbstate.Changed
}

// Apply applies commands; see the package documentation. The result for each is
// an lbstate.WriteResult, or the error that refuses it. An error of Apply itself
// means that this node cannot know what the state should be: it must stop.
func (s *State) Apply(tx *bbolt.Tx, _, index uint64, cmds [][]byte) ([]any, error) {
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
		t := &table{view: view{root}, command: c}
		if t.counters, err = t.numbers(); err != nil {
			return nil, err
		}
		res, err := t.apply()
		var refusal refused
		switch {
		case errors.As(err, &refusal):
			results[i] = refusal.error
			continue
		case err != nil:
			return nil, err
		}
		results[i] = res
		for _, ch := range t.changes {
			s.pending = append(s.pending, pending{index, t.revision, ch.old, ch.new})
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

// apply works out the whole of a command before it writes, so that one that is
// refused leaves no trace.
func (t *table) apply() (lbstate.WriteResult, error) {
	var err error
	res := lbstate.WriteResult{Revision: t.revision, Outcome: lbstate.Unchanged}
	switch k := t.command.GetKind().(type) {
	case *accesspb.Command_Put:
		res.Revision, err = t.workPut(k.Put)
	case *accesspb.Command_Delete:
		err = t.workDelete(lbstate.Ref{Kind: lbstate.Kind(k.Delete.GetKind()), Name: k.Delete.GetName()})
	case *accesspb.Command_Expire:
		err = t.workExpire(k.Expire)
	case *accesspb.Command_Issue:
		res.Revision, err = t.workIssue(k.Issue)
	default:
		err = errors.New("command of a kind that this program does not know")
	}
	if err != nil || len(t.changes) == 0 {
		return res, err
	}
	t.revision++
	res.Revision, res.Outcome = t.revision, t.changes[0].outcome()
	return res, t.commit()
}

func (t *table) precondition(ref lbstate.Ref, old *accesspb.Object) error {
	if c := t.command; c.IfRevision != nil && c.GetIfRevision() != old.GetRevision() {
		return refused{&lbstate.ConflictError{Object: string(ref.Kind) + " " + ref.Name, Current: old.GetRevision(), Wanted: c.GetIfRevision()}}
	}
	return nil
}

// workPut returns the revision that the object has if it is unchanged.
func (t *table) workPut(p *accesspb.Put) (uint64, error) {
	now := p.GetObject()
	if err := wellFormed(now); err != nil {
		return 0, malformed(err)
	}
	ref := refOf(now)
	old, err := t.object(ref)
	if err != nil {
		return 0, err
	}
	if err := t.precondition(ref, old); err != nil {
		return 0, err
	}
	switch ref.Kind {
	case KindUser:
		if p.GetKeepPassword() {
			now.GetUser().Password = old.GetUser().GetPassword()
		}
	case KindToken:
		if err := t.fits(now.GetToken(), old.GetToken()); err != nil {
			return 0, err
		}
	case KindCredential:
		now.GetCredential().Issued = old.GetCredential().GetIssued()
	}
	return old.GetRevision(), t.replace(ref, old, now)
}

// replace makes a change of an object, if it is one.
func (t *table) replace(ref lbstate.Ref, old, now *accesspb.Object) error {
	if old == nil {
		i := slices.Index(kinds, ref.Kind)
		if t.objects[i] >= limits[i] {
			return full("there are %d objects of kind %s already", limits[i], ref.Kind)
		}
	} else if before, err := bare(old); err != nil {
		return err
	} else if after, err := bare(now); err != nil || bytes.Equal(before, after) {
		return err
	}
	t.changes = append(t.changes, change{ref, old, now})
	return nil
}

// bare is the encoding of an object without what the state sets.
func bare(o *accesspb.Object) ([]byte, error) {
	return stored.Encode(&accesspb.Object{Kind: o.GetKind()})
}

// fits refuses a token that no user may have.
func (t *table) fits(now, old *accesspb.Token) error {
	user, err := t.object(lbstate.Ref{Kind: KindUser, Name: now.GetUser()})
	switch {
	case err != nil:
		return err
	case user == nil:
		return refused{fmt.Errorf("user %.80s: %w", now.GetUser(), lbstate.ErrNotFound)}
	case !Role(user.GetUser().GetRole()).May(Role(now.GetRole())):
		return refused{&lbstate.ValidationError{Faults: []lbstate.Fault{{
			Path: "role", Found: now.GetRole(), Allowed: user.GetUser().GetRole() + " or less",
			Reason: "is more than the role of user " + now.GetUser(),
		}}}}
	case old != nil && (old.GetUser() != now.GetUser() || !bytes.Equal(old.GetHash(), now.GetHash())):
		return malformed(fmt.Errorf("token %s is of another user or secret, neither of which changes", now.GetId()))
	case old != nil:
		return nil
	}
	same, err := t.tokenOf(now.GetHash())
	if err != nil {
		return err
	}
	if same != nil {
		return malformed(errors.New("another token has this secret"))
	}
	ids, err := t.tokensOf(now.GetUser())
	if err == nil && len(ids) >= maxTokensPerUser {
		err = full("user %s has %d tokens already", now.GetUser(), maxTokensPerUser)
	}
	return err
}

// full refuses what would go beyond a limit.
func full(format string, args ...any) error {
	return malformed(fmt.Errorf(format+", which is the limit: delete some first", args...))
}

func (t *table) workDelete(ref lbstate.Ref) error {
	old, err := t.object(ref)
	if err != nil {
		return err
	}
	if old == nil {
		return refused{fmt.Errorf("%s %.300s: %w", ref.Kind, ref.Name, lbstate.ErrNotFound)}
	}
	if err := t.precondition(ref, old); err != nil {
		return err
	}
	t.changes = append(t.changes, change{ref: ref, old: old})
	if ref.Kind != KindUser {
		return nil
	}
	ids, err := t.tokensOf(ref.Name)
	if err != nil {
		return err
	}
	for _, id := range ids {
		ref := lbstate.Ref{Kind: KindToken, Name: id}
		token, err := t.object(ref)
		if err != nil {
			return err
		}
		if token == nil {
			return damaged(ownedBucket, []byte(id), "the token does not exist")
		}
		t.changes = append(t.changes, change{ref: ref, old: token})
	}
	return nil
}

// workExpire drops what was over when the command was proposed, and has not
// changed since it was named.
func (t *table) workExpire(e *accesspb.Expire) error {
	seen := map[lbstate.Ref]bool{}
	for _, x := range e.GetObjects() {
		ref := lbstate.Ref{Kind: lbstate.Kind(x.GetRef().GetKind()), Name: x.GetRef().GetName()}
		old, err := t.object(ref)
		if err != nil {
			return err
		}
		if over := expires(old); old == nil || seen[ref] || old.GetRevision() != x.GetRevision() || over == 0 || over > t.command.GetAt() {
			continue
		}
		seen[ref] = true
		t.changes = append(t.changes, change{ref: ref, old: old})
	}
	return nil
}

// workIssue adds a serial to a credential, which it makes if there is none.
func (t *table) workIssue(i *accesspb.Issue) (uint64, error) {
	now := Credential{Role: i.GetRole(), Name: i.GetName()}
	ref := now.Ref()
	if err := wellFormedHolder(ref); err != nil {
		return 0, malformed(err)
	}
	if !validSerial(i.GetIssued().GetSerial()) {
		return 0, malformed(errors.New("not a serial number: " + clip(i.GetIssued().GetSerial())))
	}
	old, err := t.object(ref)
	if err != nil {
		return 0, err
	}
	next := now.proto()
	if old != nil {
		next = proto.Clone(old).(*accesspb.Object)
	}
	c := next.GetCredential()
	if slices.ContainsFunc(c.GetIssued(), func(o *accesspb.Issued) bool { return o.GetSerial() == i.GetIssued().GetSerial() }) {
		return old.GetRevision(), nil
	}
	c.Issued = append(c.Issued, i.GetIssued())
	c.Issued = c.Issued[max(0, len(c.Issued)-maxIssued):]
	return old.GetRevision(), t.replace(ref, old, next)
}

// commit writes what was worked out, as one revision.
func (t *table) commit() error {
	for i := range t.changes {
		if err := t.write(&t.changes[i]); err != nil {
			return err
		}
	}
	// A rotation makes as many certificates as there are agents: they are listed
	// with the credentials, and do not drive people's changes out of the history.
	if t.command.GetIssue() == nil {
		if err := t.account(); err != nil {
			return err
		}
	}
	return t.put(metaBucket, countersKey, t.counters.encode())
}

func (t *table) write(c *change) error {
	key := []byte(c.ref.String())
	n := &t.objects[slices.Index(kinds, c.ref.Kind)]
	if c.new == nil {
		*n--
		if err := t.delete(objectsBucket, key); err != nil {
			return err
		}
	} else {
		if c.old == nil {
			*n++
		}
		t.stamp(c)
		body, err := stored.Encode(c.new)
		if err != nil {
			return err
		}
		if err := t.put(objectsBucket, key, body); err != nil {
			return err
		}
	}
	if c.ref.Kind != KindToken || c.old != nil && c.new != nil {
		return nil
	}
	if c.new == nil {
		old := c.old.GetToken()
		return errors.Join(t.delete(hashesBucket, old.GetHash()), t.delete(ownedBucket, ownedKey(old.GetUser(), old.GetId())))
	}
	now := c.new.GetToken()
	return errors.Join(t.put(hashesBucket, now.GetHash(), []byte(now.GetId())), t.put(ownedBucket, ownedKey(now.GetUser(), now.GetId()), nil))
}

func (t *table) stamp(c *change) {
	now, cmd := c.new, t.command
	now.Revision, now.Changed, now.Changer = t.revision, cmd.GetAt(), cmd.GetAuthor()
	now.Created, now.Creator = cmd.GetAt(), cmd.GetAuthor()
	if c.old != nil {
		now.Created, now.Creator = c.old.GetCreated(), c.old.GetCreator()
	}
}

func (t *table) put(bucket, key, body []byte) error {
	return t.root.Bucket(bucket).Put(key, stored.Seal(bucket, key, body))
}

func (t *table) delete(bucket, key []byte) error { return t.root.Bucket(bucket).Delete(key) }
