// Package probe has the ways in which a healthcheck.Engine can ask a target:
// [TCP] and [HTTP]. Each is made once from its config, is immutable
// from then on, and serves any number of targets concurrently; no probe starts
// a goroutine that outlives a call, and none keeps a connection open.
//
// A result's class, phase and texts say what was expected, what was found, and
// what to do. What a target sends is read within bounds, and quoted in part.
package probe
