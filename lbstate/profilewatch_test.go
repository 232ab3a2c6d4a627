package lbstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

func (n *node) putProfile(t rapid.TB, text string) {
	p, err := DecodeProfile([]byte(text))
	if err == nil {
		_, err = n.Put(context.Background(), Object{Profile: &p}, WriteOptions{})
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func (n *node) deleteProfile(t rapid.TB, name string) {
	if _, err := n.Delete(context.Background(), Ref{KindProfile, name}, WriteOptions{}); err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatalf("delete %s: %v", name, err)
	}
}

// profileSeen is what an update says of the profile: "edge@3", "none", and "="
// before it where it is not said to have changed.
func profileSeen(u Update) string {
	text := "none"
	if u.Profile != nil {
		text = fmt.Sprintf("%s@%d", u.Profile.Name, u.Profile.Revision)
	}
	if !u.ProfileChanged {
		text = "=" + text
	}
	return text
}

// TestWatchProfile: a watcher learns of each change that alters the profile of
// its labels, and of no other.
func TestWatchProfile(t *testing.T) {
	n := newNode(t)
	next := func(w *Watcher, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		u, err := w.Next(ctx)
		if got := seen(u) + " " + profileSeen(u); err != nil || got != want {
			t.Errorf("update %q, %v; want %q", got, err, want)
		}
	}
	n.putOn(t, "web", 80, "")
	east := n.Watch(WatchOptions{Labels: map[string]string{"site": "east"}})
	west := n.Watch(WatchOptions{Labels: map[string]string{"site": "west"}})
	all := n.Watch(WatchOptions{})
	next(east, "full 0..1 web@1 none")
	next(west, "full 0..1 web@1 none")
	next(all, "full 0..1 web@1 =none")

	n.putProfile(t, `{name: east, agents: {site: east}}`)
	next(east, "1..2 east@2")
	wantQuiet(t, west)
	wantQuiet(t, all)
	n.putProfile(t, `{name: base, priority: -1}`)
	wantQuiet(t, east)
	next(west, "2..3 base@3")
	n.putProfile(t, `{name: east, agents: {site: east}, priority: -2}`) // demoted
	next(east, "3..4 base@3")
	n.putProfile(t, `{name: east, agents: {site: east}, priority: 2}`)
	next(east, "4..5 east@5")
	n.putProfile(t, `{name: east, agents: {site: north}, priority: 2}`) // selects others
	next(east, "5..6 base@3")
	n.deleteProfile(t, "base")
	next(east, "6..7 none")
	next(west, "3..7 none")
	n.putOn(t, "dns", 53, "")
	next(east, "7..8 dns@8 =none")

	// One that comes back: what it had then is not known, so what is now is said.
	next(n.Watch(WatchOptions{From: 6, Labels: map[string]string{"site": "east"}}), "6..8 dns@8 none")
	next(n.Watch(WatchOptions{From: 7, Labels: map[string]string{"site": "north"}}), "7..8 dns@8 =east@6")
	wantQuiet(t, n.Watch(WatchOptions{From: 8, Labels: map[string]string{"site": "north"}}))
}

// TestWatchProfileRandom: whatever changes, a watcher's profile is the one that a
// look at all of them finds, and each other one was announced.
func TestWatchProfileRandom(t *testing.T) {
	n := newNode(t)
	rapid.Check(t, func(t *rapid.T) {
		sites := []string{"east", "west", "north"}
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		watchers := map[string]*Watcher{}
		holds := map[string]string{}
		for _, site := range sites {
			watchers[site] = n.Watch(WatchOptions{Labels: map[string]string{"site": site}})
			holds[site] = "?"
		}
		port := 0
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch name := names.Draw(t, "name"); rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				n.deleteProfile(t, name)
			case 1:
				port++
				s, err := DecodeService([]byte(fmt.Sprintf(`{name: web, vip: 192.0.2.10, port: %d, backends: [{address: 10.1.0.1}]}`, port)))
				if err == nil {
					_, err = n.PutService(context.Background(), s, WriteOptions{})
				}
				if err != nil {
					t.Fatal(err)
				}
			default:
				selector := rapid.SampledFrom(append([]string{""}, sites...)).Draw(t, "site")
				if selector != "" {
					selector = "site: " + selector
				}
				n.putProfile(t, fmt.Sprintf(`{name: %s, agents: {%s}, priority: %d}`, name, selector, rapid.IntRange(-1, 1).Draw(t, "priority")))
			}
			for site, w := range watchers {
				if rapid.Bool().Draw(t, "lags") {
					continue
				}
				want := "none"
				p, ok, err := n.ProfileFor(context.Background(), map[string]string{"site": site}, ReadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if ok {
					want = fmt.Sprintf("%s@%d", p.Name, p.Revision)
				}
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				u, err := w.Next(ctx)
				if err == nil && (u.Full || u.ProfileChanged) {
					holds[site] = profileSeen(Update{Profile: u.Profile, ProfileChanged: true})
				}
				if holds[site] != want {
					t.Fatalf("the watcher of %s was told of %s, but has %s (%v)", site, holds[site], want, err)
				}
			}
		}
	})
}

