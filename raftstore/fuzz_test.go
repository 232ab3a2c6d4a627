package raftstore

import (
	"bytes"
	"hash/crc32"
	"io"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// A snapshot that is taken is the one that was sent.
func FuzzSnapshot(f *testing.F) {
	whole := append([]byte(snapshotMagic), "the state"...)
	whole = append(whole, crc32.New(castagnoli).Sum(nil)...)
	f.Add(whole)
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		size, err := unwrapSnapshot(&out, bytes.NewReader(data))
		if err != nil {
			return
		}
		sum := crc32.New(castagnoli)
		_, _ = io.Copy(sum, bytes.NewReader(out.Bytes()))
		again := append([]byte(snapshotMagic), out.Bytes()...)
		if again = append(again, sum.Sum(nil)...); size != int64(out.Len()) || !bytes.Equal(again, data) {
			t.Errorf("%d bytes of %d were taken", size, len(data))
		}
	})
}

// What entries hold beside commands is applied or refused, without a panic.
func FuzzOwnEntries(f *testing.F) {
	f.Add([]byte(`{"member":1,"versions":{"sim":2}}`), []byte(`{"nonce":1,"put":{"id":2,"name":"b"}}`))
	f.Add([]byte(`{"member":1,"versions":null}`), []byte(`{"remove":1}`))
	s, err := openStateDB(disk.OS{}, f.TempDir(), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.close() })
	if err := s.update(1, func(tx *bbolt.Tx) error {
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		return o.found(&Founding{Cluster: 1, Founders: []Founder{{Member: 1, Name: "a"}}})
	}); err != nil {
		f.Fatal(err)
	}
	store := &Store{cfg: Config{StateMachines: map[string]StateMachine{"sim": simMachine{}}}.withDefaults(), state: s}
	index := uint64(1)
	f.Fuzz(func(t *testing.T, command, change []byte) {
		a := &applier{
			s: store, self: 7, due: func() {}, queue: newQueue[applyTask](),
			confChange: func(*raftpb.ConfChangeV2) (*raftpb.ConfState, error) {
				return &raftpb.ConfState{Voters: []uint64{1}}, nil
			},
		}
		e := envelope{proposer: 1, boot: index, first: 1, commands: []routed{{ownBucketName, command}}}
		kind := raftpb.EntryConfChangeV2
		cc, err := proto.Marshal(&raftpb.ConfChangeV2{Context: change})
		if err != nil {
			t.Fatal(err)
		}
		index += 2
		entries := []*raftpb.Entry{
			{Index: proto.Uint64(index - 1), Term: proto.Uint64(1), Data: e.encode()},
			{Index: proto.Uint64(index), Term: proto.Uint64(1), Type: &kind, Data: cc},
		}
		if _, err := a.apply(entries); err != nil {
			s.write.failed = nil // the node would end
		}
	})
}
