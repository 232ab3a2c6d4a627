package access_test

import (
	"context"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
)

// A store that has been without access data takes them up, and keeps what it had.
func TestAddedToAStoreThatWasWithout(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	run := func(machines map[string]raftstore.StateMachine, do func(*raftstore.Store)) {
		t.Helper()
		store, err := raftstore.Open(raftstore.Config{Dir: dir, StateMachines: machines})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- store.Run(context.Background()) }()
		for leading, _, changed := store.Leadership(); !leading; leading, _, changed = store.Leadership() {
			<-changed
		}
		do(store)
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	lb := lbstate.New(lbstate.Config{})
	run(map[string]raftstore.StateMachine{lbstate.Bucket: lb}, func(s *raftstore.Store) {
		if _, err := lbstate.NewStore(lb, s.Machine(lbstate.Bucket)).Put(ctx, lbstate.Object{Check: &lbstate.SharedCheck{Name: "up", Check: lbstate.HealthCheck{Type: "tcp"}}}, lbstate.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	for range 2 { // the second time from what the first has written
		lb, people := lbstate.New(lbstate.Config{}), access.New(access.Config{})
		run(map[string]raftstore.StateMachine{lbstate.Bucket: lb, access.Bucket: people}, func(s *raftstore.Store) {
			machine := s.Machine(access.Bucket)
			store := access.NewStore(people, machine)
			// The member tells the others first that it has the machine.
			for told := s.Changed(); machine.Accepts(access.CommandVersion) != nil; told = s.Changed() {
				select {
				case <-told:
				case <-ctx.Done():
					t.Fatal(ctx.Err())
				}
			}
			changed := people.Changed(access.KindRevocation)
			if _, err := store.Revoke(ctx, access.Revocation{Kind: "agent", Name: "lb1", Reason: "sold"}, access.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if people.Revoked("agent", "lb1", "") == "" {
				<-changed
			}
			if why := people.Revoked("agent", "lb1", ""); why != "sold" {
				t.Errorf("%q", why)
			}
			if _, err := lbstate.NewStore(lb, s.Machine(lbstate.Bucket)).Revision(ctx, lbstate.ReadOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}
