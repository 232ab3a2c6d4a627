package lbstate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// seen is an update as text: "full 0..3 web@2 -gone".
func seen(u Update) string {
	var b strings.Builder
	if u.Full {
		b.WriteString("full ")
	}
	fmt.Fprintf(&b, "%d..%d", u.Since, u.Revision)
	for _, s := range u.Services {
		fmt.Fprintf(&b, " %s@%d", s.Name, s.Version)
	}
	for _, name := range u.Removed {
		fmt.Fprintf(&b, " -%s", name)
	}
	return b.String()
}

func wantUpdate(t *testing.T, w *Watcher, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	u, err := w.Next(ctx)
	if err != nil {
		t.Errorf("waiting for %q: %v", want, err)
	} else if got := seen(u); got != want {
		t.Errorf("update %q, not %q", got, want)
	}
}

// wantQuiet says that a watcher has nothing to tell.
func wantQuiet(t *testing.T, w *Watcher) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if u, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("update %q, %v", seen(u), err)
	}
}

func (n *node) putOn(t testing.TB, name string, port int, agents string) {
	t.Helper()
	n.put(t, fmt.Sprintf(`{name: %s, vip: 192.0.2.10, port: %d, agents: {%s}, backends: [{address: 10.1.0.1}]}`, name, port, agents))
}

