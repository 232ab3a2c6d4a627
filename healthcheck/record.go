package healthcheck

import (
	"math"
	"math/bits"
	"net/netip"
	"reflect"
	"time"
	"unique"
)

// place says where a record is; it is in one place at a time.
type place uint8

const (
	resting place = iota // paused, or the engine does not run yet
	wheeled              // in the wheel, to be probed later
	queued               // due, waiting for a free place in its lane
	running              // a goroutine probes it
)

// policy is the part of a Check that many checks have in common. Records share
// one copy, which keeps an idle check small.
type policy struct {
	interval, doubt, down, timeout time.Duration
	rise, fall                     int32
	canary                         bool
}

// record is what the engine knows of one check. Its size is what an idle check
// costs: a test holds it down.
type record struct {
	id     string
	target netip.AddrPort
	probe  Probe
	policy unique.Handle[policy]

	next, prev *record // in the wheel or in a lane's queue
	at         int64   // the tick at which it is, or was last, due

	generation uint32 // one up with each change: a result of a former one is dropped
	streak     int32  // successes in a row, failures in a row when negative; saturating
	place      place
	raw        State // what its own results say
	effective  State // what stands: differs from raw while a fall is held
	told       State // what the sink has acknowledged
	toldHeld   bool  // likewise
	confirmed  bool  // its own results agreed with raw, rise or fall times in a row
	paused     bool
	removed    bool
	stalled    bool // the last result was a timeout, or as slow: it runs in that lane
	pending    bool // in Engine.pending
	uncertain  bool // a report failed: the sink may or may not have it
	announce   bool // a confirmation is to be reported

	since    time.Duration // when effective changed, since the engine's base; 0: never
	fell     time.Duration // when raw fell from up to down; 0: it did not, or came back
	last     time.Duration // end of the last probe; 0: never
	latency  time.Duration // of the last success
	result   *Result       // the last result; nil: none, or a plain success
	cause    *Result       // the last result that changed raw; nil: none, or a plain success
	quantile histogram
}

func newRecord(c Check) *record {
	return &record{
		id: c.ID, target: c.Target, probe: c.Probe, policy: policyOf(c),
		raw: c.Initial, effective: c.Initial, told: c.Initial,
	}
}

func policyOf(c Check) unique.Handle[policy] {
	return unique.Make(policy{
		interval: c.Interval, doubt: c.DoubtInterval, down: c.DownInterval, timeout: c.Timeout,
		rise: int32(c.Rise), fall: int32(c.Fall), canary: c.Canary,
	})
}

// same says whether c asks for what r does already. Initial does not count: it
// was for the beginning.
func (r *record) same(c Check) bool {
	return r.target == c.Target && r.policy == policyOf(c) && sameProbe(r.probe, c.Probe)
}

func sameProbe(a, b Probe) bool {
	ta, tb := reflect.TypeOf(a), reflect.TypeOf(b)
	return ta == tb && ta.Comparable() && a == b
}

// change makes r ask what c says. The states stand until r's own results under
// the new terms change them.
func (r *record) change(c Check) {
	r.target, r.probe, r.policy = c.Target, c.Probe, policyOf(c)
	r.generation++
	r.raw = r.effective
	r.streak, r.confirmed, r.stalled = 0, false, false
}

// held says whether r's fall is not believed.
func (r *record) held() bool { return r.raw == Down && r.effective == Up }

// judge takes one conclusive result into account and says whether raw changed.
func (r *record) judge(ok bool) bool {
	p := r.policy.Value()
	switch {
	case ok && r.streak < 0, !ok && r.streak > 0:
		r.streak = 0
	}
	if ok {
		r.streak = min(r.streak, math.MaxInt32-1) + 1
	} else {
		r.streak = max(r.streak, -math.MaxInt32+1) - 1
	}
	before := r.raw
	switch {
	case ok && r.raw == Unknown, r.raw == Down && r.streak >= p.rise:
		r.raw = Up
	case r.raw != Down && -r.streak >= p.fall:
		r.raw = Down
	}
	if r.raw != before || r.raw == Up && r.streak >= p.rise || r.raw == Down && -r.streak >= p.fall {
		r.confirmed = true
	}
	return r.raw != before
}

// interval is the time between probes that r's state calls for.
func (r *record) interval() time.Duration {
	p := r.policy.Value()
	switch {
	case r.raw == Up && r.streak < 0, r.raw == Down && r.streak > 0:
		return p.doubt
	case r.raw != Up:
		return p.down
	default:
		return p.interval
	}
}

// grid is the first point after t of the times that r's ID gives it in every
// interval: ID alone decides, so that checks stay spread whatever happens to
// them, and however late one was.
func (r *record) grid(t, interval time.Duration) time.Duration {
	off, _ := bits.Mul64(hash(r.id), uint64(interval))
	offset := time.Duration(off)
	if t < offset {
		return offset
	}
	return offset + ((t-offset)/interval+1)*interval
}

// hash is FNV-1a with a finisher (of splitmix64): the high bits of FNV alone
// are much alike for names that differ in their last letters.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// lane is a bounded set of running probes and the queue before it.
type lane struct {
	limit, running, waiting int
	head, tail              *record
}

func (l *lane) push(r *record) {
	r.prev, r.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = r
	} else {
		l.head = r
	}
	l.tail = r
	l.waiting++
}

func (l *lane) remove(r *record) {
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		l.head = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	} else {
		l.tail = r.prev
	}
	r.prev, r.next = nil, nil
	l.waiting--
}

func (l *lane) pop() *record {
	r := l.head
	if r != nil {
		l.remove(r)
	}
	return r
}
