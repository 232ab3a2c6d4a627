// Package fanoutbench measures how a committed change reaches many agents: over
// transport/agent from lbstate, and beside it over etcd's Watch, the same change
// to the same number of watchers, in one run.
//
// Servers and agents are processes of their own, with TLS and real connections
// over loopback, one for each agent. The agents are simulated: they do what an
// agent does on the wire, and no more.
//
//	process  started by  what it is
//	servers  Run         three servers of one kind; it makes the changes and measures itself
//	agents   servers     all agents; it says when each of them had a change
//
// Clocks are compared across processes: they are those of one machine.
package fanoutbench
