package main

import (
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
)

// The cluster's view shows what each member's program knows, and what all do.
func TestClusterShowsVersions(t *testing.T) {
	s, err := raftstore.Open(raftstore.Config{
		Dir: t.TempDir(), StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: lbstate.New(lbstate.Config{})},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	if err := s.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := cluster{s}.View()
	if len(v.Members) != 1 || v.Members[0].Versions[lbstate.Bucket] != lbstate.CommandVersion || v.Accepted[lbstate.Bucket] != lbstate.CommandVersion {
		t.Errorf("view %+v", v)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
