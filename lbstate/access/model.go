package access

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Bucket is the name of the state machine, and of its bucket in the database.
const Bucket = "access"

// Kinds of objects.
const (
	KindUser       lbstate.Kind = "user"
	KindToken      lbstate.Kind = "token"
	KindRevocation lbstate.Kind = "revocation"
	KindCredential lbstate.Kind = "credential"
)

var kinds = []lbstate.Kind{KindUser, KindToken, KindRevocation, KindCredential}

// Role is what a user may do.
type Role string

const (
	// Viewer reads.
	Viewer Role = "viewer"
	// Operator also changes the configuration.
	Operator Role = "operator"
	// Admin also changes who may do what, and the members of the cluster.
	Admin Role = "admin"
)

// roles are in the order of what they may do.
var roles = []Role{Viewer, Operator, Admin}

func (r Role) known() bool { return slices.Contains(roles, r) }

// May says whether the role includes another. One that is not known includes
// none, and is included in none.
func (r Role) May(other Role) bool {
	return r.known() && other.known() && slices.Index(roles, r) >= slices.Index(roles, other)
}

func lesser(a, b Role) Role {
	if a.May(b) {
		return b
	}
	return a
}

// Stamp is what the state sets of an object.
type Stamp struct {
	Revision uint64    `json:"revision"` // of the last change
	Created  time.Time `json:"created"`
	Creator  string    `json:"creator,omitempty"`
	Changed  time.Time `json:"changed"`
	Changer  string    `json:"changer,omitempty"`
}

// User is a person or a program.
type User struct {
	Name     string `json:"name"` // 1 to 63 letters, digits, '.', '_', '-'
	Role     Role   `json:"role"`
	Disabled bool   `json:"disabled,omitempty"` // neither login nor token is accepted
	Note     string `json:"note,omitempty"`

	// PasswordHash is argon2id in PHC form, or empty: no login by password. In a
	// write nil keeps what there is.
	PasswordHash *string `json:"-"`

	Stamp
}

// Token is a secret that stands for a user.
type Token struct {
	ID      string            `json:"id"` // as a user's name
	Hash    [sha256.Size]byte `json:"-"`  // of the secret
	User    string            `json:"user"`
	Role    Role              `json:"role"` // at most the user's, whose later role bounds it too
	Expires time.Time         `json:"expires,omitzero"`
	Note    string            `json:"note,omitempty"`
	Session bool              `json:"session,omitempty"` // made by a login
	Stamp
}

// Roles of the holders of certificates, as transport/identity has them, and the
// kind of a revocation that names one certificate.
const (
	holderServer   = "server"
	holderAgent    = "agent"
	holderOperator = "operator"
	bySerial       = "serial"
)

// Revocation bars the holder of certificates, or one certificate.
type Revocation struct {
	Kind   string    `json:"kind"`   // server, agent, operator or serial
	Name   string    `json:"name"`   // of the holder, or the serial in hexadecimal
	Reason string    `json:"reason"` // shown to who is refused
	Until  time.Time `json:"until,omitzero"`
	Stamp
}

// Credential is what the state says of the holder of a certificate.
type Credential struct {
	Role string `json:"role"` // server, agent or operator
	Name string `json:"name"`

	// Labels of an agent select its services. Nil leaves that to the certificate;
	// an empty map is no label.
	Labels map[string]string `json:"labels"`

	Note   string   `json:"note,omitempty"`
	Issued []Issued `json:"issued,omitempty"` // the last 8, newest last; the state's own to set
	Stamp
}

// Issued is a certificate that was made.
type Issued struct {
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	At       time.Time `json:"at"`
}

// Ref names the object.
func (u User) Ref() lbstate.Ref { return lbstate.Ref{Kind: KindUser, Name: u.Name} }

// Ref names the object.
func (t Token) Ref() lbstate.Ref { return lbstate.Ref{Kind: KindToken, Name: t.ID} }

// Ref names the object.
func (r Revocation) Ref() lbstate.Ref {
	return lbstate.Ref{Kind: KindRevocation, Name: r.Kind + "/" + r.Name}
}

// Ref names the object.
func (c Credential) Ref() lbstate.Ref {
	return lbstate.Ref{Kind: KindCredential, Name: c.Role + "/" + c.Name}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
