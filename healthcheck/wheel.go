package healthcheck

import (
	"math/bits"
	"time"
)

const (
	tick  = 10 * time.Millisecond
	slots = 4096 // 41 s a turn; later ones stay for more turns
)

// wheel holds records by the tick at which they are due, in lists that go
// through the records themselves. Adding and removing cost the same however
// many there are. The owner serializes all calls.
type wheel struct {
	heads    [slots]*record
	occupied [slots / 64]uint64
	now      int64 // every tick up to this one was served
	size     int
}

// add places r at a tick that is still to come, the next one at the earliest.
func (w *wheel) add(r *record, at int64) {
	r.at = max(at, w.now+1)
	i := r.at % slots
	r.prev, r.next = nil, w.heads[i]
	if r.next != nil {
		r.next.prev = r
	}
	w.heads[i] = r
	w.occupied[i/64] |= 1 << (i % 64)
	w.size++
}

func (w *wheel) remove(r *record) {
	i := r.at % slots
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		w.heads[i] = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	if w.heads[i] == nil {
		w.occupied[i/64] &^= 1 << (i % 64)
	}
	r.prev, r.next = nil, nil
	w.size--
}

// advance takes out what is due at or before tick to and hands it over in the
// order of ticks. After a long sleep each slot is visited once.
func (w *wheel) advance(to int64, due func(*record)) {
	if to <= w.now {
		return
	}
	from := w.now + 1
	w.now = to
	for t := max(from, to-slots+1); t <= to; t++ {
		i := t % slots
		if w.occupied[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		for r := w.heads[i]; r != nil; {
			next := r.next
			if r.at <= to {
				w.remove(r)
				due(r)
			}
			r = next
		}
	}
}

// next is the tick of the nearest slot that holds anything; what it holds may
// be due some turns later. False when the wheel is empty.
func (w *wheel) next() (int64, bool) {
	if w.size == 0 {
		return 0, false
	}
	start := (w.now + 1) % slots
	for n := int64(0); n < slots; {
		i := (start + n) % slots
		if word := w.occupied[i/64] >> (i % 64); word != 0 {
			if step := n + int64(bits.TrailingZeros64(word)); step < slots {
				return w.now + 1 + step, true
			}
		}
		n += 64 - i%64
	}
	return w.now + slots, true
}
