// Package lbchecks ties a healthcheck.Engine to a load balancer's state: it
// turns the services of an lbstate.Store into checks, and their transitions into
// commands. It probes while this node leads, and not otherwise.
//
// Services that share a backend and a check share one probe. A new leader
// starts from the stored states, and publishes what its own results say:
// what it merely took over is not repeated (INV-31, INV-32). Where the store
// does not have what a check has found, because a report was dropped or a
// service joined later, it is said again.
//
// When so many backends fall at once that this host is suspected, the engine
// holds what falls: those backends stay in service, and the state says that
// they are held. What a service does when too few of its backends are healthy
// is lbstate's to decide.
//
// A check that this host cannot run (a program that is not allowed, a privilege
// that is missing) is inconclusive and says why; it blames no backend (INV-33).
//
// [Runner.Status], [Runner.Stats], [Runner.Noted], [Runner.Events] and
// [Runner.Hold] tell what the checks of this node find while it leads; [Runner.ProbeNow] tries a check from any node,
// and counts for nothing.
//
//	goroutine       started by  stopped by               state it owns
//	leadership      Run         its ctx                  which term is served
//	engine          each term   the term's end           probes and their counts
//	follower        each term   the term's end           which services use which check
package lbchecks