func TestDesiredProfileTravels(t *testing.T) {
	for _, text := range []string{
		`{name: none}`,
		`{name: all, timeouts: {tcp: 15m, tcp_fin: 30s, udp: 1m}, sync_daemons: [{role: master, interface: eth1, id: 7, group: 224.0.0.90, port: 9000, ttl: 2, max_length: 1400}, {role: backup, interface: eth1}],
		  sysctls: {net.ipv4.vs.drop_entry: "1", net.ipv4.ip_forward: "1"}, release_vips: true, allowed_prefixes: [192.0.2.0/24, "2001:db8::/64"], snat: all, drain_timeout: 90s, guard: {max_services: 7}}`,
	} {
		p, err := DecodeProfile([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		p = p.withDefaults()
		p.Revision = 12
		d := p.Desired()
		back, err := DesiredProfileFromProto(d.Proto())
		if err != nil || !back.Equal(&d) {
			t.Errorf("%+v became %+v, %v", d, back, err)
		}
	}
	for what, p := range map[string]*lbstatepb.DesiredProfile{
		"no name": {},
		"snat":    {Name: "a", Snat: "some"},
		"drain":   {Name: "a", DrainTimeout: -1},
		"prefix":  {Name: "a", AllowedPrefixes: []string{"192.0.2.0"}},
		"group":   {Name: "a", SyncDaemons: []*lbstatepb.SyncDaemon{{Group: []byte{1}}}},
		"id":      {Name: "a", SyncDaemons: []*lbstatepb.SyncDaemon{{Id: 256}}},
		"daemons": {Name: "a", SyncDaemons: make([]*lbstatepb.SyncDaemon, 3)},
		"percent": {Name: "a", Guard: &lbstatepb.Guard{MaxPercent: 101}},
	} {
		if d, err := DesiredProfileFromProto(p); err == nil {
			t.Errorf("%s: %+v was taken", what, d)
		}
	}
	var none *DesiredProfile
	if d := (&DesiredProfile{Name: "a"}); none.Equal(d) || d.Equal(none) || !none.Equal(nil) {
		t.Error("none is not the same as one")
	}
}

func FuzzDesiredProfile(f *testing.F) {
	whole := DesiredProfile{Name: "a", SNAT: SNATAll, AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Guard: Guard{3, 50}}
	seed, err := encode(whole.Proto())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p lbstatepb.DesiredProfile
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		d, err := DesiredProfileFromProto(&p)
		if err != nil {
			return
		}
		if back, err := DesiredProfileFromProto(d.Proto()); err != nil || !back.Equal(&d) {
			t.Errorf("%+v became %+v, %v", d, back, err)
		}
	})
}
