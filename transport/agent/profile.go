package agent

import (
	"slices"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// featureProfiles is what both ends must have for profiles to be sent. Towards
// an older end updates and digests are of the services alone: an older agent is
// served as before, and a newer one keeps its profile while it is with an older
// server, which has nothing to say of it.
const featureProfiles = "profiles"

func hasProfiles(features []string) bool { return slices.Contains(features, featureProfiles) }

// withProfiles adds the feature to those of a program.
func withProfiles(features []string) []string {
	if hasProfiles(features) {
		return features
	}
	return append(slices.Clip(features), featureProfiles)
}

// profileDigest is a profile's share of a view's digest. No service has a name
// with a slash.
func profileDigest(name string, revision uint64) uint64 {
	return pairDigest(lbstate.Ref{Kind: lbstate.KindProfile, Name: name}.String(), revision)
}

// profileEntry is the profile of a state. One that this version cannot read
// counts in the digest, and leaves in force what could be read before.
type profileEntry struct {
	name     string
	revision uint64
	profile  lbstate.DesiredProfile    // the last that could be read
	usable   bool                      // profile is set
	raw      *lbstatepb.DesiredProfile // of the newest, when it cannot be read
	fault    string                    // why not
}

// profileAfter is the profile once u is applied.
func (s *state) profileAfter(u *agentpb.Update) *profileEntry {
	pb := u.GetProfile()
	switch {
	case pb == nil && (u.GetFull() || u.GetNoProfile()):
		return nil
	case pb == nil:
		return s.profile
	}
	e := &profileEntry{name: pb.GetName(), revision: pb.GetRevision()}
	profile, err := lbstate.DesiredProfileFromProto(pb)
	if err == nil {
		e.profile, e.usable = profile, true
		return e
	}
	e.raw, e.fault = pb, err.Error()
	if before := s.profile; before != nil && before.usable && s.cluster == u.GetCluster() {
		e.profile, e.usable = before.profile, true
	}
	return e
}

// keepProfile is s with the profile of the state before: s comes from a server
// that knows no profiles.
func (s *state) keepProfile(before *state) {
	if s.cluster == before.cluster {
		s.profile = before.profile
	}
}

// base is the journal's form: the newest, and where that cannot be read the last
// that could.
func (e *profileEntry) base() (newest, readable *lbstatepb.DesiredProfile) {
	switch {
	case e == nil:
		return nil, nil
	case e.raw == nil:
		return e.profile.Proto(), nil
	case e.usable:
		return e.raw, e.profile.Proto()
	}
	return e.raw, nil
}

// say puts a profile into an update.
func say(u *agentpb.Update, p *lbstate.DirectorProfile) {
	if p == nil {
		u.NoProfile = !u.GetFull()
		return
	}
	u.Profile = p.Desired().Proto()
}

// guard is the guard of an agent: what its host says, then what the profile of
// the state that it has accepted last does. The profile of a state that is being
// judged has no say, or a wrong one would bring its own permission.
func (g Guard) guard(have *state) Guard {
	if p := have.profile; p != nil && p.usable {
		said := p.profile.Guard
		if g.MinVanished == 0 {
			g.MinVanished = said.MaxServices
		}
		if g.MaxVanished == 0 {
			g.MaxVanished = float64(said.MaxPercent) / 100
		}
	}
	return g.withDefaults()
}
