package lbstate

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// machine is a state machine on a database of its own, without a log.
type machine struct {
	*State
	db *bbolt.DB
}

func openMachine(t fataler, path string) machine {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	return machine{New(Config{}), db}
}

type fataler interface{ Fatal(args ...any) }

func (m machine) apply(t fataler, term uint64, cmds ...[]byte) []any {
	var results []any
	if err := m.db.Update(func(tx *bbolt.Tx) (err error) {
		results, err = m.Apply(tx, term, 0, cmds)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return results
}

func (m machine) digest(t fataler) (d uint64) {
	if err := m.db.View(func(tx *bbolt.Tx) (err error) {
		d, err = DigestState(tx)
		return errors.Join(err, check(tx))
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// The same log gives the same results and the same state, however it was
// grouped into transactions, and whether all of it was applied or a snapshot of
// its beginning was taken over. INV-4.
func TestApplyIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		cmds, terms := drawLog(t)
		runs++
		path := func(name string) string { return filepath.Join(dir, fmt.Sprint(runs, name)) }
		one, packed := openMachine(t, path("one")), openMachine(t, path("packed"))
		defer func() { one.db.Close(); packed.db.Close(); os.RemoveAll(dir); _ = os.Mkdir(dir, 0o700) }()

		var results []any
		cut := rapid.IntRange(0, len(cmds)).Draw(t, "snapshot at")
		var snapshot bytes.Buffer
		for i, cmd := range cmds {
			if i == cut {
				one.copyTo(t, &snapshot)
			}
			results = append(results, one.apply(t, terms[i], cmd)...)
		}
		if cut == len(cmds) {
			one.copyTo(t, &snapshot)
		}

		var again []any
		for i := 0; i < len(cmds); {
			n := rapid.IntRange(1, len(cmds)-i).Draw(t, "group")
			for n > 1 && terms[i+n-1] != terms[i] {
				n--
			}
			again = append(again, packed.apply(t, terms[i], cmds[i:i+n]...)...)
			i += n
		}
		for i := range results {
			if told(results[i]) != told(again[i]) {
				t.Fatalf("command %d: %s, but packed %s", i, told(results[i]), told(again[i]))
			}
		}

		if err := os.WriteFile(path("restored"), snapshot.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		restored := openMachine(t, path("restored"))
		defer restored.db.Close()
		for i := cut; i < len(cmds); i++ {
			restored.apply(t, terms[i], cmds[i])
		}
		want := one.digest(t)
		if got := packed.digest(t); got != want {
			t.Fatalf("digest %x, packed %x", want, got)
		}
		if got := restored.digest(t); got != want {
			t.Fatalf("digest %x, from a snapshot at %d %x", want, cut, got)
		}
	})
}

func (m machine) copyTo(t fataler, w *bytes.Buffer) {
	if err := m.db.View(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(w)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// A refused command leaves no trace: the next one sees what the one before left.
// INV-15.
func TestRefusalsChangeNothing(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		m := openMachine(t, filepath.Join(dir, fmt.Sprint(runs)))
		defer m.db.Close()
		cmds, terms := drawLog(t)
		m.apply(t, 1) // makes the buckets
		before := m.digest(t)
		for i, cmd := range cmds {
			res := m.apply(t, terms[i], cmd)[0]
			after := m.digest(t)
			if err, refused := res.(error); refused && after != before {
				t.Fatalf("command %d was refused (%v), but changed the state", i, err)
			} else if refused && !NotApplied(err) {
				t.Fatalf("command %d was refused, but its error leaves that open: %v", i, err)
			}
			before = after
		}
	})
}

// What this program does not know stops it. INV-9.
func TestUnknownCommandsStop(t *testing.T) {
	valid := func(edit func(*lbstatepb.Command)) []byte {
		c := &lbstatepb.Command{Version: CommandVersion, Kind: &lbstatepb.Command_Transaction{Transaction: &lbstatepb.Transaction{
			Operations: []*lbstatepb.Operation{{Operation: &lbstatepb.Operation_Delete{Delete: &lbstatepb.Delete{Kind: "service", Name: "a"}}}},
		}}}
		if edit != nil {
			edit(c)
		}
		data, err := encode(c)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	field := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	for name, data := range map[string][]byte{
		"empty":         {},
		"no version":    valid(func(c *lbstatepb.Command) { c.Version = 0 }),
		"newer version": valid(func(c *lbstatepb.Command) { c.Version = CommandVersion + 1 }),
		"no kind":       valid(func(c *lbstatepb.Command) { c.Kind = nil }),
		"no operation":  valid(func(c *lbstatepb.Command) { c.GetTransaction().Operations[0].Operation = nil }),
		"unknown field": append(valid(nil), field...),
		"unknown field far": valid(func(c *lbstatepb.Command) {
			c.GetTransaction().Operations[0].GetDelete().ProtoReflect().SetUnknown(field)
		}),
		"not protobuf": []byte("{}"),
		"too long":     make([]byte, MaxCommandBytes+1),
	} {
		m := openMachine(t, filepath.Join(t.TempDir(), "db"))
		err := m.db.Update(func(tx *bbolt.Tx) error {
			_, err := m.Apply(tx, 1, 1, [][]byte{data})
			return err
		})
		if err == nil {
			t.Errorf("%s: was applied", name)
		}
		m.db.Close()
	}
	m := openMachine(t, filepath.Join(t.TempDir(), "db"))
	defer m.db.Close()
	if res := m.apply(t, 1, valid(nil)); !errors.Is(res[0].(error), ErrNotFound) {
		t.Errorf("the valid one: %v", res)
	}
}

// bomb is a little that inflates to too much.
func bomb() []byte {
	var b bytes.Buffer
	w := must(flate.NewWriter(&b, flate.BestCompression))
	for range maxInflated>>20 + 1 {
		must(w.Write(make([]byte, 1<<20)))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// A value that was changed behind the state's back is named, not believed.
func TestDamage(t *testing.T) {
	n := newNode(t)
	n.put(t, `{name: web, vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1}]}`)
	key := []byte("service/web")
	var good []byte
	write := func(value []byte) {
		t.Helper()
		if err := n.local.db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(Bucket)).Bucket(objectsBucket)
			good = bytes.Clone(b.Get(key))
			return b.Put(key, value)
		}); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("xy"))
	intact := good
	for _, bad := range [][]byte{{}, []byte("xyz"), slices.Concat(intact[:len(intact)-1], []byte{intact[len(intact)-1] ^ 1})} {
		write(bad)
		_, err := n.Service(t.Context(), "web", ReadOptions{})
		var d *DamageError
		if !errors.As(err, &d) || d.Key != "service/web" || !strings.Contains(err.Error(), "objects") {
			t.Errorf("value of %d bytes: %v", len(bad), err)
		}
		if _, err := n.PutService(t.Context(), Service{Name: "web", VIP: mustAddr("192.0.2.11"), Port: 80}, WriteOptions{}); err == nil || NotApplied(err) {
			t.Errorf("a write over a damaged value: %v", err)
		}
	}
	write(intact)
	// A value that belongs elsewhere is damage too.
	if err := n.local.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(Bucket)).Bucket(objectsBucket).Put([]byte("service/other"), intact)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Object(t.Context(), Ref{KindService, "other"}, ReadOptions{}); err == nil {
		t.Error("a value under another key was believed")
	}
	if err := n.local.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(Bucket)).Bucket(objectsBucket).Delete([]byte("service/other"))
	}); err != nil {
		t.Fatal(err)
	}
}

// The digest is over keys and values, wherever they stand.
func TestDigestState(t *testing.T) {
	m := openMachine(t, filepath.Join(t.TempDir(), "db"))
	defer m.db.Close()
	seen := map[uint64]string{m.digest(t): "nothing"}
	for _, c := range corpus()[:5] {
		data, err := encode(c.command)
		if err != nil {
			t.Fatal(err)
		}
		m.apply(t, 1, data)
		d := m.digest(t)
		if other, twice := seen[d]; twice {
			t.Errorf("the state after %q has the digest of that after %q", c.name, other)
		}
		seen[d] = c.name
	}
}
