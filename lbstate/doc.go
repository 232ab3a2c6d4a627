// Package lbstate holds the state of a load balancer: virtual services, their
// backends, and the health of these, changed by deterministic commands on a
// bbolt transaction.
//
// A State is the state machine: a replicated log applies commands to it. A
// Store is the typed access of one node: it validates, proposes, reads and
// watches. What carries the commands is a Replicator; Local is one without a
// network, for tests and for programs of one process.
//
// # Revisions
//
// The state counts its own changes: the revision goes up by one with each
// command that changed something, configuration or health. A Service's Revision
// is that of the last change of its configuration, and the precondition of a
// write; a ServiceStatus' Version is that of the last change of any kind. A
// write that changes nothing makes no revision.
//
// # Watching
//
// The state keeps, for a bounded number of revisions, the name of the service
// that each one changed. A Watcher holds nothing but the revision that it last
// saw: Next looks up the names changed since, and returns their present state.
// So a slow watcher costs nothing, a change seen twice is sent once, and a
// revision that is no longer kept gives the full state.
//
// # Caveats
//
// Values in the database carry a checksum; one that does not match is an error
// that names its key, never a guess. Apply returns an error, and so stops the
// node, for a command of a version that it does not know.
//
// # Goroutines
//
// The package starts none. A State is used by the goroutine that applies; its
// notification, and everything of a Store, may be used from any.
package lbstate
