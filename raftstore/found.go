package raftstore

import (
	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
)

// foundState gives a founder the state that the founding record says: entry 1
// of term 1, applied, with the founders as voters. It is the same on each. The
// one node of a cluster that was restored or recovered gets its name here.
func (s *Store) foundState(node nodeFile) error {
	made := false
	err := s.state.update(1, func(tx *bbolt.Tx) error {
		unnamed, err := ownIn(tx).unnamed(node.Member)
		if err != nil {
			return err
		}
		if unnamed {
			made = true
			return ownIn(tx).enter(s.founder(node.Member))
		}
		if index, _ := ownIn(tx).applied(); index > 0 || node.Founding == nil {
			return nil
		}
		made = true
		o, err := makeOwn(tx)
		if err != nil {
			return err
		}
		return o.found(node.Founding)
	})
	if err != nil || !made {
		return err
	}
	_, err = s.state.checkpoint()
	return err
}

func (o own) found(founding *Founding) error {
	conf := &raftpb.ConfState{}
	for _, f := range founding.Founders {
		conf.Voters = append(conf.Voters, f.Member)
	}
	if err := o.enter(founding.Founders...); err != nil {
		return err
	}
	if err := o.setConf(conf); err != nil {
		return err
	}
	if err := o.setCluster(clusterInfo{ID: founding.Cluster, Predecessor: founding.Predecessor}); err != nil {
		return err
	}
	return o.setApplied(foundingIndex, 1)
}

// enter makes the first members of founders.
func (o own) enter(founders ...Founder) error {
	members := map[uint64]Member{}
	for _, f := range founders {
		m := Member{ID: f.Member, Incarnation: f.Incarnation, Name: f.Name, RaftAddr: f.RaftAddr, HTTPAddr: f.HTTPAddr, Versions: f.Versions}
		if err := o.putMember(m); err != nil {
			return err
		}
		members[m.ID] = m
	}
	_, err := o.agree(members)
	return err
}
