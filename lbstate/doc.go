// Package lbstate holds the state of a load balancer: virtual services and
// their backends, the health of these, shared checks, the profiles of directors
// and the state's own settings, changed by deterministic commands on a bbolt
// transaction.
//
// A State is the state machine: a replicated log applies commands to it. A
// Store is the typed access of one node: it validates, proposes, reads and
// watches. What carries the commands is a Replicator; Local is one without a
// network, for tests and for programs of one process.
//
// # Objects and transactions
//
// An Object is a Service, a SharedCheck, a DirectorProfile or the Settings; a
// Ref names it. Put and Delete write one; Transact writes many, whole or not at
// all. An object is stored with its defaults filled in. Each is validated
// before it is proposed; what it may not be beside the others (the same
// listener twice, a VIP that is a backend, a check that does not exist) is
// decided when its command is applied, since only then its neighbors are known.
//
// # Revisions
//
// The state counts its own changes: the revision goes up by one with each
// command that changed something, configuration or health. An object's Revision
// is that of the last change of its configuration, and the precondition of a
// write; a ServiceStatus' Version is that of the last change of any kind. A
// write that changes nothing makes no revision.
//
// # Health
//
// The health of backends rests apart from the configuration, and never touches
// a service's own revision. Effective is the one function from configuration
// and health to the weights in the kernel, with the reason of each.
//
// # Watching
//
// The state keeps, for a bounded number of revisions, the names of the objects
// that each one changed. A Watcher holds nothing but the revision that it last
// saw: Next looks up the names changed since, and returns their present state.
// So a slow watcher costs nothing, a change seen twice is sent once, and a
// revision that is no longer kept gives the full state. Those who wake together
// share what they read, and its encoding. One that follows the labels of an agent
// learns of the profile that they select, too, and of nobody else's.
//
// # Caveats
//
// What a Store returns may be shared between its callers: read it, do not
// change it. Values in the database carry a checksum; one that does not match
// is an error that names its key, never a guess. Apply returns an error, and so
// stops the node, for a command of a version or kind that it does not know.
//
// # Goroutines
//
// The package starts none. A State is used by the goroutine that applies; its
// notification, and everything of a Store, may be used from any.
package lbstate
