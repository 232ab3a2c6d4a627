package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate"
)

func TestUsers(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	must := n.must(t)
	by := WriteOptions{Author: "ann", Reason: "new colleague"}
	hash := "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo"
	if r := must(n.PutUser(ctx, User{Name: "bob", Role: Viewer, PasswordHash: &hash}, by)); r.Outcome != lbstate.Created || r.Revision != 1 {
		t.Errorf("%+v", r)
	}
	if r := must(n.PutUser(ctx, User{Name: "bob", Role: Viewer}, by)); r.Outcome != lbstate.Unchanged || r.Revision != 1 {
		t.Errorf("the same again: %+v", r)
	}
	n.clock = began.Add(time.Hour)
	if r := must(n.PutUser(ctx, User{Name: "bob", Role: Operator}, WriteOptions{Author: "carl"})); r.Outcome != lbstate.Changed || r.Revision != 2 {
		t.Errorf("%+v", r)
	}
	u, err := n.User(ctx, "bob", lbstate.ReadOptions{})
	if err != nil || *u.PasswordHash != hash || u.Creator != "ann" || u.Changer != "carl" || !u.Created.Equal(began) || !u.Changed.Equal(n.clock) {
		t.Errorf("%+v, %v", u, err)
	}
	var conflict *lbstate.ConflictError
	for _, wrong := range []uint64{0, 1} {
		if _, err := n.PutUser(ctx, User{Name: "bob", Role: Admin}, WriteOptions{IfRevision: &wrong}); !errors.As(err, &conflict) || conflict.Current != 2 {
			t.Errorf("if revision %d: %v", wrong, err)
		}
	}
	none := ""
	must(n.PutUser(ctx, User{Name: "bob", Role: Operator, PasswordHash: &none}, by))
	if _, err := n.Delete(ctx, User{Name: "eve"}.Ref(), by); !errors.Is(err, lbstate.ErrNotFound) || !lbstate.NotApplied(err) {
		t.Errorf("%v", err)
	}
	entries, err := n.History(ctx, HistoryOptions{})
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for i, want := range []string{"[{password set }]", "[{role viewer operator}]", "[{role  viewer} {password  set}]"} {
		if got := fmt.Sprint(entries[i].Objects[0].Fields); got != want {
			t.Errorf("revision %d: %s, want %s", entries[i].Revision, got, want)
		}
	}
	if e := entries[2]; e.Author != "ann" || e.Reason != "new colleague" || strings.Contains(fmt.Sprint(entries), "argon2id") {
		t.Errorf("%+v", entries)
	}
	if older, err := n.History(ctx, HistoryOptions{Before: 3, Limit: 1}); err != nil || len(older) != 1 || older[0].Revision != 2 {
		t.Errorf("%v, %v", older, err)
	}
}

func TestTokens(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	must := n.must(t)
	must(n.PutUser(ctx, User{Name: "bob", Role: Operator}, WriteOptions{}))
	secret, made := n.token(t, "bob", Operator)
	if made.Hash != sha256.Sum256([]byte(secret)) || !IsSecret(secret) || made.Creator != "ann" {
		t.Errorf("%q, %+v", secret, made)
	}
	refusal := func(secret string) string {
		t.Helper()
		_, err := n.Authenticate(ctx, secret, nil)
		if !errors.Is(err, ErrToken) {
			t.Fatalf("%v", err)
		}
		return err.Error()
	}
	p, err := n.Authenticate(ctx, secret, nil)
	if err != nil || p.User != "bob" || p.Role != Operator || p.Token != made.ID {
		t.Errorf("%+v, %v", p, err)
	}
	// The user's present role bounds that of the token.
	must(n.PutUser(ctx, User{Name: "bob", Role: Viewer}, WriteOptions{}))
	if p, err = n.Authenticate(ctx, secret, nil); err != nil || p.Role != Viewer {
		t.Errorf("%+v, %v", p, err)
	}
	var invalid *lbstate.ValidationError
	if _, _, err := n.CreateToken(ctx, Token{User: "bob", Role: Admin}, WriteOptions{}); !errors.As(err, &invalid) || invalid.Faults[0].Path != "role" {
		t.Errorf("a token of more than its user: %v", err)
	}
	if _, _, err := n.CreateToken(ctx, Token{User: "eve", Role: Viewer}, WriteOptions{}); !errors.Is(err, lbstate.ErrNotFound) {
		t.Errorf("a token of nobody: %v", err)
	}
	other := made
	other.ID = "copy"
	if _, err := n.PutToken(ctx, Token{ID: "copy", User: "bob", Role: Viewer, Hash: made.Hash}, WriteOptions{}); !errors.As(err, &invalid) {
		t.Errorf("a secret twice: %v", err)
	}
	must(n.PutUser(ctx, User{Name: "bob", Role: Viewer, Disabled: true}, WriteOptions{}))
	if why := refusal(secret); !strings.Contains(why, "disabled") {
		t.Error(why)
	}
	must(n.PutUser(ctx, User{Name: "bob", Role: Viewer}, WriteOptions{}))
	made.Role, made.Expires = Viewer, n.clock.Add(time.Hour)
	must(n.PutToken(ctx, made, WriteOptions{}))
	if _, err := n.Authenticate(ctx, secret, nil); err != nil {
		t.Error(err)
	}
	n.clock = n.clock.Add(time.Hour)
	if why := refusal(secret); !strings.Contains(why, "expired at 2026-01-02T04:04:05Z") {
		t.Error(why)
	}
	if named, err := n.Expire(ctx, WriteOptions{Author: "node0"}); err != nil || named != 1 {
		t.Errorf("%d, %v", named, err)
	}
	if named, err := n.Expire(ctx, WriteOptions{}); err != nil || named != 0 {
		t.Errorf("again: %d, %v", named, err)
	}
	if why := refusal(secret); !strings.Contains(why, "no such token") {
		t.Error(why)
	}
	for _, s := range []string{"", "ipvskit_", secret + "A", secret[:len(secret)-1], "ipvskit_" + strings.Repeat("A", 44)} {
		refusal(s)
	}
	// A user goes with all that stands for it.
	one, _ := n.token(t, "bob", Viewer)
	two, _ := n.token(t, "bob", Viewer)
	must(n.Delete(ctx, User{Name: "bob"}.Ref(), WriteOptions{}))
	refusal(one)
	refusal(two)
	if tokens, err := n.Tokens(ctx, lbstate.ReadOptions{}); err != nil || len(tokens) != 0 {
		t.Errorf("%v, %v", tokens, err)
	}
}

