package lbstate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// plainText is a configuration without what the state sets.
func plainText(t fataler, c Configuration) string {
	var b strings.Builder
	for _, o := range c.Objects() {
		m, err := tree(o)
		if err != nil {
			t.Fatal(err)
		}
		delete(m, "revision")
		if backends, ok := m["backends"].([]any); ok {
			for _, item := range backends {
				delete(item.(map[string]any), "drain_since")
			}
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\n", o.Ref(), data)
	}
	return b.String()
}

// What the history says of any revision that it keeps is what was there, and a
// rollback brings it back. INV-16.
func TestHistoryIsTrue(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode(t)
		cmds, terms := drawLog(rt)
		was := map[uint64]Configuration{0: {}}
		for i, cmd := range cmds {
			n.local.SetTerm(terms[i])
			if _, _, err := n.local.Propose(ctx, cmd); err != nil {
				rt.Fatal(err)
			}
			c, _, err := n.Configuration(ctx, ReadOptions{})
			if err != nil {
				rt.Fatal(err)
			}
			rev, err := n.Revision(ctx, ReadOptions{})
			if err != nil {
				rt.Fatal(err)
			}
			was[rev] = c
		}
		now, err := n.Revision(ctx, ReadOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		var kept []uint64
		for rev := range now + 1 {
			c, err := n.At(ctx, rev, ReadOptions{})
			if errors.Is(err, ErrCompacted) && len(kept) == 0 {
				continue
			}
			if err != nil {
				rt.Fatalf("at %d of %d: %v", rev, now, err)
			}
			if got, want := toYAML(t, c), toYAML(t, was[rev]); got != want {
				rt.Fatalf("at %d:\n got %s\nwant %s", rev, got, want)
			}
			kept = append(kept, rev)
		}
		if len(kept) == 0 || kept[len(kept)-1] != now {
			rt.Fatalf("the present is not kept: %v", kept)
		}
		if _, err := n.At(ctx, now+1, ReadOptions{}); !errors.Is(err, ErrNotFound) {
			rt.Fatal(err)
		}
		a := rapid.SampledFrom(kept).Draw(rt, "a")
		b := rapid.SampledFrom(kept).Draw(rt, "b")
		diffs, err := n.Diff(ctx, a, b, ReadOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		if same := plainText(rt, was[a]) == plainText(rt, was[b]); same != (len(diffs) == 0) {
			rt.Fatalf("from %d to %d: same %v, but the difference is %v", a, b, same, diffs)
		}
		res, err := n.Rollback(ctx, a, WriteOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		c, _, err := n.Configuration(ctx, ReadOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		if got, want := plainText(rt, c), plainText(rt, was[a]); got != want {
			rt.Fatalf("back at %d:\n got %s\nwant %s", a, got, want)
		}
		if plainText(rt, was[a]) == plainText(rt, was[now]) != (res.Outcome == Unchanged) {
			rt.Fatalf("back at %d: %+v", a, res)
		}
		if err := n.local.db.View(check); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestHistory(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	write := func(author, reason string, s Service) {
		t.Helper()
		n.clock = n.clock.Add(time.Hour)
		if _, err := n.PutService(ctx, s, WriteOptions{Author: author, Reason: reason}); err != nil {
			t.Fatal(err)
		}
	}
	heavy := 7
	write("ann", "start", web(nil))
	write("bob", "notes", web(func(s *Service) { s.Notes = "x" }))
	write("bob", "nothing new", web(func(s *Service) { s.Notes = "x" }))
	write("ann", "", web(func(s *Service) { s.Name, s.Port = "other", 81 }))
	write("eve", "heavier", web(func(s *Service) {
		s.Backends = []Backend{{Address: mustAddr("10.1.0.2")}, {Address: mustAddr("10.1.0.1"), Weight: &heavy}}
	}))
	n.remove(t, "other")

	list := func(o HistoryOptions) string {
		t.Helper()
		entries, err := n.History(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, e := range entries {
			lines = append(lines, fmt.Sprintf("%d %s %s %s %s", e.Revision, e.At.Format("15:04"), e.Author, e.Objects[0], e.Objects[0].Outcome))
		}
		return strings.Join(lines, "; ")
	}
	all := "5 08:04  service/other deleted; 4 08:04 eve service/web changed; 3 07:04 ann service/other created; 2 05:04 bob service/web changed; 1 04:04 ann service/web created"
	for o, want := range map[HistoryOptions]string{
		{}:                                   all,
		{Limit: 5000}:                        all,
		{Limit: 1}:                           "5 08:04  service/other deleted",
		{Limit: 1, Before: 3}:                "2 05:04 bob service/web changed",
		{Before: 1}:                          "",
		{Before: 99, Limit: 1}:               "5 08:04  service/other deleted",
		{Object: Ref{KindService, "other"}}:  "5 08:04  service/other deleted; 3 07:04 ann service/other created",
		{Object: Ref{KindService, "nobody"}}: "",
	} {
		if got := list(o); got != want {
			t.Errorf("%+v:\n got %s\nwant %s", o, got, want)
		}
	}
	diff := func(from, to uint64) string {
		t.Helper()
		diffs, err := n.Diff(ctx, from, to, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, d := range diffs {
			parts = append(parts, fmt.Sprintf("%s %s %v", d.Action, d.Ref, d.Fields))
		}
		return strings.Join(parts, "; ")
	}
	for _, c := range []struct {
		from, to uint64
		want     string
	}{
		{0, 1, "create service/web []"},
		{1, 0, "delete service/web []"},
		{1, 2, `change service/web [notes: nothing → "x"]`},
		{3, 5, `delete service/other []; change service/web [backends[10.1.0.1:80].weight: 100 → 7 backends[10.1.0.2:80]: nothing → {"address":"10.1.0.2","forwarding":"masq","port":80,"state":"active","weight":100} notes: "x" → nothing]`},
		{2, 5, `change service/web [backends[10.1.0.1:80].weight: 100 → 7 backends[10.1.0.2:80]: nothing → {"address":"10.1.0.2","forwarding":"masq","port":80,"state":"active","weight":100} notes: "x" → nothing]`},
		{5, 5, ""},
	} {
		if got := diff(c.from, c.to); got != c.want {
			t.Errorf("from %d to %d:\n got %s\nwant %s", c.from, c.to, got, c.want)
		}
	}
	write("ann", "order", web(func(s *Service) {
		s.Backends = []Backend{{Address: mustAddr("10.1.0.1"), Weight: &heavy}, {Address: mustAddr("10.1.0.2")}}
	}))
	if got, want := diff(5, 6), `change service/web [backends: ["10.1.0.2:80","10.1.0.1:80"] → ["10.1.0.1:80","10.1.0.2:80"]]`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// Limits are kept by dropping the oldest entries, with all that only they need.
func TestHistoryLimits(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	if _, err := n.Put(ctx, Object{Settings: &Settings{HistoryRevisions: 3, HistoryBytes: 1 << 20, HistoryAge: Duration(time.Hour)}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	kept := func() (revs []uint64) {
		t.Helper()
		entries, err := n.History(ctx, HistoryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			revs = append(revs, e.Revision)
		}
		return revs
	}
	for port := range 5 {
		n.putOn(t, "a", port+1, "")
		n.clock = n.clock.Add(30 * time.Minute)
	}
	if got := kept(); !slices.Equal(got, []uint64{6, 5, 4}) {
		t.Errorf("kept %v", got)
	}
	for rev, want := range map[uint64]int{3: 2, 4: 3, 5: 4, 6: 5} {
		if c, err := n.At(ctx, rev, ReadOptions{}); err != nil || c.Services[0].Port != want {
			t.Errorf("at %d: %v, %v", rev, c, err)
		}
	}
	if _, err := n.At(ctx, 2, ReadOptions{}); !errors.Is(err, ErrCompacted) {
		t.Error(err)
	}
	if _, err := n.Diff(ctx, 2, 6, ReadOptions{}); !errors.Is(err, ErrCompacted) {
		t.Error(err)
	}
	if _, err := n.Rollback(ctx, 2, WriteOptions{}); !errors.Is(err, ErrCompacted) || !NotApplied(err) {
		t.Error(err)
	}
	// Age is judged by who proposes, and applied as a command that names what goes.
	if pruned, err := n.PruneHistory(ctx, WriteOptions{}); err != nil || !pruned {
		t.Error(pruned, err)
	}
	if got := kept(); !slices.Equal(got, []uint64{6, 5}) {
		t.Errorf("kept %v", got)
	}
	if pruned, err := n.PruneHistory(ctx, WriteOptions{}); err != nil || pruned {
		t.Error(pruned, err)
	}
	// Size: each of these takes a good part of what is allowed.
	if _, err := n.Put(ctx, Object{Settings: &Settings{HistoryRevisions: 1000, HistoryBytes: 1 << 20}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	big := web(func(s *Service) { s.Name, s.Port, s.Backends = "big", 1000, nil })
	for i := range 300 {
		big.Backends = append(big.Backends, Backend{Address: mustAddr("10.1.0.1"), Port: i + 1, Notes: strings.Repeat("x", 1000)})
	}
	for i := range 8 {
		big.Notes = fmt.Sprint(i)
		if _, err := n.PutService(ctx, big, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(kept()); got < 2 || got > 4 {
		t.Errorf("%d revisions are kept", got)
	}
}

func TestRollback(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.put(t, checkedWeb)
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	n.report(t, "web", "10.1.0.2:80", Down, nil)
	n.put(t, strings.Replace(checkedWeb, ", {address: 10.1.0.2}", ", {address: 10.1.0.3}", 1)) // 4
	n.putOn(t, "other", 81, "")                                                                // 5
	var conflict *ConflictError
	if _, err := n.Rollback(ctx, 3, WriteOptions{IfRevision: rev(4)}); !errors.As(err, &conflict) || conflict.Current != 5 {
		t.Error(err)
	}
	res, err := n.Rollback(ctx, 3, WriteOptions{IfRevision: rev(5), Author: "ann", Reason: "too early", Key: "once"})
	if err != nil || res.Revision != 6 || len(res.Objects) != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	n.wantStates(t, "web", "up, unknown") // who stayed keeps its health
	if _, err := n.Service(ctx, "other", ReadOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if again, err := n.Rollback(ctx, 3, WriteOptions{IfRevision: rev(5), Key: "once"}); err != nil || again.Revision != 6 {
		t.Errorf("%+v, %v", again, err)
	}
	// A rollback is a revision like others: it can be taken back.
	if _, err := n.Rollback(ctx, 5, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := n.service(t, "other"); s.Revision != 7 {
		t.Errorf("revision %d", s.Revision)
	}
	if res, err := n.Rollback(ctx, 5, WriteOptions{}); err != nil || res.Outcome != Unchanged || res.Revision != 7 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := n.Rollback(ctx, 99, WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}
