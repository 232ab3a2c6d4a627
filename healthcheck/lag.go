package healthcheck

import "time"

const (
	// lagTolerance is how late a timer may fire on a host that is well, and on one
	// that is busy but does its work. Beside two busy loops on one CPU most are
	// late by less.
	lagTolerance = 3 * time.Millisecond
	// heartbeat is how often the scheduler wakes up while probes run, if only to
	// learn how late that is. What a pause takes up to the next heartbeat goes
	// unseen, so it is short against any timeout.
	heartbeat = 10 * time.Millisecond
)

// lagMeter adds up how long this process was held up (no CPU, a pause of the
// whole machine, a crowd of goroutines), as seen by the scheduler's own timer
// and turns. Times are since the engine's base; the engine's mutex guards it.
type lagMeter struct {
	total    time.Duration
	promised time.Duration // when the scheduler's timer is to fire; 0: not set
}

// queued takes note of how long the scheduler waited for its turn among the
// goroutines that are ready to run.
func (m *lagMeter) queued(d time.Duration) {
	if d > lagTolerance {
		m.total += d
	}
}

func (m *lagMeter) promise(at time.Duration) { m.promised = at }

func (m *lagMeter) woke(now time.Duration) {
	m.total = m.upTo(now)
	m.promised = 0
}

// upTo is the lag until now, with that of a wake-up that is overdue: a probe
// may come back from a pause before the scheduler does.
func (m *lagMeter) upTo(now time.Duration) time.Duration {
	if late := now - m.promised; m.promised != 0 && late > lagTolerance {
		return m.total + late
	}
	return m.total
}

// believable turns a failure that this host's own lateness can explain into an
// inconclusive result: the probe overran its timeout, or the process was held
// up for a good part of it.
func believable(res Result, elapsed, lag, timeout, slack time.Duration) Result {
	slack = max(slack, timeout/10)
	late := elapsed > timeout+slack || lag > slack
	if !late || !timeBound(res.Class) {
		return res
	}
	return Result{
		Class: Local, Phase: res.Phase, Expected: res.Expected, Latency: res.Latency,
		Found:  res.Class.String() + ", while this host was late itself",
		Advice: "look for a lack of CPU on this host",
	}
}

// timeBound says whether a class can be the doing of a host that is late. A
// peer gives up on who does not answer, so a reset or an early end can be too.
func timeBound(c Class) bool {
	return c == Timeout || c == Reset || c == Protocol || c == DNS || c == TLS
}