// A token that this node has not heard of yet is asked for in the cluster, if
// the caller may ask.
func TestTokenThatThisNodeDoesNotKnowYet(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	n.must(t)(n.PutUser(ctx, User{Name: "bob", Role: Viewer}, WriteOptions{}))
	secret, _ := n.token(t, "bob", Viewer)
	behind := NewStore(New(Config{}), n.replicator)
	behind.now = n.now
	asked := 0
	if p, err := behind.Authenticate(ctx, secret, func() error { asked++; return nil }); err != nil || p.User != "bob" || asked != 1 {
		t.Errorf("%+v, %v, asked %d times", p, err, asked)
	}
	busy := errors.New("too often")
	if _, err := behind.Authenticate(ctx, secret, func() error { return busy }); !errors.Is(err, busy) {
		t.Error(err)
	}
	if _, err := n.Authenticate(ctx, secret, func() error { return busy }); err != nil {
		t.Errorf("a known token is refused: %v", err)
	}
}

func TestRevocations(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	must := n.must(t)
	wait := n.state.Changed(KindRevocation)
	users := n.state.Changed(KindUser)
	must(n.Revoke(ctx, Revocation{Kind: "agent", Name: "lb1", Reason: "sold"}, WriteOptions{Author: "ann"}))
	select {
	case <-wait:
	default:
		t.Error("who waits for revocations is not woken")
	}
	select {
	case <-users:
		t.Error("who waits for users is woken")
	default:
	}
	must(n.Revoke(ctx, Revocation{Kind: "serial", Name: "00:AB:cd", Reason: "lost laptop", Until: n.clock.Add(time.Hour)}, WriteOptions{}))
	check := func(role, name, serial, want string) {
		t.Helper()
		if got := n.state.Revoked(role, name, serial); got != want {
			t.Errorf("%s %s %s: %q, want %q", role, name, serial, got, want)
		}
	}
	check("agent", "lb1", "1", "sold")
	check("server", "lb1", "1", "")
	check("agent", "lb2", "abcd", "lost laptop")
	check("agent", "lb2", "", "")
	if named, err := n.Expire(ctx, WriteOptions{}); err != nil || named != 0 {
		t.Errorf("%d, %v", named, err)
	}
	n.clock = n.clock.Add(2 * time.Hour)
	check("agent", "lb2", "abcd", "lost laptop") // until it is dropped
	if named, err := n.Expire(ctx, WriteOptions{}); err != nil || named != 1 {
		t.Errorf("%d, %v", named, err)
	}
	check("agent", "lb2", "abcd", "")
	must(n.Delete(ctx, Revocation{Kind: "agent", Name: "lb1"}.Ref(), WriteOptions{}))
	check("agent", "lb1", "1", "")
	for _, r := range []Revocation{{}, {Kind: "ca", Name: "x", Reason: "y"}, {Kind: "agent", Name: "a/b", Reason: "y"}, {Kind: "serial", Name: "xyz", Reason: "y"}, {Kind: "agent", Name: "lb1"}} {
		var invalid *lbstate.ValidationError
		if _, err := n.Revoke(ctx, r, WriteOptions{}); !errors.As(err, &invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	must := n.must(t)
	if _, ok := n.state.Labels("lb1"); ok {
		t.Error("labels of nobody")
	}
	for i := range 10 {
		if err := n.Issued(ctx, "agent", "lb1", fmt.Sprintf("a%d", i), n.clock.Add(time.Hour), WriteOptions{Author: "node0"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := n.state.Labels("lb1"); ok {
		t.Error("that a certificate was made takes the labels over")
	}
	must(n.PutCredential(ctx, Credential{Role: "agent", Name: "lb1", Labels: map[string]string{"zone": "a", "rack": ""}}, WriteOptions{}))
	labels, ok := n.state.Labels("lb1")
	if !ok || len(labels) != 2 || labels["zone"] != "a" {
		t.Errorf("%v, %v", labels, ok)
	}
	c, err := n.Credential(ctx, "agent", "lb1", lbstate.ReadOptions{})
	if err != nil || len(c.Issued) != maxIssued || c.Issued[maxIssued-1].Serial != "a9" || c.Creator != "node0" {
		t.Errorf("%+v, %v", c, err)
	}
	must(n.PutCredential(ctx, Credential{Role: "agent", Name: "lb1", Labels: map[string]string{}}, WriteOptions{}))
	if labels, ok := n.state.Labels("lb1"); !ok || len(labels) != 0 {
		t.Errorf("no label: %v, %v", labels, ok)
	}
	var invalid *lbstate.ValidationError
	for _, c := range []Credential{{}, {Role: "server", Name: "s", Labels: map[string]string{"a": "b"}}, {Role: "agent", Name: "a", Labels: map[string]string{"a b": ""}}} {
		if _, err := n.PutCredential(ctx, c, WriteOptions{}); !errors.As(err, &invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// The history is bounded by count.
func TestHistoryIsBounded(t *testing.T) {
	state := New(Config{})
	db, err := bbolt.Open(t.TempDir()+"/db", 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	st := NewStore(state, &packed{db: db, state: state})
	note := []string{"a", "b"}
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	st.replicator.(*packed).tx = tx
	for i := range maxHistory + 10 {
		if _, err := st.PutUser(context.Background(), User{Name: "bob", Role: Viewer, Note: note[i%2]}, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	v := openView(tx)
	n, err := v.numbers()
	if err != nil || n.history != maxHistory || n.revision != maxHistory+10 {
		t.Errorf("%+v, %v", n, err)
	}
	state.Committed(1)
	if err := errors.Join(consistent(tx, state), tx.Commit()); err != nil {
		t.Error(err)
	}
}

// packed applies all commands in one transaction.
type packed struct {
	db    *bbolt.DB
	state *State
	tx    *bbolt.Tx
}

func (p *packed) Propose(_ context.Context, cmd []byte) (any, uint64, error) {
	results, err := p.state.Apply(p.tx, 1, 1, [][]byte{cmd})
	if err != nil {
		return nil, 0, err
	}
	return results[0], 1, nil
}
func (p *packed) Accepts(uint64) error                                   { return nil }
func (p *packed) Read(_ context.Context, fn func(*bbolt.Tx) error) error { return fn(p.tx) }
func (p *packed) ReadStale(fn func(*bbolt.Tx) error) error               { return fn(p.tx) }

func TestRoles(t *testing.T) {
	for _, test := range []struct {
		a, b Role
		may  bool
	}{{Admin, Viewer, true}, {Admin, Admin, true}, {Operator, Admin, false}, {Viewer, Operator, false}, {Operator, Viewer, true}, {"", Viewer, false}, {Admin, "", false}, {"root", "root", false}} {
		if test.a.May(test.b) != test.may {
			t.Errorf("%s may %s: %v", test.a, test.b, !test.may)
		}
	}
}

func TestPHC(t *testing.T) {
	const good = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo"
	p, err := ParsePHC(good)
	if err != nil || p.MemoryKiB != 65536 || p.Iterations != 3 || p.Parallelism != 4 || string(p.Salt) != "saltsaltsalt" || p.String() != good {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{
		"", "secret", strings.Replace(good, "argon2id", "argon2i", 1), strings.Replace(good, "v=19", "v=16", 1),
		strings.Replace(good, "m=65536", "m=1", 1), strings.Replace(good, "m=65536", "m=99999999", 1), strings.Replace(good, "t=3", "t=0", 1),
		strings.Replace(good, "t=3", "t=03", 1), strings.Replace(good, "p=4", "p=400", 1), strings.Replace(good, "c2FsdHNhbHRzYWx0", "c2Fs", 1),
		good + "$", good + "=", strings.Replace(good, "c2Fs", "c2\nFs", 1),
	} {
		if _, err := ParsePHC(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
