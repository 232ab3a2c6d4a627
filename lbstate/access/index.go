package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
)

// index is the state in memory, for lookups. What it gives out is never
// changed.
type index struct {
	users       map[string]User
	tokens      map[[sha256.Size]byte]Token
	revocations map[string]Revocation // by "kind/name"
	credentials map[string]Credential // by "role/name"
}

func newIndex() index {
	return index{map[string]User{}, map[[sha256.Size]byte]Token{}, map[string]Revocation{}, map[string]Credential{}}
}

// take replaces an object by its new form. Either may be nil.
func (x *index) take(old, now *accesspb.Object) {
	o := now
	if now == nil {
		o = old
	}
	ref := refOf(o)
	switch ref.Kind {
	case KindUser:
		set(x.users, ref.Name, now, userFrom)
	case KindToken:
		set(x.tokens, tokenFrom(o).Hash, now, tokenFrom)
	case KindRevocation:
		set(x.revocations, ref.Name, now, revocationFrom)
	case KindCredential:
		set(x.credentials, ref.Name, now, credentialFrom)
	}
}

func set[K comparable, V any](m map[K]V, key K, now *accesspb.Object, from func(*accesspb.Object) V) {
	if now == nil {
		delete(m, key)
	} else {
		m[key] = from(now)
	}
}

// Revoked says why the holder of a certificate is no longer let in, or nothing.
// role is server, agent or operator, serial hexadecimal in lower case. It reads
// no clock: a revocation holds until Expire has dropped it.
func (s *State) Revoked(role, name, serial string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r, ok := s.index.revocations[role+"/"+name]; ok {
		return r.Reason
	}
	return s.index.revocations[bySerial+"/"+serial].Reason
}

// Labels returns the labels that the state gives an agent. ok is false where it
// leaves them to the certificate. The map is the caller's.
func (s *State) Labels(agent string) (labels map[string]string, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.index.credentials[holderAgent+"/"+agent]
	return maps.Clone(c.Labels), c.Labels != nil
}

// User returns a user.
func (s *State) User(name string) (u User, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u, ok = s.index.users[name]
	return u, ok
}

// ErrToken says that a token is not accepted.
var ErrToken = errors.New("the token is not accepted")

// Principal is who a token stands for.
type Principal struct {
	User    string
	Role    Role
	Token   string // its ID
	Expires time.Time
	Session bool
}

// HashOf is the hash by which a token is stored and looked up.
func HashOf(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// Token returns who a token stands for, at a time by this node's clock. known is
// false where this node has no token with that hash; otherwise the error, an
// ErrToken, says why it is not accepted.
func (s *State) Token(hash [sha256.Size]byte, now time.Time) (p Principal, known bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.index.tokens[hash]
	// The map has compared already, but in no constant time.
	if !ok || subtle.ConstantTimeCompare(t.Hash[:], hash[:]) != 1 {
		return Principal{}, false, fmt.Errorf("%w: there is no such token", ErrToken)
	}
	u, ok := s.index.users[t.User]
	p, err = stands(t, u, ok, now)
	return p, true, err
}

func stands(t Token, u User, there bool, now time.Time) (Principal, error) {
	switch {
	case !there:
		return Principal{}, fmt.Errorf("%w: user %s does not exist", ErrToken, t.User)
	case u.Disabled:
		return Principal{}, fmt.Errorf("%w: user %s is disabled", ErrToken, t.User)
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return Principal{}, fmt.Errorf("%w: it expired at %s, and this host's clock says %s", ErrToken, t.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return Principal{User: u.Name, Role: lesser(t.Role, u.Role), Token: t.ID, Expires: t.Expires, Session: t.Session}, nil
}
