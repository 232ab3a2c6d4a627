package access

import (
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// Store is one node's typed access to the state. Safe for concurrent use.
type Store struct {
	state      *State
	replicator lbstate.Replicator
	now        func() time.Time
}

// NewStore returns a Store that reads and writes st through r.
func NewStore(st *State, r lbstate.Replicator) *Store {
	return &Store{state: st, replicator: r, now: time.Now}
}

// WriteOptions go with every write.
type WriteOptions struct {
	Author string // who, for people
	Reason string // why, for people

	// IfRevision is a precondition: the object's revision must be this; 0: it
	// must not exist; nil: whatever it is.
	IfRevision *uint64
}

// PutUser creates or replaces a user; see User.PasswordHash.
func (st *Store) PutUser(ctx context.Context, u User, o WriteOptions) (lbstate.WriteResult, error) {
	if err := u.Validate(); err != nil {
		return lbstate.WriteResult{}, err
	}
	return st.put(ctx, &accesspb.Put{Object: u.proto(), KeepPassword: u.PasswordHash == nil}, o)
}

// PutToken creates a token, or changes one but for its user and secret. See
// CreateToken.
func (st *Store) PutToken(ctx context.Context, t Token, o WriteOptions) (lbstate.WriteResult, error) {
	if err := t.Validate(); err != nil {
		return lbstate.WriteResult{}, err
	}
	return st.put(ctx, &accesspb.Put{Object: t.proto()}, o)
}

// Revoke bars a holder of certificates or one certificate, or changes why and
// until when. The serial is taken in any spelling.
func (st *Store) Revoke(ctx context.Context, r Revocation, o WriteOptions) (lbstate.WriteResult, error) {
	if r.Kind == bySerial {
		r.Name = PlainSerial(r.Name)
	}
	if err := r.Validate(); err != nil {
		return lbstate.WriteResult{}, err
	}
	return st.put(ctx, &accesspb.Put{Object: r.proto()}, o)
}

// PutCredential says what the state says of a holder of certificates; Issued
// stays what it is.
func (st *Store) PutCredential(ctx context.Context, c Credential, o WriteOptions) (lbstate.WriteResult, error) {
	if err := c.Validate(); err != nil {
		return lbstate.WriteResult{}, err
	}
	return st.put(ctx, &accesspb.Put{Object: c.proto()}, o)
}

func (st *Store) put(ctx context.Context, p *accesspb.Put, o WriteOptions) (lbstate.WriteResult, error) {
	return st.propose(ctx, o, &accesspb.Command{Kind: &accesspb.Command_Put{Put: p}})
}

// Issued records that a certificate was made for a holder, whose credential is
// made if there is none.
func (st *Store) Issued(ctx context.Context, role, name, serial string, notAfter time.Time, o WriteOptions) error {
	_, err := st.propose(ctx, o, &accesspb.Command{Kind: &accesspb.Command_Issue{Issue: &accesspb.Issue{
		Role: role, Name: name, Issued: &accesspb.Issued{Serial: serial, NotAfter: notAfter.UnixMilli(), At: st.now().UnixMilli()},
	}}})
	return err
}

// Delete removes an object, a user together with its tokens, or returns
// ErrNotFound.
func (st *Store) Delete(ctx context.Context, ref lbstate.Ref, o WriteOptions) (lbstate.WriteResult, error) {
	if len(ref.Name) > maxRef || !utf8.ValidString(ref.Name) || !slices.Contains(kinds, ref.Kind) { // so that it costs no entry in the log
		return lbstate.WriteResult{}, fmt.Errorf("%s %.300q: %w", ref.Kind, ref.Name, lbstate.ErrNotFound)
	}
	return st.propose(ctx, o, &accesspb.Command{Kind: &accesspb.Command_Delete{Delete: &accesspb.Ref{Kind: string(ref.Kind), Name: ref.Name}}})
}

// maxExpired is how many objects one command may name, and maxExpiredBytes what
// they may take: with the longest names it is fewer.
const (
	maxExpired      = 1000
	maxExpiredBytes = MaxCommandBytes - 16<<10 // leaves room for author and reason
)

// Expire drops tokens and revocations that are over by this node's clock, at
// most 1000, and fewer where their names are long, and says how many it named. It
// writes nothing where there are none.
func (st *Store) Expire(ctx context.Context, o WriteOptions) (int, error) {
	now := st.now().UnixMilli()
	e := &accesspb.Expire{}
	size := 0
	err := st.replicator.ReadStale(func(tx *bbolt.Tx) error {
		v := openView(tx)
		for _, k := range []lbstate.Kind{KindToken, KindRevocation} {
			if err := v.each(k, func(obj *accesspb.Object) error {
				if over := expires(obj); over != 0 && over <= now && len(e.GetObjects()) < maxExpired && size < maxExpiredBytes {
					ref := refOf(obj)
					x := &accesspb.Expired{Ref: &accesspb.Ref{Kind: string(ref.Kind), Name: ref.Name}, Revision: obj.GetRevision()}
					e.Objects = append(e.Objects, x)
					size += proto.Size(x) + 4 // tag and length
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(e.GetObjects()) == 0 {
		return 0, err
	}
	_, err = st.propose(ctx, o, &accesspb.Command{Kind: &accesspb.Command_Expire{Expire: e}})
	return len(e.GetObjects()), err
}

// propose replicates a command, which it completes.
func (st *Store) propose(ctx context.Context, o WriteOptions, c *accesspb.Command) (lbstate.WriteResult, error) {
	var f faults
	f.text("author", o.Author, maxAuthor)
	f.text("reason", o.Reason, maxReason)
	if err := f.err(); err != nil {
		return lbstate.WriteResult{}, err
	}
	c.Version, c.Author, c.Reason, c.IfRevision = CommandVersion, o.Author, o.Reason, o.IfRevision
	c.At = st.now().UnixMilli()
	if err := st.replicator.Accepts(CommandVersion); err != nil {
		return lbstate.WriteResult{}, err
	}
	data, err := stored.Encode(c)
	if err != nil {
		return lbstate.WriteResult{}, err
	}
	if len(data) > MaxCommandBytes {
		return lbstate.WriteResult{}, &lbstate.ValidationError{Faults: []lbstate.Fault{{
			Found: fmt.Sprintf("%d bytes", len(data)), Allowed: fmt.Sprintf("at most %d", MaxCommandBytes), Reason: "the change is too large",
		}}}
	}
	result, _, err := st.replicator.Propose(ctx, data)
	if err != nil {
		return lbstate.WriteResult{}, err
	}
	switch r := result.(type) {
	case lbstate.WriteResult:
		return r, nil
	case error:
		return lbstate.WriteResult{}, r
	}
	return lbstate.WriteResult{}, fmt.Errorf("the state machine returned a %T", result)
}
