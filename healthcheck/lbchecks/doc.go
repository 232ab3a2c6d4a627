// Package lbchecks ties a healthcheck.Engine to a load balancer's state: it
// turns the services of an lbstate.Store into checks, and their transitions into
// commands. It probes while this node leads, and not otherwise.
//
// Services that share a backend and a check share one probe. A new leader
// starts from the stored states, and publishes what its own results say:
// what it merely took over is not repeated (INV-31, INV-32).
//
//	goroutine       started by  stopped by               state it owns
//	leadership      Run         its ctx                  which term is served
//	engine          each term   the term's end           probes and their counts
//	follower        each term   the term's end           which services use which check
package lbchecks
