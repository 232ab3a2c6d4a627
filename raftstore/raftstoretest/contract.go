package raftstoretest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Contract checks that a state machine keeps what raftstore.StateMachine asks
// for, with commands that it takes, in order. name is the one that it has in
// Config.StateMachines. fresh returns a new machine with nothing in memory.
//
// Results are compared by reflect.DeepEqual, errors by their text.
func Contract(t *testing.T, name string, fresh func() raftstore.StateMachine, commands [][]byte) {
	if len(commands) < 2 {
		t.Fatal("a contract needs two commands at least")
	}
	reference := newBench(t, fresh())
	for i, c := range commands {
		reference.apply(t, uint64(i+2), c)
	}
	want := reference.digest(t)

	t.Run("grouping", func(t *testing.T) {
		// The same log gives the same keys, values and results, however it was
		// grouped into entries' commands and transactions.
		b := newBench(t, fresh())
		for i := 0; i < len(commands); i += 3 {
			b.begin(t)
			for j := i; j < min(i+3, len(commands)); j++ {
				b.inTx(t, uint64(j+2), commands[j])
			}
			b.commit(t, uint64(min(i+3, len(commands))+1))
		}
		b.same(t, want, reference.results)
	})
	t.Run("applied again", func(t *testing.T) {
		// A transaction may be rolled back, and the same entry applied again.
		b := newBench(t, fresh())
		for i, c := range commands {
			b.begin(t)
			results := len(b.results)
			b.inTx(t, uint64(i+2), c)
			b.results = b.results[:results]
			b.rollback(t)
			b.apply(t, uint64(i+2), c)
		}
		b.same(t, want, reference.results)
	})
	t.Run("restored", func(t *testing.T) {
		// A machine that starts from a copy goes on as the one that wrote it.
		half := len(commands) / 2
		b := newBench(t, fresh())
		for i, c := range commands[:half] {
			b.apply(t, uint64(i+2), c)
		}
		copied := b.copy(t, fresh())
		for i, c := range commands[half:] {
			copied.apply(t, uint64(half+i+2), c)
		}
		copied.same(t, want, reference.results[half:])
	})
	t.Run("own bucket", func(t *testing.T) {
		err := reference.db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(bucket []byte, _ *bbolt.Bucket) error {
				if string(bucket) != name {
					return fmt.Errorf("it has written to the bucket %q, its own is %q", bucket, name)
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// bench is one machine on a database of its own.
type bench struct {
	m       raftstore.StateMachine
	db      *bbolt.DB
	tx      *bbolt.Tx
	results []any
}

func newBench(t *testing.T, m raftstore.StateMachine) *bench {
	t.Helper()
	return openBench(t, m, filepath.Join(t.TempDir(), "state.db"))
}

func openBench(t *testing.T, m raftstore.StateMachine, path string) *bench {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := db.View(m.Restored); err != nil {
		t.Fatalf("Restored: %v", err)
	}
	return &bench{m: m, db: db}
}

func (b *bench) begin(t *testing.T) {
	t.Helper()
	var err error
	if b.tx, err = b.db.Begin(true); err != nil {
		t.Fatal(err)
	}
}

// inTx applies one command; its memory is used for something else afterwards.
func (b *bench) inTx(t *testing.T, index uint64, command []byte) {
	t.Helper()
	c := bytes.Clone(command)
	results, err := b.m.Apply(b.tx, 1, index, [][]byte{c})
	if err != nil {
		t.Fatalf("Apply of the command at %d: %v", index, err)
	}
	if len(results) != 1 {
		t.Fatalf("Apply gave %d results for one command", len(results))
	}
	b.results = append(b.results, comparison(results[0]))
	for i := range c {
		c[i] = 0xff
	}
}

// comparison makes errors of the same text equal.
func comparison(result any) any {
	if err, ok := result.(error); ok {
		return "error: " + err.Error()
	}
	return result
}

func (b *bench) rollback(t *testing.T) {
	t.Helper()
	if err := b.tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) commit(t *testing.T, index uint64) {
	t.Helper()
	if err := b.tx.Commit(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		b.m.Committed(index)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Committed blocks")
	}
}

func (b *bench) apply(t *testing.T, index uint64, command []byte) {
	t.Helper()
	b.begin(t)
	b.inTx(t, index, command)
	b.commit(t, index)
}

func (b *bench) copy(t *testing.T, m raftstore.StateMachine) *bench {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := b.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(path, 0o600) }); err != nil {
		t.Fatal(err)
	}
	return openBench(t, m, path)
}

func (b *bench) digest(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	if err := b.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error { return hashBucket(h, name, bucket) })
	}); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func hashBucket(w io.Writer, name []byte, b *bbolt.Bucket) error {
	fmt.Fprintf(w, "bucket %q %d\n", name, b.Sequence())
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return hashBucket(w, k, b.Bucket(k))
		}
		fmt.Fprintf(w, "%q=%q\n", k, v)
		return nil
	})
}

func (b *bench) same(t *testing.T, digest string, results []any) {
	t.Helper()
	if got := b.digest(t); got != digest {
		t.Errorf("the state is %s, want %s: Apply depends on something else than the state and the commands", got, digest)
	}
	if len(results) != len(b.results) {
		t.Fatalf("%d results, want %d", len(b.results), len(results))
	}
	for i := range results {
		if !reflect.DeepEqual(results[i], b.results[i]) {
			t.Errorf("the result of command %d is %v, want %v", i, b.results[i], results[i])
		}
	}
}
