package agent

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Statistics are kept twice: each ten seconds for ten minutes, and each minute
// for an hour. A number takes two bytes and is exact up to 2047, else within a
// thousandth. So a service or backend takes less than 2 KiB, and 1,000 services
// of 10 backends 20 MiB; what is beyond maxSeries is not kept.
const (
	fineSpan, fineKept     = 10 * time.Second, 66 // ten minutes, and the one that has just begun
	coarseSpan, coarseKept = time.Minute, 60
	maxSeries              = 20_000
)

// rough is a number with eleven bits, and how far they are shifted.
type rough uint16

func roughly(n uint64) rough {
	shift := max(0, bits.Len64(n)-11)
	if shift > 31 { // more than a network carries in a minute
		return 0xffff
	}
	return rough(n>>shift | uint64(shift)<<11)
}

func (r rough) value() uint64 { return uint64(r&0x7ff) << (r >> 11) }

// sample is what was counted within a time: connections, packets in and out,
// bytes in and out; and the connections established at its end.
type sample [6]rough

type seriesKey struct {
	service string
	backend netip.AddrPort // zero: the service as a whole
}

// series is one service or backend.
type series struct {
	last, minute lbstate.Traffic // as read last, and when the present minute began
	read         int             // number of the last reading that had it
	fine, coarse track
}

// track is a series' samples: that of the n-th time at n modulo the number kept.
type track struct {
	samples []sample
	first   int // what was before is of another time, or was not counted
}

// times are when the last samples of all series ended.
type times struct {
	ends    []time.Time
	seconds []uint32
	n       int // so many there have been
}

func (t *times) add(end time.Time, length time.Duration, kept int) {
	if len(t.ends) < kept {
		t.ends, t.seconds = append(t.ends, end), append(t.seconds, 0)
	}
	t.ends[t.n%kept], t.seconds[t.n%kept] = end, uint32(length.Round(time.Second)/time.Second)
	t.n++
}

// add keeps the n-th sample.
func (t *track) add(n, kept int, s sample) {
	if t.samples == nil {
		t.first = n
	}
	if len(t.samples) < kept {
		grown := make([]sample, min(kept, max(n%kept+1, 2*len(t.samples))))
		copy(grown, t.samples)
		t.samples = grown
	}
	t.samples[n%kept] = s
}

// each calls f with the samples that ended after since and no later than until,
// the oldest first.
func (t *track) each(ts *times, since, until time.Time, f func(end time.Time, seconds uint32, s sample)) {
	kept := len(ts.ends)
	for n := max(t.first, ts.n-kept); t.samples != nil && n < ts.n; n++ {
		if end := ts.ends[n%kept]; end.After(since) && !end.After(until) {
			f(end, ts.seconds[n%kept], t.samples[n%kept])
		}
	}
}

// between is what was counted from one reading to the next. Counters that went
// back began anew.
func between(from, to lbstate.Traffic) sample {
	n := func(from, to uint64) rough {
		if to < from {
			from = 0
		}
		return roughly(to - from)
	}
	return sample{
		n(from.Connections, to.Connections), n(from.PacketsIn, to.PacketsIn), n(from.PacketsOut, to.PacketsOut),
		n(from.BytesIn, to.BytesIn), n(from.BytesOut, to.BytesOut), roughly(to.Active),
	}
}

// history is the statistics of an agent. It belongs to one goroutine at a time.
type history struct {
	all          map[seriesKey]*series
	readings     int
	last, minute time.Time // of the last reading, and of when the present minute began
	fine, coarse times
}

// take takes a reading of all counters.
func (h *history) take(at time.Time, read []lbstate.Traffic) {
	if h.all == nil {
		h.all, h.minute, h.last = map[seriesKey]*series{}, at, at
	}
	h.readings++
	full := at.Sub(h.minute) >= coarseSpan-fineSpan/2 // readings are not exactly on time
	for _, t := range read {
		key := seriesKey{t.Service, t.Backend}
		s := h.all[key]
		if s == nil && len(h.all) >= maxSeries {
			continue
		}
		if s == nil || s.read != h.readings-1 { // what was counted before is of no known time
			s = &series{minute: t, last: t}
			h.all[key] = s
		} else {
			s.fine.add(h.fine.n, fineKept, between(s.last, t))
			if full {
				s.coarse.add(h.coarse.n, coarseKept, between(s.minute, t))
				s.minute = t
			}
		}
		s.last, s.read = t, h.readings
	}
	if h.readings > 1 {
		h.fine.add(at, at.Sub(h.last), fineKept)
		if full {
			h.coarse.add(at, at.Sub(h.minute), coarseKept)
		}
	}
	h.last = at
	if full {
		h.minute = at
	}
	for key, s := range h.all {
		if s.read != h.readings {
			delete(h.all, key) // the kernel has it no more
		}
	}
}

// border is where minutes end from which each ten seconds are known: what is
// before is told by minutes.
func (h *history) border() time.Time {
	if h.fine.n == 0 || h.coarse.n == 0 {
		return time.Time{}
	}
	oldest := max(0, h.fine.n-len(h.fine.ends)) % len(h.fine.ends)
	known := h.fine.ends[oldest].Add(-time.Duration(h.fine.seconds[oldest]) * time.Second)
	best := time.Time{}
	for _, end := range h.coarse.ends {
		if !end.Before(known) && (best.IsZero() || end.Before(best)) {
			best = end
		}
	}
	return best
}

// lookup returns what was counted since a time: of one service with its backends,
// or of all services without theirs. cut says that it is not all, since it would
// be more than limit samples.
func (h *history) lookup(service string, since time.Time, limit int) (out []*agentpb.Series, cut bool) {
	var keys []seriesKey
	for key := range h.all {
		if service == "" && !key.backend.IsValid() || service != "" && key.service == service {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b seriesKey) int {
		return cmp.Or(cmp.Compare(a.service, b.service), a.backend.Compare(b.backend))
	})
	border := h.border()
	for _, key := range keys {
		if limit <= 0 {
			return out, true
		}
		s := &agentpb.Series{Service: key.service}
		if key.backend.IsValid() {
			s.Address, s.Port = key.backend.Addr().AsSlice(), uint32(key.backend.Port())
		}
		from := since
		add := func(end time.Time, seconds uint32, v sample) {
			from = end
			s.At, s.Seconds = append(s.At, end.Unix()), append(s.Seconds, seconds)
			s.Connections = append(s.Connections, v[0].value())
			s.PacketsIn, s.PacketsOut = append(s.PacketsIn, v[1].value()), append(s.PacketsOut, v[2].value())
			s.BytesIn, s.BytesOut = append(s.BytesIn, v[3].value()), append(s.BytesOut, v[4].value())
			s.Active = append(s.Active, v[5].value())
			limit--
		}
		h.all[key].coarse.each(&h.coarse, since, border, add)
		h.all[key].fine.each(&h.fine, from, h.last, add)
		out = append(out, s)
	}
	return out, false
}
