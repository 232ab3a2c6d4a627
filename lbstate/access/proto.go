package access

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
)

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func (u User) proto() *accesspb.Object {
	p := &accesspb.User{Name: u.Name, Role: string(u.Role), Disabled: u.Disabled, Note: u.Note}
	if u.PasswordHash != nil {
		p.Password = *u.PasswordHash
	}
	return &accesspb.Object{Kind: &accesspb.Object_User{User: p}}
}

func (t Token) proto() *accesspb.Object {
	return &accesspb.Object{Kind: &accesspb.Object_Token{Token: &accesspb.Token{
		Id: t.ID, Hash: t.Hash[:], User: t.User, Role: string(t.Role), Expires: millis(t.Expires), Note: t.Note, Session: t.Session,
	}}}
}

func (r Revocation) proto() *accesspb.Object {
	return &accesspb.Object{Kind: &accesspb.Object_Revocation{Revocation: &accesspb.Revocation{
		Kind: r.Kind, Name: r.Name, Reason: r.Reason, Until: millis(r.Until),
	}}}
}

func (c Credential) proto() *accesspb.Object {
	p := &accesspb.Credential{Role: c.Role, Name: c.Name, Note: c.Note}
	if c.Labels != nil {
		p.Labels = &accesspb.Labels{}
		for _, k := range sortedKeys(c.Labels) {
			p.Labels.Labels = append(p.Labels.Labels, &accesspb.Label{Key: k, Value: c.Labels[k]})
		}
	}
	return &accesspb.Object{Kind: &accesspb.Object_Credential{Credential: p}}
}

func stampFrom(o *accesspb.Object) Stamp {
	return Stamp{
		Revision: o.GetRevision(), Created: moment(o.GetCreated()), Creator: o.GetCreator(),
		Changed: moment(o.GetChanged()), Changer: o.GetChanger(),
	}
}

func userFrom(o *accesspb.Object) User {
	p := o.GetUser()
	password := p.GetPassword()
	return User{Name: p.GetName(), Role: Role(p.GetRole()), Disabled: p.GetDisabled(), Note: p.GetNote(), PasswordHash: &password, Stamp: stampFrom(o)}
}

func tokenFrom(o *accesspb.Object) Token {
	p := o.GetToken()
	t := Token{ID: p.GetId(), User: p.GetUser(), Role: Role(p.GetRole()), Expires: moment(p.GetExpires()), Note: p.GetNote(), Session: p.GetSession(), Stamp: stampFrom(o)}
	copy(t.Hash[:], p.GetHash())
	return t
}

func revocationFrom(o *accesspb.Object) Revocation {
	p := o.GetRevocation()
	return Revocation{Kind: p.GetKind(), Name: p.GetName(), Reason: p.GetReason(), Until: moment(p.GetUntil()), Stamp: stampFrom(o)}
}

func credentialFrom(o *accesspb.Object) Credential {
	p := o.GetCredential()
	c := Credential{Role: p.GetRole(), Name: p.GetName(), Note: p.GetNote(), Stamp: stampFrom(o)}
	if p.GetLabels() != nil {
		c.Labels = map[string]string{}
		for _, l := range p.GetLabels().GetLabels() {
			c.Labels[l.GetKey()] = l.GetValue()
		}
	}
	for _, i := range p.GetIssued() {
		c.Issued = append(c.Issued, Issued{Serial: i.GetSerial(), NotAfter: moment(i.GetNotAfter()), At: moment(i.GetAt())})
	}
	return c
}

// refOf names an object, which has a kind that this program knows.
func refOf(o *accesspb.Object) lbstate.Ref {
	switch o.GetKind().(type) {
	case *accesspb.Object_User:
		return lbstate.Ref{Kind: KindUser, Name: o.GetUser().GetName()}
	case *accesspb.Object_Token:
		return lbstate.Ref{Kind: KindToken, Name: o.GetToken().GetId()}
	case *accesspb.Object_Revocation:
		return lbstate.Ref{Kind: KindRevocation, Name: o.GetRevocation().GetKind() + "/" + o.GetRevocation().GetName()}
	}
	return lbstate.Ref{Kind: KindCredential, Name: o.GetCredential().GetRole() + "/" + o.GetCredential().GetName()}
}

// expires is when an object is over, in Unix milliseconds; 0: never.
func expires(o *accesspb.Object) int64 {
	return o.GetToken().GetExpires() + o.GetRevocation().GetUntil()
}

// wellFormed says what no Store would have proposed. It is part of command
// version 1.
func wellFormed(o *accesspb.Object) error {
	ref := refOf(o)
	switch o.GetKind().(type) {
	case *accesspb.Object_User:
		if !validName(ref.Name, maxName) || !Role(o.GetUser().GetRole()).known() {
			return fmt.Errorf("user %.80q with role %.20q", ref.Name, o.GetUser().GetRole())
		}
	case *accesspb.Object_Token:
		t := o.GetToken()
		if !validName(ref.Name, maxName) || !Role(t.GetRole()).known() {
			return fmt.Errorf("token %.80q with role %.20q", ref.Name, t.GetRole())
		}
		if len(t.GetHash()) != sha256.Size {
			return fmt.Errorf("the hash of a token's secret has %d bytes, not %d", len(t.GetHash()), sha256.Size)
		}
	default:
		return wellFormedHolder(ref)
	}
	return nil
}

func wellFormedHolder(ref lbstate.Ref) error {
	role, name, _ := strings.Cut(ref.Name, "/")
	ok := validName(name, maxHolder)
	switch role {
	case holderServer, holderAgent, holderOperator:
	case bySerial:
		ok = validSerial(name) && ref.Kind == KindRevocation
	default:
		ok = false
	}
	if !ok {
		return errors.New("neither the name of a holder of certificates nor a serial: " + clip(ref.Name))
	}
	return nil
}

func clip(s string) string { return fmt.Sprintf("%.100q", s) }
