// Package healthcheck is an engine that probes any number of targets for ever,
// judges them, and reports what changed, in batches. It knows nothing of load
// balancers or of replication: any Go program can use it. Package
// healthcheck/probe has ways to ask a target.
//
// # Nouns
//
// A [Check] is one target to probe for ever, in one way and by one set of rules.
// A [Probe] asks once and gives a [Result], whose [Class] says what kind of
// answer it was, and whose texts say in which phase, what was expected, what was
// found, and what to do. An [Engine] runs checks; a [Sink] takes their
// transitions; [Metrics] and a log tell the rest.
//
// # Judgment
//
// A target is unknown, up or down. Of an unknown one the first success says that
// it is up. One that is up falls after Fall failures in a row, one that is down
// rises after Rise successes in a row. Initial is what the sink knows already;
// it stands until the check's own results change it. A changed check keeps its
// state, and counts from nothing. Pause freezes a check; what comes of a probe
// that runs while its check is changed, paused or removed is dropped.
//
// A result of class Local is inconclusive: it counts neither against a target
// nor for it. Probes give it when this host is to blame (no files, no ports, a
// missing privilege), and the engine turns a failure into it that this host's
// own lateness can explain: the probe overran its timeout by more than
// Config.Slack, or the process was held up for as long while it ran. The
// scheduler measures that by its own timer and by its turn among the goroutines
// that are ready. The price: while a host is so late, dead targets are not found.
//
// # Time
//
// A check is probed at times that its ID alone decides, one interval apart: sets
// of checks stay spread, on every host in the same way. Jitter moves each a
// little. There are intervals for targets that are up, in doubt, and down or
// unknown. New checks begin at once, ten thousand a second at most. A probe that
// takes longer than its interval leaves runs out; nothing is caught up on.
//
// Timeouts count from when a probe starts, not from when it was due. Probes in
// flight are bounded, in two lanes: targets whose last result was a timeout, or
// a failure as slow, run in one of their own, so they hold up each other alone.
//
// # Mass failure
//
// When more than a share of the targets that were up fall within a window, this
// host is suspected before they are believed ([Hold]): from then on who falls
// stays up in effect and is marked as held. A hold ends when most targets came
// back, or when every canary answers (targets that are expected to be always up,
// which are asked at once when it begins); upon which what is still down is asked
// again and believed when it fails again. Or it ends at its limit in time, or by
// request, upon which what is down is believed at once. Those that fell before
// there were enough of them for a suspicion stay down.
//
// # Reports
//
// Transitions wait Config.Coalesce for others, and go to the sink in one call,
// one at a time, in order of Seq. What is reported is a check's present state: a
// target that came back before the report is not in it. A call that fails is
// repeated with back-off, until the sink has taken what then is true; so a sink
// must be idempotent, and may tell old reports by Epoch and Seq. Texts that vary
// from run to run are no transitions. [Engine.Announce] has a state reported
// again.
//
// # Events
//
// [Engine.Events] has the last transitions, first failures, warnings, holds,
// pauses, and the alarms of a watchdog that notices when checks stay overdue.
// Whoever looks on asks for what comes after what it has seen: a slow one misses
// some, and holds up nobody.
//
// # Cost
//
// An idle check takes 266 bytes, its name and its place in the index included;
// adding one to 100,000 takes about a microsecond. Beside keepalived 2.2.7 on
// one CPU (internal/bench, `go run . -quick health`, on two CPUs that nothing else
// used):
//
//	each second    CPU a check, ours / keepalived   memory, ours / keepalived
//	1,000 TCP      96 / 126 µs                      9 / 9 MiB
//	10,000 TCP     46 / 69 µs                       13 / 16 MiB
//	1,000 HTTP     109 / 133 µs                     10 / 10 MiB
//	1,000 HTTPS    533 / 677 µs                     12 / 20 MiB
//
// 10,000 a second took 46% of the CPU, the 99th percentile of their lateness was
// 5 ms. No target that answers was called down in any run, nor beside two busy
// loops on the same CPU (7 ms late), nor with a fifth of the targets black holes
// (2 ms).
//
// # Goroutines
//
//	goroutine  started by             stopped by         state it owns
//	Run        the caller             its ctx, Close     joins the others
//	scheduler  Run                    end of Run         the wheel, the lag meter
//	watchdog   Run                    end of Run         whether it has alarmed
//	reporter   Run, if there is a     end of Run         the call of the sink, its
//	           sink                                      back-off
//	worker     scheduler, for a       when its lane has  the probe that runs
//	           check that is due and  nothing waiting,
//	           finds a place          end of Run
//
// One mutex guards all state between them; probes, the sink, the log and the
// metrics are called without it. Methods may be called from any goroutine, Close
// not from within a probe or the sink, which it waits for.
package healthcheck
