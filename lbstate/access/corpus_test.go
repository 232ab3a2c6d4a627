package access

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/access/accesspb"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

type named struct {
	name    string
	command *accesspb.Command
}

// corpus has each kind of command and object, with every field set somewhere.
func corpus() (all []named) {
	at := began.UnixMilli()
	add := func(name string, c *accesspb.Command) {
		at += 1000
		c.Version, c.At, c.Author, c.Reason = 1, at, "operator ann", "because"
		all = append(all, named{name, c})
	}
	put := func(o *accesspb.Object) *accesspb.Command {
		return &accesspb.Command{Kind: &accesspb.Command_Put{Put: &accesspb.Put{Object: o}}}
	}
	rev := func(n uint64) *uint64 { return &n }
	hash := HashOf("secret")
	user := func(role string) *accesspb.Object {
		return &accesspb.Object{Kind: &accesspb.Object_User{User: &accesspb.User{Name: "bob", Role: role, Password: "$argon2id$", Disabled: role == "admin", Note: "a note"}}}
	}
	add("user", put(user("operator")))
	add("token", put(&accesspb.Object{Kind: &accesspb.Object_Token{Token: &accesspb.Token{Id: "t1", Hash: hash[:], User: "bob", Role: "viewer", Expires: at + 3600e3, Note: "script", Session: true}}}))
	add("revocation", put(&accesspb.Object{Kind: &accesspb.Object_Revocation{Revocation: &accesspb.Revocation{Kind: "agent", Name: "lb1", Reason: "sold"}}}))
	add("revoked-serial", put(&accesspb.Object{Kind: &accesspb.Object_Revocation{Revocation: &accesspb.Revocation{Kind: "serial", Name: "abcd", Reason: "lost", Until: at + 1}}}))
	add("credential", put(&accesspb.Object{Kind: &accesspb.Object_Credential{Credential: &accesspb.Credential{Role: "agent", Name: "lb2", Note: "rack 7", Labels: &accesspb.Labels{Labels: []*accesspb.Label{{Key: "zone", Value: "a"}}}}}}))
	add("issue", &accesspb.Command{Kind: &accesspb.Command_Issue{Issue: &accesspb.Issue{Role: "agent", Name: "lb2", Issued: &accesspb.Issued{Serial: "beef", NotAfter: at + 5, At: at}}}})
	kept := put(user("admin"))
	kept.GetPut().GetObject().GetUser().Password = ""
	kept.GetPut().KeepPassword, kept.IfRevision = true, rev(1)
	add("keep-password", kept)
	again := put(user("viewer"))
	again.IfRevision = rev(1)
	add("conflict", again)
	add("malformed", put(&accesspb.Object{Kind: &accesspb.Object_Revocation{Revocation: &accesspb.Revocation{Kind: "ca", Name: "x"}}}))
	add("expire", &accesspb.Command{Kind: &accesspb.Command_Expire{Expire: &accesspb.Expire{Objects: []*accesspb.Expired{
		{Ref: &accesspb.Ref{Kind: "revocation", Name: "serial/abcd"}, Revision: 4}, {Ref: &accesspb.Ref{Kind: "token", Name: "t1"}, Revision: 2},
	}}}})
	add("delete", &accesspb.Command{Kind: &accesspb.Command_Delete{Delete: &accesspb.Ref{Kind: "user", Name: "bob"}}})
	add("delete-nothing", &accesspb.Command{Kind: &accesspb.Command_Delete{Delete: &accesspb.Ref{Kind: "user", Name: "bob"}}})
	return all
}

// testdata/commands-v1.txt holds commands of version 1 as they rest in logs.
// Each program to come must still read them, and make the same of them. The
// file only grows.
func TestCorpus(t *testing.T) {
	path := filepath.Join("testdata", "commands-v1.txt")
	data, err := os.ReadFile(path)
	if err != nil && !(*update && os.IsNotExist(err)) {
		t.Fatal(err)
	}
	text := string(data)
	for _, c := range corpus() {
		body, err := stored.Encode(c.command)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%s: %x\n", c.name, body)
		switch known := strings.Contains("\n"+text, "\n"+c.name+": "); {
		case !known && *update:
			text += line
		case !known:
			t.Errorf("%s is not in the corpus: run with -update", c.name)
		case !strings.Contains("\n"+text, "\n"+line):
			t.Errorf("%s is encoded otherwise than in the corpus", c.name)
		}
	}
	n := newNode(t)
	var out strings.Builder
	for line := range strings.Lines(text) {
		name, code, _ := strings.Cut(strings.TrimSpace(line), ": ")
		body, err := hex.DecodeString(code)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		result, _, err := n.replicator.Propose(t.Context(), body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		fmt.Fprintf(&out, "%s: %v\n", name, result)
	}
	if err := n.replicator.ReadStale(func(tx *bbolt.Tx) error {
		v := openView(tx)
		if err := v.each("", func(o *accesspb.Object) error {
			fmt.Fprintf(&out, "%v %s\n", refOf(o), plain(t, o))
			return nil
		}); err != nil {
			return err
		}
		if err := v.entries(0, func(revision uint64, c *accesspb.Change) bool {
			fmt.Fprintf(&out, "revision %d %s\n", revision, plain(t, c))
			return true
		}); err != nil {
			return err
		}
		d, err := DigestState(tx)
		fmt.Fprintf(&out, "digest %#x\n", d)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "commands-v1.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{path: text, golden: out.String()} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("what the corpus makes has changed:\n%s\nwant\n%s", out.String(), want)
	}
}

// plain is a message as JSON with no space that protojson adds at random.
func plain(t *testing.T, m proto.Message) string {
	t.Helper()
	data, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), " ", "")
}
