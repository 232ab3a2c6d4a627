// Package formation brings a server into a cluster. The servers of a list form
// one together, once; a server that comes later, or that has lost its disk, joins.
//
// # Nouns
//
// A list is the HTTP addresses of the servers that are meant to be one cluster.
// A node is empty until it has made durable either a founding record or a
// membership; it does so once, and belongs to that cluster from then on. An
// incarnation is a random number made with the data directory: a wiped server
// has a new one. A founding record names a cluster by a random ID and its
// founders by incarnation, member ID, name and addresses.
//
// # How a cluster forms
//
// An empty node asks every address of its list who is there. If an answer names
// a cluster, formation is over: the node takes its place in it. If every address
// answers 'empty, same list', the owner of the lowest address, and no other,
// makes a founding record, makes it durable in its own store, and offers it to
// the others. So does every founder that has it, until all have it; and a founder
// that finds it when it asks takes it. Otherwise the node waits, and says for
// whom ([Node.Progress]). A person may name servers that are absent
// (Config.Without); then all others must have been told the same.
//
// # Why there can only be one cluster
//
// A node accepts one founding record or membership, ever, and no raft message is
// sent before. It accepts a record only if its own incarnation is in it. So a
// server counts for at most one cluster at a time, and two clusters formed from
// one list would need two majorities of the same addresses at once, which have
// an address in common. That argument does not depend on timing: on who answered
// when, on who stopped in the middle, or on how late a message arrives. In
// particular:
//
//   - The coordinator stops before its record is durable: nothing has happened.
//     After: it has the record when it comes back, and offers it. Until then the
//     others wait for it by name, unless one of them has the record and offers it.
//   - A founder stops in the middle: it has accepted the record, or it is empty
//     and is offered it again. A quorum of founders works without it.
//   - A node is wiped before it accepted a record that names it: the record does
//     not name its new incarnation, so it refuses it, however late it comes, and
//     joins as a new member once the cluster has a quorum.
//   - A node is wiped afterwards: the same. It never comes back under the identity
//     that it lost, so what it had acknowledged is missed by nobody who would count
//     on it.
//   - Two coordinators (lists that differ, a wiped coordinator whose first record
//     is still on its way): two records may exist, at most one of them is accepted
//     by a majority of its founders. The others are stuck, see it, and say so: only
//     a person can judge that a record which some nodes hold was never in use.
//   - The list leads to two clusters that exist: the node joins neither and ends
//     with an error that names both.
//
// What cannot be excluded: a person who declares servers absent that are cut off
// and declares the opposite there. Config.Without is therefore bounded to fewer
// than half of the list, and a cluster that any absent server still names ends
// formation.
//
// # Caveats
//
// Names are not resolved. A node knows itself on the list by its announced
// address, host and port as written (letters' case, IPv6 spelling and a final
// dot aside); one that is not on the list only joins. An address on the list that
// turns out to be this node is an error that says so.
//
// The requests are not authenticated here: who may call the handler is decided
// by the server that mounts it.
//
// # Goroutines
//
//	goroutine | started by          | stopped by      | state it owns
//	Run       | the caller          | ctx, its end    | the polling and the offering
//	questions | Run, for each round | their timeouts  | one answer each
//	handler   | the HTTP server     | the request     | nothing
package formation
