package access

import (
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// Entry is one revision: who changed what, when and why.
type Entry struct {
	Revision uint64          `json:"revision"`
	At       time.Time       `json:"at"`
	Author   string          `json:"author"`
	Reason   string          `json:"reason,omitempty"`
	Objects  []ChangedObject `json:"objects"`
}

// ChangedObject is what a revision made of one object.
type ChangedObject struct {
	lbstate.Ref
	Outcome string         `json:"outcome"` // created, changed or deleted
	Fields  []ChangedField `json:"fields"`
}

// ChangedField is a field before and after. Of secrets it says no more than
// that there is one.
type ChangedField struct {
	Name   string `json:"name"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// account adds the current revision to the history, and drops what the limits
// no longer allow.
func (t *table) account() error {
	c := t.command
	entry := &accesspb.Change{At: c.GetAt(), Author: c.GetAuthor(), Reason: c.GetReason()}
	for _, ch := range t.changes {
		entry.Objects = append(entry.Objects, &accesspb.ChangedObject{
			Kind: string(ch.ref.Kind), Name: ch.ref.Name, Outcome: ch.outcome(), Fields: fieldsBetween(ch.old, ch.new),
		})
	}
	body, err := stored.Encode(entry)
	if err != nil {
		return err
	}
	if err := t.put(historyBucket, stored.NumberKey(t.revision), body); err != nil {
		return err
	}
	t.history++
	t.historyBytes += uint64(len(body))
	for range maxDrops {
		if t.history <= 1 || t.history <= maxHistory && t.historyBytes <= maxHistoryBytes {
			break
		}
		oldest := t.root.Bucket(historyBucket).Cursor()
		k, data := oldest.First()
		body, err := unseal(historyBucket, k, data)
		if err != nil {
			return err
		}
		t.history--
		t.historyBytes -= uint64(len(body))
		if err := oldest.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// field is one thing that an object says. secret is not shown.
type field struct{ name, value, secret string }

func fieldsBetween(old, now *accesspb.Object) (changed []*accesspb.ChangedField) {
	before, after := fieldsOf(old), fieldsOf(now)
	for i := range max(len(before), len(after)) {
		var b, a field
		if i < len(before) {
			b = before[i]
		}
		if i < len(after) {
			a = after[i]
		}
		if b.value != a.value || b.secret != a.secret {
			name := a.name
			if now == nil {
				name = b.name
			}
			changed = append(changed, &accesspb.ChangedField{Name: name, Before: b.value, After: a.value})
		}
	}
	return changed
}

// fieldsOf lists what an object says, always in the same order; of nil nothing.
// It is part of command version 1.
func fieldsOf(o *accesspb.Object) []field {
	switch o.GetKind().(type) {
	case *accesspb.Object_User:
		u := o.GetUser()
		password := field{name: "password", secret: u.GetPassword()}
		if u.GetPassword() != "" {
			password.value = "set"
		}
		return []field{{name: "role", value: u.GetRole()}, {name: "disabled", value: yes(u.GetDisabled())}, {name: "note", value: u.GetNote()}, password}
	case *accesspb.Object_Token:
		t := o.GetToken()
		return []field{
			{name: "user", value: t.GetUser()},
			{name: "role", value: t.GetRole()},
			{name: "expires", value: when(t.GetExpires())},
			{name: "note", value: t.GetNote()},
			{name: "session", value: yes(t.GetSession())},
		}
	case *accesspb.Object_Revocation:
		r := o.GetRevocation()
		return []field{{name: "reason", value: r.GetReason()}, {name: "until", value: when(r.GetUntil())}}
	case *accesspb.Object_Credential:
		c := o.GetCredential()
		return []field{{name: "labels", value: labelsText(c.GetLabels())}, {name: "note", value: c.GetNote()}}
	}
	return nil
}

func yes(b bool) string {
	if b {
		return "true"
	}
	return ""
}

func when(ms int64) string {
	if ms == 0 {
		return ""
	}
	return moment(ms).Format("2006-01-02T15:04:05.000Z")
}

func labelsText(l *accesspb.Labels) string {
	if l == nil {
		return "" // those of the certificate
	}
	pairs := make([]string, len(l.GetLabels()))
	for i, p := range l.GetLabels() {
		pairs[i] = p.GetKey() + "=" + p.GetValue()
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

func entryFrom(revision uint64, c *accesspb.Change) Entry {
	e := Entry{Revision: revision, At: moment(c.GetAt()), Author: c.GetAuthor(), Reason: c.GetReason(), Objects: []ChangedObject{}}
	for _, o := range c.GetObjects() {
		changed := ChangedObject{Ref: lbstate.Ref{Kind: lbstate.Kind(o.GetKind()), Name: o.GetName()}, Outcome: o.GetOutcome(), Fields: []ChangedField{}}
		for _, f := range o.GetFields() {
			changed.Fields = append(changed.Fields, ChangedField{f.GetName(), f.GetBefore(), f.GetAfter()})
		}
		e.Objects = append(e.Objects, changed)
	}
	return e
}