func (n *node) remove(t testing.TB, name string) {
	t.Helper()
	if _, err := n.DeleteService(context.Background(), name, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	n := newNode(t)
	empty := n.Watch(WatchOptions{})
	wantUpdate(t, empty, "full 0..0")
	wantQuiet(t, empty)

	n.putOn(t, "a", 1, "")
	n.putOn(t, "b", 2, "")
	wantUpdate(t, empty, "0..2 a@1 b@2")
	slow := n.Watch(WatchOptions{From: 2})
	wantQuiet(t, slow)

	// Each service once, as it is now; one that came and went is gone.
	n.putOn(t, "a", 3, "")
	n.putOn(t, "a", 4, "")
	n.putOn(t, "c", 5, "")
	n.remove(t, "b")
	n.remove(t, "c")
	wantUpdate(t, slow, "2..7 a@4 -b -c")
	wantQuiet(t, slow)
	wantUpdate(t, empty, "2..7 a@4 -b -c")

	// From any revision.
	wantUpdate(t, n.Watch(WatchOptions{From: 1}), "1..7 a@4 -b -c")
	wantUpdate(t, n.Watch(WatchOptions{From: 5}), "5..7 -b -c")
	wantUpdate(t, n.Watch(WatchOptions{From: 0}), "full 0..7 a@4")
	wantUpdate(t, n.Watch(WatchOptions{From: 5, Full: true}), "full 5..7 a@4 -b -c")
	wantUpdate(t, n.Watch(WatchOptions{From: 99}), "full 0..7 a@4") // this state never had it

	// A change that no service sees moves the revision in silence.
	if _, err := n.Put(t.Context(), Object{Profile: &DirectorProfile{Name: "edge"}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantQuiet(t, slow)
	n.putOn(t, "a", 6, "")
	wantUpdate(t, slow, "8..9 a@9")
}

func TestWatchLabels(t *testing.T) {
	n := newNode(t)
	n.putOn(t, "all", 1, "")
	n.putOn(t, "east", 2, "site: east")
	n.putOn(t, "west", 3, "site: west")
	east := n.Watch(WatchOptions{Labels: map[string]string{"site": "east", "rack": "7"}})
	none := n.Watch(WatchOptions{Labels: map[string]string{}})
	wantUpdate(t, east, "full 0..3 all@1 east@2")
	wantUpdate(t, none, "full 0..3 all@1")

	n.putOn(t, "west", 3, "site: east") // moves here
	wantUpdate(t, east, "3..4 west@4")
	n.putOn(t, "east", 2, "site: west") // moves away
	wantUpdate(t, east, "4..5 -east")
	n.putOn(t, "all", 1, "site: east, rack: \"7\"")
	wantUpdate(t, east, "5..6 all@6")
	wantUpdate(t, none, "3..6 -all -east -west") // names that it never had may stand among the removed
	n.remove(t, "west")
	wantUpdate(t, east, "6..7 -west")
	wantUpdate(t, n.Watch(WatchOptions{From: 4, Full: true, Labels: map[string]string{"site": "east", "rack": "7"}}), "full 4..7 all@6 -east -west")
}

// A revision that is no longer kept gives the full state.
func TestWatchCompaction(t *testing.T) {
	n := newNode(t)
	settings := Settings{ChangeRevisions: 3}
	if _, err := n.Put(t.Context(), Object{Settings: &settings}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.putOn(t, "a", 1, "")
	lagging := n.Watch(WatchOptions{From: 2})
	wantQuiet(t, lagging)
	for port := range 4 {
		n.putOn(t, "b", 10+port, "")
	}
	n.remove(t, "a")
	wantUpdate(t, lagging, "full 0..7 b@6")
	wantUpdate(t, n.Watch(WatchOptions{From: 3}), "full 0..7 b@6")
	wantUpdate(t, n.Watch(WatchOptions{From: 4}), "4..7 b@6 -a")
	// A limit that was lowered is caught up with.
	settings = Settings{ChangeRevisions: 1}
	if _, err := n.Put(t.Context(), Object{Settings: &settings}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.putOn(t, "b", 20, "")
	wantUpdate(t, n.Watch(WatchOptions{From: 7}), "full 0..9 b@9")
	wantUpdate(t, n.Watch(WatchOptions{From: 8}), "8..9 b@9")
}

// After a snapshot took the database's place everyone gets the full state.
func TestWatchRestored(t *testing.T) {
	n := newNode(t)
	n.putOn(t, "a", 1, "")
	n.putOn(t, "b", 2, "")
	w := n.Watch(WatchOptions{})
	wantUpdate(t, w, "full 0..2 a@1 b@2")
	wantQuiet(t, w)
	if err := n.local.db.View(n.state.Restored); err != nil {
		t.Fatal(err)
	}
	wantUpdate(t, w, "full 2..2 a@1 b@2")
	wantQuiet(t, w)

	// One that is behind: an older snapshot, or another cluster's.
	if err := n.local.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(Bucket)) }); err != nil {
		t.Fatal(err)
	}
	if err := n.local.db.View(n.state.Restored); err != nil {
		t.Fatal(err)
	}
	wantUpdate(t, w, "full 0..0")
	n.putOn(t, "c", 3, "")
	wantUpdate(t, w, "0..1 c@1")
	if services, _, err := n.Services(t.Context(), ReadOptions{}); err != nil || len(services) != 1 || services[0].Name != "c" {
		t.Errorf("%v, %v", services, err)
	}
}

// Next wakes up for a change, and gives up with its context.
func TestWatchWaits(t *testing.T) {
	n := newNode(t)
	w := n.Watch(WatchOptions{})
	wantUpdate(t, w, "full 0..0")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := w.Next(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	updates := make(chan Update)
	go func() {
		u, err := w.Next(context.Background())
		if err != nil {
			t.Error(err)
		}
		updates <- u
	}()
	n.putOn(t, "a", 1, "")
	if got := seen(<-updates); got != "0..1 a@1" {
		t.Error(got)
	}
}

// Any sequence of deltas, taken whenever one likes, equals the full state. INV-13.
func TestDeltasEqualFullState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode(t)
		type follower struct {
			w    *Watcher
			have map[string]uint64
		}
		labels := []map[string]string{nil, {}, {"site": "east"}, {"site": "west"}}
		var followers []*follower
		for _, l := range labels {
			followers = append(followers, &follower{n.Watch(WatchOptions{Labels: l}), nil})
		}
		next := func(f *follower) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			u, err := f.w.Next(ctx)
			if errors.Is(err, context.Canceled) {
				return
			}
			if err != nil {
				rt.Fatal(err)
			}
			if u.Full {
				f.have = map[string]uint64{}
			}
			for _, s := range u.Services {
				f.have[s.Name] = s.Version
			}
			for _, name := range u.Removed {
				delete(f.have, name)
			}
		}
		if rapid.Bool().Draw(rt, "short") {
			s := Settings{ChangeRevisions: 2}
			if _, err := n.Put(context.Background(), Object{Settings: &s}, WriteOptions{}); err != nil {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			i := rapid.IntRange(0, 3).Draw(rt, "service")
			name := string(rune('a' + i))
			switch rapid.IntRange(0, 6).Draw(rt, "step") {
			case 0:
				if _, err := n.DeleteService(context.Background(), name, WriteOptions{}); err != nil && !errors.Is(err, ErrNotFound) {
					rt.Fatal(err)
				}
			case 1:
				if err := n.local.db.View(n.state.Restored); err != nil {
					rt.Fatal(err)
				}
			case 2, 3:
				next(followers[rapid.IntRange(0, len(followers)-1).Draw(rt, "follower")])
			default:
				n.putOn(t, name, rapid.IntRange(1, 2).Draw(rt, "variant")*10+i, rapid.SampledFrom([]string{"", "site: east", "site: west"}).Draw(rt, "agents"))
			}
		}
		for i, f := range followers {
			next(f)
			u, err := n.Watch(WatchOptions{Labels: labels[i]}).Next(context.Background())
			if err != nil {
				rt.Fatal(err)
			}
			want := map[string]uint64{}
			for _, s := range u.Services {
				want[s.Name] = s.Version
			}
			if !maps.Equal(f.have, want) {
				rt.Fatalf("the follower of %v has %v, the state is %v", labels[i], f.have, want)
			}
			// And the cache gives what the database says.
			if err := n.local.ReadStale(func(tx *bbolt.Tx) error {
				v := openView(tx)
				return v.each(KindService, nil, func(r record) error {
					st, err := v.statusOf(*r.Service)
					j := slices.IndexFunc(u.Services, func(s ServiceStatus) bool { return s.Name == st.Name })
					if err == nil && j >= 0 && fmt.Sprint(Desired(u.Services[j])) != fmt.Sprint(Desired(st)) {
						err = fmt.Errorf("the cache has another %s", st.Name)
					}
					return err
				})
			}); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// Those who wake together are given the same bytes, in each form.
func TestWatchersShareOneEncoding(t *testing.T) {
	n := newNode(t)
	n.putOn(t, "a", 1, "")
	const many = 500
	type bytesOf struct{ desired, json *byte }
	got := make(chan bytesOf, many)
	var ready, done sync.WaitGroup
	ready.Add(many)
	for i := range many {
		done.Go(func() {
			o := WatchOptions{From: 1}
			if i%2 == 1 {
				o.Labels = map[string]string{"site": "east"}
			}
			w := n.Watch(o)
			wantQuiet(t, w)
			ready.Done()
			u, err := w.Next(context.Background())
			if err != nil || seen(u) != "1..2 b@2" {
				t.Error(seen(u), err)
				return
			}
			desired, err := u.Services[0].EncodedDesired()
			if err != nil {
				t.Error(err)
			}
			shown, err := u.Services[0].EncodedJSON()
			if err != nil {
				t.Error(err)
			}
			got <- bytesOf{&desired[0], &shown[0]}
		})
	}
	ready.Wait()
	n.putOn(t, "b", 2, "site: east")
	done.Wait()
	close(got)
	different := map[bytesOf]int{}
	for b := range got {
		different[b]++
	}
	if len(different) != 1 {
		t.Errorf("there are %d encodings of one change", len(different))
	}
	st := n.service(t, "b")
	if data, err := json.Marshal(st); err != nil || string(data) != string(must(st.EncodedJSON())) {
		t.Errorf("%s, %v", data, err)
	}
	if again, err := DesiredFromProto(must(decodeDesired(must(st.EncodedDesired())))); err != nil || again.Name != "b" {
		t.Error(again, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
