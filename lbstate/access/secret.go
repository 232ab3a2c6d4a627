package access

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/ipvskit/ipvskit/lbstate"
)

// secretPrefix makes a token that has leaked recognizable.
const secretPrefix = "ipvskit_"

// NewSecret makes the secret of a token: 256 random bits.
func NewSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// IsSecret says whether a text has the form of a token's secret.
func IsSecret(s string) bool {
	text, ok := strings.CutPrefix(s, secretPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return ok && err == nil && len(b) == 32
}

// CreateToken makes a token with a new ID and secret, which is nowhere else.
// t.ID, t.Hash and o.IfRevision are not looked at.
func (st *Store) CreateToken(ctx context.Context, t Token, o WriteOptions) (secret string, made Token, err error) {
	secret = NewSecret()
	t.Hash = HashOf(secret)
	var id [8]byte
	_, _ = rand.Read(id[:])
	t.ID = hex.EncodeToString(id[:])
	o.IfRevision = new(uint64)
	res, err := st.PutToken(ctx, t, o)
	if err != nil {
		return "", Token{}, err
	}
	made, err = one(ctx, st, t.Ref(), tokenFrom, lbstate.ReadOptions{Stale: true})
	if err == nil && made.Revision != res.Revision {
		err = fmt.Errorf("token %s changed while it was made", t.ID)
	}
	return secret, made, err
}

// Authenticate returns who a token stands for. An ErrToken refuses it; any other
// error leaves that open. allowed, where given, is asked before the cluster is,
// for a token that this node does not know: its error is returned.
func (st *Store) Authenticate(ctx context.Context, secret string, allowed func() error) (Principal, error) {
	if !IsSecret(secret) {
		return Principal{}, fmt.Errorf("%w: it has not the form of one", ErrToken)
	}
	hash := HashOf(secret)
	p, known, err := st.state.Token(hash, st.now())
	if known || st.replicator == nil {
		return p, err
	}
	if allowed != nil {
		if err := allowed(); err != nil {
			return Principal{}, err
		}
	}
	err = st.read(ctx, lbstate.ReadOptions{}, func(v view) error {
		t, err := v.tokenOf(hash[:])
		if err != nil {
			return err
		}
		if t == nil {
			return fmt.Errorf("%w: there is no such token", ErrToken)
		}
		u, err := v.object(lbstate.Ref{Kind: KindUser, Name: t.GetToken().GetUser()})
		if err != nil {
			return err
		}
		p, err = stands(tokenFrom(t), userFrom(u), u != nil, st.now())
		return err
	})
	return p, err
}
