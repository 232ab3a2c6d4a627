// Package access holds who may do what: users with their tokens and sessions,
// revoked names and serials, and the stored side of agents' and servers'
// credentials. It is a state machine of its own, in the same replicated log as
// the load balancer's state and with the same rules: see package lbstate, whose
// errors and seams it shares.
//
// # Nouns
//
// A User is a person or a program, with a role. A Token is a secret that stands
// for a user, at most with the user's role; a session is a token that a login
// made. The state holds the SHA-256 of a secret, never the secret. A Revocation
// bars a name of a role, or one certificate. A Credential is what the state says
// of the holder of a certificate: the labels that select an agent's services, in
// place of those in its certificate, and the serials that were issued.
//
// # Looking up
//
// A State keeps the whole in memory beside the database: Revoked, Labels, User
// and Token answer from there in constant time, as this node has applied it,
// which is a few milliseconds behind what it has acknowledged. Restored builds
// it anew. Store.Authenticate asks the cluster before it refuses a token that
// this node does not know, so that a new token is good everywhere at once.
//
// # Watching
//
// Changed returns a channel that is closed at the next change of a kind. Who
// keeps connections up looks up again what it has let in; there is no queue, so
// nobody can be slow. Take the channel, then look up.
//
// # Time
//
// Applying reads no clock. What is over is no longer accepted, by the clock of
// the node that is asked; Store.Expire names what is over, and the command drops
// exactly that.
//
// # History
//
// Each change is an entry: who, when, why, and each field before and after but
// for secrets. The last 10,000 are kept, or 8 MiB. Certificates that were issued
// are listed with their holder's credential instead.
//
// # Goroutines
//
// The package starts none. A State is used by the goroutine that applies; its
// lookups, Changed, and everything of a Store, may be used from any.
package access
