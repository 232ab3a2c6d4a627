package agent

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

func putProfile(t *testing.T, store *lbstate.Store, p lbstate.DirectorProfile) uint64 {
	t.Helper()
	res, err := store.Put(t.Context(), lbstate.Object{Profile: &p}, lbstate.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func deleteProfile(t *testing.T, store *lbstate.Store, name string) {
	t.Helper()
	if _, err := store.Delete(t.Context(), lbstate.Ref{Kind: lbstate.KindProfile, Name: name}, lbstate.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// profileOf is the profile of a view as text: "edge@3 1m0s".
func profileOf(v lbstate.View) string {
	if v.Profile == nil {
		return "none"
	}
	return fmt.Sprintf("%s@%d %v", v.Profile.Name, v.Profile.Revision, v.Profile.DrainTimeout)
}

func drainOf(d time.Duration) lbstate.DirectorProfile {
	return lbstate.DirectorProfile{Name: "edge", Agents: map[string]string{"site": "east"}, DrainTimeout: lbstate.Duration(d)}
}

// INV-13: a profile reaches the agent in the full state and in changes, and goes
// when it no longer selects; it outlives a restart, and what changed while the
// agent was away is known afterwards.
func TestProfileReachesTheAgent(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	putProfile(t, store, drainOf(time.Minute))
	_, addr, stopServer := serve(t, store, 7, nil)
	var r recorder
	dir := t.TempDir()
	east := map[string]string{"site": "east"}
	is := func(r *recorder, want string) {
		t.Helper()
		until(t, want, func() bool { return profileOf(r.last()) == want })
	}
	_, stop := follow(t, dir, &r, east, addr)
	is(&r, "edge@2 1m0s")
	putProfile(t, store, drainOf(2*time.Minute))
	is(&r, "edge@3 2m0s")
	base := lbstate.DirectorProfile{Name: "base", Priority: -1}
	putProfile(t, store, base) // does not come before
	deleteProfile(t, store, "edge")
	is(&r, "base@4 0s")
	deleteProfile(t, store, "base")
	is(&r, "none")
	putProfile(t, store, drainOf(3*time.Minute))
	is(&r, "edge@7 3m0s")

	stop()
	stopServer()
	var again recorder
	_, stop = follow(t, dir, &again, east, addr) // nobody is there
	is(&again, "edge@7 3m0s")
	stop()
	putProfile(t, store, drainOf(4*time.Minute))
	_, addr, _ = serve(t, store, 7, nil)
	_, stop = follow(t, dir, &again, east, addr)
	is(&again, "edge@8 4m0s")
	stop()
	deleteProfile(t, store, "edge")
	follow(t, dir, &again, east, addr)
	is(&again, "none")
	for _, v := range again.views {
		if v.Revision > 0 && len(v.Services) != 1 {
			t.Errorf("%d services at revision %d", len(v.Services), v.Revision)
		}
	}
}

// An agent of before profiles is served as ever: its digest is of services alone.
func TestOlderAgentGetsNoProfile(t *testing.T) {
	store := newStore(t)
	revision := put(t, store, "one", 1, nil)
	profile := putProfile(t, store, drainOf(time.Minute))
	_, addr, _ := serve(t, store, 7, nil)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := agentpb.NewAgentsClient(conn)
	services := pairDigest("one", revision)
	both := services + pairDigest("profile/edge", profile)
	for _, c := range []struct {
		features []string
		digest   uint64
		profile  string
	}{{nil, services, ""}, {[]string{"profiles"}, both, "edge"}} {
		stream, err := client.Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(helloOf(&agentpb.Hello{Name: "old", Labels: map[string]string{"site": "east"}, Features: c.features})); err != nil {
			t.Fatal(err)
		}
		a := assembler{limit: 1 << 20}
		var u *agentpb.Update
		for u == nil {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetChunk() != nil {
				if u, err = a.add(m.GetChunk()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if u.GetDigest() != c.digest || u.GetProfile().GetName() != c.profile {
			t.Errorf("with %q: digest %x, want %x; profile %q", c.features, u.GetDigest(), c.digest, u.GetProfile().GetName())
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		list, err := client.List(t.Context(), &agentpb.ListRequest{Name: "old", Labels: map[string]string{"site": "east"}, Features: c.features})
		if err != nil || list.GetDigest() != c.digest || list.GetProfile().GetName() != c.profile {
			t.Errorf("list with %q: %v, %v", c.features, list, err)
		}
	}
}

// withProfile adds a profile to a whole state.
func withProfile(u *agentpb.Update, p *lbstatepb.DesiredProfile) *agentpb.Update {
	u.Profile = p
	u.Digest += profileDigest(p.GetName(), p.GetRevision())
	return u
}

func (w *wire) welcomeWith(features ...string) error {
	return w.say(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Welcome{Welcome: &agentpb.Welcome{
		Cluster: 7, Server: "scripted", HeartbeatMillis: 20, SilenceMillis: 5000, Features: features,
	}}})
}

// A server of before profiles says nothing of them: the agent keeps its own.
func TestProfileOutlivesAnOlderServer(t *testing.T) {
	s := newScripted(t)
	var r recorder
	dir := t.TempDir()
	_, stop := follow(t, dir, &r, nil, s.addr)
	first := withProfile(stateOf(7, 5, names5()), &lbstatepb.DesiredProfile{Name: "edge", Revision: 4})
	s.run(func(w *wire) error {
		return errors.Join(w.welcomeWith("profiles"), w.send(chunks(t, first, 1000)...), errAck(w.ack(agentpb.Ack_APPLIED, 5)))
	})
	versions := names5()
	versions["s6"] = 6
	full := stateOf(7, 6, versions)
	s.run(func(w *wire) error { // what it holds does not match there, so it is sent the whole
		return errors.Join(w.holds(7, 5, first.GetDigest()), w.welcomeWith(), w.send(chunks(t, full, 1000)...), errAck(w.ack(agentpb.Ack_APPLIED, 6)))
	})
	versions["s7"] = 7
	delta := &agentpb.Update{Cluster: 7, Revision: 7, Since: 6, Digest: stateOf(7, 7, versions).GetDigest(), Services: []*lbstatepb.DesiredService{desired("s7", 7)}}
	s.run(func(w *wire) error {
		return errors.Join(w.welcomeWith(), w.send(chunks(t, delta, 1000)...), errAck(w.ack(agentpb.Ack_APPLIED, 7)))
	})
	if v := r.last(); profileOf(v) != "edge@4 0s" || len(v.Services) != 7 {
		t.Errorf("profile %s with %d services", profileOf(v), len(v.Services))
	}
	stop()
	st, _ := reopen(t, dir)
	if v, _ := st.view(); profileOf(v) != "edge@4 0s" || len(v.Services) != 7 {
		t.Errorf("the journal has profile %s with %d services", profileOf(v), len(v.Services))
	}
}

// INV-12: the limits in force are those of the profile that was accepted last: a
// tighter one holds, and one that comes with the state that is judged does not
// let that pass.
func TestGuardOfTheAcceptedProfile(t *testing.T) {
	s := newScripted(t)
	var r recorder
	c, _ := follow(t, t.TempDir(), &r, nil, s.addr)
	tight := &lbstatepb.DesiredProfile{Name: "edge", Revision: 4, Guard: &lbstatepb.Guard{MaxServices: 1, MaxPercent: 10}}
	wide := &lbstatepb.DesiredProfile{Name: "edge", Revision: 6, Guard: &lbstatepb.Guard{MaxServices: 1000, MaxPercent: 100}}
	first := withProfile(stateOf(7, 5, names5()), tight)
	smaller := withProfile(stateOf(7, 6, map[string]uint64{"s1": 1, "s2": 2, "s3": 3}), wide)
	s.run(func(w *wire) error {
		return errors.Join(w.welcomeWith("profiles"), w.send(chunks(t, first, 1000)...), errAck(w.ack(agentpb.Ack_APPLIED, 5)))
	})
	s.run(func(w *wire) error {
		return errors.Join(w.welcomeWith("profiles"), w.send(chunks(t, smaller, 1000)...), errAck(w.ack(agentpb.Ack_HELD, 6)))
	})
	if h := c.Status().Held; h == nil || len(h.Vanished) != 2 {
		t.Fatalf("held: %+v", h)
	}
	// The wide one, accepted with the services as they are, lets them go.
	widened := withProfile(stateOf(7, 6, names5()), wide)
	smaller = withProfile(stateOf(7, 7, map[string]uint64{"s1": 1}), wide)
	s.run(func(w *wire) error {
		return errors.Join(w.welcomeWith("profiles"), w.send(chunks(t, widened, 1000)...), errAck(w.ack(agentpb.Ack_RECEIVED, 6)),
			w.send(chunks(t, smaller, 1000)...), errAck(w.ack(agentpb.Ack_APPLIED, 7)))
	})
	if v := r.last(); len(v.Services) != 1 {
		t.Errorf("%d services", len(v.Services))
	}
	// What the host itself says goes before the profile.
	have := (&state{}).apply(first)
	if g := (Guard{MinVanished: 9}).guard(have); g.MinVanished != 9 || g.MaxVanished != 0.1 {
		t.Errorf("%+v", g)
	}
	if g := (Guard{}).guard(&state{}); g.MinVanished != 3 || g.MaxVanished != 0.5 {
		t.Errorf("%+v", g)
	}
}

// A profile that cannot be read is named, and what was read before stays, also
// over the journal.
func TestUnreadableProfile(t *testing.T) {
	good := &lbstatepb.DesiredProfile{Name: "edge", Revision: 4, DrainTimeout: int64(time.Minute)}
	odd := &lbstatepb.DesiredProfile{Name: "edge", Revision: 5, Snat: "a new kind"}
	st := (&state{}).apply(withProfile(stateOf(7, 5, names5()), good))
	st = st.apply(&agentpb.Update{Cluster: 7, Revision: 6, Since: 5, Profile: odd})
	for _, st := range []*state{st, stateFromBase(st.base(6))} {
		v, failures := st.view()
		if profileOf(v) != "edge@4 1m0s" || len(failures) != 1 || failures[0].Object != "profile/edge" {
			t.Errorf("%s, %v", profileOf(v), failures)
		}
		if want := stateOf(7, 6, names5()).GetDigest() + profileDigest("edge", 5); st.sum(true) != want {
			t.Error("the digest is not that of the newest")
		}
	}
	st = st.apply(&agentpb.Update{Cluster: 7, Revision: 7, Since: 6, NoProfile: true})
	if v, failures := st.view(); v.Profile != nil || len(failures) != 0 {
		t.Errorf("%s, %v", profileOf(v), failures)
	}
	if st := (&state{}).apply(&agentpb.Update{Cluster: 7, Full: true, Profile: odd}); st.profile.usable {
		t.Error("an unreadable profile is used")
	}
}

// What an agent says of its profile arrives, within bounds.
func TestAppliedProfileTravels(t *testing.T) {
	a := lbstate.Applied{Revision: 3, Profile: &lbstate.AppliedProfile{Name: "edge", Revision: 2}}
	for i := range 2 * maxFailures {
		a.Profile.Overridden = append(a.Profile.Overridden, lbstate.Overridden{Field: fmt.Sprint("f", i), Profile: "1", Host: "2"})
	}
	back := appliedFromProto(appliedToProto(a))
	if p := back.Profile; p == nil || p.Name != "edge" || p.Revision != 2 || len(p.Overridden) != maxFailures || p.Overridden[1] != a.Profile.Overridden[1] {
		t.Errorf("%+v", back.Profile)
	}
}
