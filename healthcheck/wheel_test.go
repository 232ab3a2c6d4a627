package healthcheck

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The wheel against a list: whatever is due comes out, once, in order, and
// nothing else does.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &wheel{now: rapid.Int64Range(0, 3*slots).Draw(t, "now")}
		var model []*record
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				at := w.now + rapid.Int64Range(-5, 3*slots).Draw(t, "in")
				r := new(record)
				w.add(r, at)
				if r.at != max(at, w.now+1) {
					t.Fatalf("at %d, want %d or the next", r.at, at)
				}
				model = append(model, r)
			},
			"remove": func(t *rapid.T) {
				if len(model) == 0 {
					return
				}
				i := rapid.IntRange(0, len(model)-1).Draw(t, "i")
				w.remove(model[i])
				model = slices.Delete(model, i, i+1)
			},
			"advance": func(t *rapid.T) {
				to := w.now + rapid.OneOf(rapid.Int64Range(-1, 100), rapid.Int64Range(0, 3*slots)).Draw(t, "by")
				short := to-w.now <= slots
				var last int64
				w.advance(to, func(r *record) {
					i := slices.Index(model, r)
					if i < 0 || r.at > to {
						t.Fatalf("due at %d by %d, known: %v", r.at, to, i >= 0)
					}
					if short && r.at < last {
						t.Fatalf("%d after %d", r.at, last)
					}
					last = r.at
					model = slices.Delete(model, i, i+1)
				})
				for _, r := range model {
					if r.at <= to {
						t.Fatalf("one that was due at %d is left at %d", r.at, to)
					}
				}
			},
			"": func(t *rapid.T) {
				if w.size != len(model) {
					t.Fatalf("size %d, want %d", w.size, len(model))
				}
				next, ok := w.next()
				if ok != (len(model) > 0) {
					t.Fatalf("next says %v with %d records", ok, len(model))
				}
				// It may be too early, where a slot holds a later turn, never too late.
				for _, r := range model {
					if next > r.at || next <= w.now {
						t.Fatalf("next is %d at %d with a record at %d", next, w.now, r.at)
					}
				}
			},
		})
	})
}
