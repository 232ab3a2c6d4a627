package access

import (
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// randomCommand draws a command over few names, so that commands meet; some
// could not have come from a Store.
func randomCommand(t *rapid.T, at int64) []byte {
	one := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	user := func() string { return one("user", "ann", "bob", "carl", "a b") }
	role := func() string { return one("role", "viewer", "operator", "admin", "root") }
	id := func() string { return one("id", "t1", "t2", "t3", "t4") }
	holder := func() string { return one("holder", "lb1", "lb2", "a/b") }
	kind := func() string { return one("kind", "agent", "server", "ca") }
	time := func() int64 { return rapid.SampledFrom([]int64{0, at - 10, at + 10}).Draw(t, "time") }
	serial := func() string { return one("serial", "ab", "cd", "zz") }
	hash := func() []byte {
		h := HashOf(one("secret", "1", "2", "3"))
		return h[:rapid.SampledFrom([]int{32, 32, 32, 3}).Draw(t, "size")]
	}
	c := &accesspb.Command{Version: 1, Author: one("author", "ann", ""), Reason: one("why", "", "because"), At: at}
	if rapid.IntRange(0, 4).Draw(t, "precondition") == 0 {
		rev := rapid.Uint64Range(0, 20).Draw(t, "revision")
		c.IfRevision = &rev
	}
	ref := func() *accesspb.Ref {
		switch one("of", "user", "token", "revocation", "credential") {
		case "user":
			return &accesspb.Ref{Kind: "user", Name: user()}
		case "token":
			return &accesspb.Ref{Kind: "token", Name: id()}
		case "revocation":
			return &accesspb.Ref{Kind: "revocation", Name: "agent/" + holder()}
		}
		return &accesspb.Ref{Kind: one("odd", "credential", "nothing"), Name: kind() + "/" + holder()}
	}
	put := func(o *accesspb.Object) {
		c.Kind = &accesspb.Command_Put{Put: &accesspb.Put{Object: o, KeepPassword: rapid.Bool().Draw(t, "keep")}}
	}
	switch rapid.IntRange(0, 6).Draw(t, "command") {
	case 0:
		put(&accesspb.Object{Kind: &accesspb.Object_User{User: &accesspb.User{Name: user(), Role: role(), Password: one("password", "", "x", "y"), Disabled: rapid.Bool().Draw(t, "disabled")}}})
	case 1:
		put(&accesspb.Object{Revision: 99, Kind: &accesspb.Object_Token{Token: &accesspb.Token{Id: id(), Hash: hash(), User: user(), Role: role(), Expires: time()}}})
	case 2:
		put(&accesspb.Object{Kind: &accesspb.Object_Revocation{Revocation: &accesspb.Revocation{Kind: one("bar", "agent", "serial"), Name: one("barred", "lb1", "ab", "A"), Reason: one("reason", "sold", "lost"), Until: time()}}})
	case 3:
		p := &accesspb.Credential{Role: kind(), Name: holder(), Issued: []*accesspb.Issued{{Serial: "foreign"}}}
		if rapid.Bool().Draw(t, "labeled") {
			p.Labels = &accesspb.Labels{Labels: []*accesspb.Label{{Key: "zone", Value: one("zone", "a", "b")}}}
		}
		put(&accesspb.Object{Kind: &accesspb.Object_Credential{Credential: p}})
	case 4:
		c.Kind = &accesspb.Command_Delete{Delete: ref()}
	case 5:
		e := &accesspb.Expire{}
		for range rapid.IntRange(0, 4).Draw(t, "named") {
			e.Objects = append(e.Objects, &accesspb.Expired{Ref: ref(), Revision: rapid.Uint64Range(0, 20).Draw(t, "at")})
		}
		c.Kind = &accesspb.Command_Expire{Expire: e}
	default:
		c.Kind = &accesspb.Command_Issue{Issue: &accesspb.Issue{Role: kind(), Name: holder(), Issued: &accesspb.Issued{Serial: serial(), NotAfter: at + 5, At: at}}}
	}
	data, err := stored.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// machine is a state on a database of its own.
type machine struct {
	state *State
	db    *bbolt.DB
	index uint64
}

func openMachine(t *rapid.T, path string) *machine {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{state: New(Config{}), db: db}
	if err := db.View(m.state.Restored); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return m
}

// apply applies commands in one transaction, as entries of one command each
// where split is set, otherwise as one entry.
func (m *machine) apply(t *rapid.T, split bool, cmds ...[]byte) []any {
	var results []any
	if err := m.db.Update(func(tx *bbolt.Tx) error {
		entries := [][][]byte{cmds}
		if split {
			entries = nil
			for _, c := range cmds {
				entries = append(entries, [][]byte{c})
			}
		}
		for _, e := range entries {
			m.index++
			r, err := m.state.Apply(tx, 1, m.index, e)
			if err != nil {
				return err
			}
			results = append(results, r...)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	m.state.Committed(m.index)
	return results
}

func (m *machine) digest(t *rapid.T) (d uint64) {
	if err := m.db.View(func(tx *bbolt.Tx) (err error) {
		if err = consistent(tx, m.state); err == nil {
			d, err = DigestState(tx)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// INV-4: the same log gives the same state, however it was grouped into
// transactions, and from a snapshot in its middle; what is refused leaves no
// trace (INV-15); the lookups are always those of the database.
func TestSameLogSameState(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := func(name string) string { return filepath.Join(dir, fmt.Sprint(name, runs)) }
		var log [][]byte
		for i := range rapid.IntRange(1, 60).Draw(t, "commands") {
			log = append(log, randomCommand(t, int64(1000+i)))
		}
		singly, grouped := openMachine(t, path("singly")), openMachine(t, path("grouped"))
		half := rapid.IntRange(0, len(log)).Draw(t, "snapshot")
		var results []any
		for i, c := range log {
			before := singly.digest(t)
			r := singly.apply(t, true, c)
			if _, refused := r[0].(error); refused && i > 0 && singly.digest(t) != before {
				t.Fatalf("refused with %v, and changed", r[0])
			}
			results = append(results, told(r[0]))
			if i+1 == half {
				if err := singly.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(path("copy"), 0o600) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		var together []any
		for rest := log; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "group")
			for _, r := range grouped.apply(t, rapid.Bool().Draw(t, "split"), rest[:n]...) {
				together = append(together, told(r))
			}
			rest = rest[n:]
		}
		if !reflect.DeepEqual(results, together) {
			t.Fatalf("results %v\n     and %v", results, together)
		}
		want := singly.digest(t)
		if got := grouped.digest(t); got != want {
			t.Fatal("grouped otherwise the state differs")
		}
		copied := openMachine(t, path("copy"))
		for _, c := range log[half:] {
			copied.apply(t, true, c)
		}
		if got := copied.digest(t); got != want {
			t.Fatal("from a snapshot the state differs")
		}
	})
}

func told(result any) any {
	if err, ok := result.(error); ok {
		return "refused: " + err.Error()
	}
	return result.(lbstate.WriteResult)
}
