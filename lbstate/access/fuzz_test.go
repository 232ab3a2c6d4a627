package access

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/internal/stored"
)

// FuzzCommand applies any bytes twice, to a state that the corpus has made: the
// same is made of them, or the node stops; nothing panics. INV-4, INV-41.
func FuzzCommand(f *testing.F) {
	var log [][]byte
	for _, c := range corpus() {
		data, err := stored.Encode(c.command)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		log = append(log, data)
	}
	log = log[:7] // before all is deleted
	dir := f.TempDir()
	open := func(name string) (*State, *bbolt.DB) {
		db, err := bbolt.Open(filepath.Join(dir, name), 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { db.Close() })
		s := New(Config{})
		if err := db.Update(func(tx *bbolt.Tx) error { _, err := s.Apply(tx, 1, 1, log); return err }); err != nil {
			f.Fatal(err)
		}
		s.Committed(1)
		return s, db
	}
	s1, db1 := open("a")
	s2, db2 := open("b")
	f.Fuzz(func(t *testing.T, data []byte) {
		try := func(s *State, db *bbolt.DB) (results []any, digest uint64, failed error) {
			tx, err := db.Begin(true)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			results, failed = s.Apply(tx, 1, 2, [][]byte{data})
			digest, err = DigestState(tx)
			if err == nil && failed == nil {
				view := New(Config{})
				if err = view.Restored(tx); err == nil {
					err = consistent(tx, view)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			s.pending = nil
			return results, digest, failed
		}
		r1, d1, e1 := try(s1, db1)
		r2, d2, e2 := try(s2, db2)
		if (e1 == nil) != (e2 == nil) || d1 != d2 || len(r1) != len(r2) {
			t.Fatalf("%v %v %x and %v %v %x", r1, e1, d1, r2, e2, d2)
		}
	})
}

// FuzzPHC reads any text as a password hash: one that is taken reads back the
// same.
func FuzzPHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePHC(s); err == nil && p.String() != s {
			t.Errorf("%q reads as %q", s, p)
		}
	})
}

// INV-9: a command of a version, kind or field that this program does not know
// stops the node, and so does a damaged value.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	known, err := stored.Encode(corpus()[0].command)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": {}, "no protobuf": {0xff}, "version 2": append(bytes.Clone(known), 0x08, 2), "no kind": {0x08, 1},
		"unknown field": append(bytes.Clone(known), 0xf8, 0x07, 1), "object of no kind": {0x08, 1, 0x52, 2, 0x0a, 0},
		"put of nothing": {0x08, 1, 0x52, 0}, "too large": make([]byte, MaxCommandBytes+1),
	} {
		n := newNode(t)
		if _, _, err := n.replicator.Propose(t.Context(), data); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
}

func TestDamageIsNoticed(t *testing.T) {
	n := newNode(t)
	n.must(t)(n.PutUser(t.Context(), User{Name: "bob", Role: Admin}, WriteOptions{}))
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "copy"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error {
		root, err := rootBucket(tx)
		if err != nil {
			return err
		}
		return root.Bucket(objectsBucket).Put([]byte("user/bob"), []byte("12345"))
	}); err != nil {
		t.Fatal(err)
	}
	var damage *lbstate.DamageError
	if err := db.View(New(Config{}).Restored); !errors.As(err, &damage) || damage.Key != "user/bob" {
		t.Errorf("%v", err)
	}
}
