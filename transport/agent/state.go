package agent

import (
	"maps"
	"slices"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// state is the view of one agent at one revision. A state never changes:
// apply makes the next one, which shares the entries that stay.
type state struct {
	cluster     uint64 // 0: nothing was ever accepted
	revision    uint64
	digest      uint64 // of the services; see sum
	hadServices bool   // this or an earlier state of the chain was not empty
	entries     map[string]*entry
	profile     *profileEntry // nil: none
}

// entry is one service. A service that this version cannot read (a newer
// server's) counts in the digest and leaves what was read before in place.
type entry struct {
	version uint64
	service lbstate.DesiredService    // the last that could be read
	usable  bool                      // service is set
	raw     *lbstatepb.DesiredService // of the newest, when it cannot be read
	fault   string                    // why not
}

func newEntry(pb *lbstatepb.DesiredService, before *entry) *entry {
	service, err := lbstate.DesiredFromProto(pb)
	if err == nil {
		return &entry{version: pb.GetVersion(), service: service, usable: true}
	}
	e := &entry{version: pb.GetVersion(), raw: pb, fault: err.Error()}
	if before != nil && before.usable {
		e.service, e.usable = before.service, true
	}
	return e
}

// sum is the digest of the state, as a server has it that does, or does not, know
// profiles.
func (s *state) sum(profiles bool) uint64 {
	if !profiles || s.profile == nil {
		return s.digest
	}
	return s.digest + profileDigest(s.profile.name, s.profile.revision)
}

// apply returns the state after u. It does not judge whether u fits.
func (s *state) apply(u *agentpb.Update) *state {
	next := &state{
		cluster:     u.GetCluster(),
		revision:    u.GetRevision(),
		hadServices: s.hadServices || len(u.GetServices()) > 0,
		profile:     s.profileAfter(u),
	}
	if u.GetFull() {
		next.entries = make(map[string]*entry, len(u.GetServices()))
	} else {
		next.entries = maps.Clone(s.entries)
		next.digest = s.digest
		if next.entries == nil {
			next.entries = map[string]*entry{}
		}
	}
	if !u.GetFull() {
		for _, name := range u.GetRemoved() {
			if e, ok := next.entries[name]; ok {
				next.digest -= pairDigest(name, e.version)
				delete(next.entries, name)
			}
		}
	}
	for _, pb := range u.GetServices() {
		if e, ok := next.entries[pb.GetName()]; ok {
			next.digest -= pairDigest(pb.GetName(), e.version)
		}
		var before *entry
		if s.cluster == next.cluster {
			before = s.entries[pb.GetName()]
		}
		next.entries[pb.GetName()] = newEntry(pb, before)
		next.digest += pairDigest(pb.GetName(), pb.GetVersion())
	}
	return next
}

// view is what the Applier is given, and the services that it lacks or has in
// an older form because they could not be read.
func (s *state) view() (lbstate.View, []lbstate.Failure) {
	v := lbstate.View{Cluster: s.cluster, Revision: s.revision, Services: make([]lbstate.DesiredService, 0, len(s.entries))}
	var failures []lbstate.Failure
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[name]
		if e.usable {
			v.Services = append(v.Services, e.service)
		}
		if e.fault != "" {
			failures = append(failures, unreadable(name, e.fault))
		}
	}
	if p := s.profile; p != nil {
		if p.usable {
			v.Profile = &p.profile
		}
		if p.fault != "" {
			failures = append(failures, unreadable(lbstate.Ref{Kind: lbstate.KindProfile, Name: p.name}.String(), p.fault))
		}
	}
	return v, failures
}

func unreadable(object, fault string) lbstate.Failure {
	return lbstate.Failure{Object: object, Op: "read", Reason: fault + ": is this agent older than the server?"}
}

// base is the journal's form of the state.
func (s *state) base(applied uint64) *agentpb.JournalBase {
	b := &agentpb.JournalBase{Cluster: s.cluster, Revision: s.revision, Applied: applied, HadServices: s.hadServices}
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[name]
		if e.raw == nil {
			b.Services = append(b.Services, e.service.Proto())
			continue
		}
		b.Services = append(b.Services, e.raw)
		if e.usable {
			b.Readable = append(b.Readable, e.service.Proto())
		}
	}
	b.Profile, b.ReadableProfile = s.profile.base()
	return b
}

// stateFromBase is the inverse of base.
func stateFromBase(b *agentpb.JournalBase) *state {
	readable := &state{cluster: b.GetCluster()}
	readable = readable.apply(&agentpb.Update{Cluster: b.GetCluster(), Services: b.GetReadable(), Profile: b.GetReadableProfile()})
	readable.hadServices = b.GetHadServices()
	return readable.apply(&agentpb.Update{Cluster: b.GetCluster(), Revision: b.GetRevision(), Full: true, Services: b.GetServices(), Profile: b.GetProfile()})
}
