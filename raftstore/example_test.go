package raftstore_test

import (
	"context"
	"fmt"
	"os"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
)

// lights is a state machine: each command turns a light on.
type lights struct{}

func (lights) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists([]byte("lights"))
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, name := range cmds {
		if err := b.Put(name, []byte("on")); err != nil {
			return nil, err
		}
		results[i] = string(name) + " is on"
	}
	return results, nil
}
func (lights) Committed(uint64)         {}
func (lights) Restored(*bbolt.Tx) error { return nil }

// A cluster of one needs nothing but a directory.
func Example() {
	dir, err := os.MkdirTemp("", "lights")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	store, err := raftstore.Open(raftstore.Config{Dir: dir, StateMachines: map[string]raftstore.StateMachine{"lights": lights{}}})
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- store.Run(context.Background()) }()
	for leading, _, changed := store.Leadership(); !leading; leading, _, changed = store.Leadership() {
		<-changed
	}

	for _, name := range []string{"kitchen", "hall"} {
		if _, _, err := store.Machine("lights").Propose(context.Background(), []byte(name)); err != nil {
			panic(err)
		}
	}
	err = store.Read(context.Background(), func(tx *bbolt.Tx) error {
		fmt.Printf("hall is %s\n", tx.Bucket([]byte("lights")).Get([]byte("hall")))
		return nil
	})
	fmt.Println(err, store.Close(), <-ended)
	// Output:
	// hall is on
	// <nil> <nil> <nil>
}
