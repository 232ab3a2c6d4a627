// Package identity makes and checks the certificates by which servers, agents
// and operators know each other: TLS 1.3, mutual, with a key of the cluster's
// own or with a public key infrastructure that the user already has.
//
// # Nouns
//
// A [Bundle] is the key of a cluster: one or more certificate authorities in
// one file. All are trusted, the newest signs. A server that holds it mints its
// own certificate in memory, for a day, and again before that ends. A
// [Credential] is a certificate with its own key, for a host that must not hold
// the cluster's key: each agent's, an operator's, or a server's where the key
// stays on one host. A [Source] reads either, or a user's own PEM files, and
// gives the TLS configurations of one process.
//
// Who someone is stands in the certificate's URI SAN, and nowhere else:
//
//	ipvskit://DOMAIN/ROLE/NAME        ROLE is server, agent or operator
//	ipvskit://DOMAIN/agent/NAME?k=v   an agent's labels, which select its services
//
// Roles are not interchangeable: each port says which it takes. DOMAIN is that
// of the bundle; certificates of another are refused even if one authority has
// signed both. Host names and addresses in a certificate are for browsers; who
// knows role and domain does not rely on them.
//
// # Rotation
//
// Bundle.Rotate adds an authority, which the one before cross-signs. The file
// is copied to one server after the other; each reads it at its next handshake.
// Whoever has only the older authority accepts certificates of the newer one by
// the cross-signature, and whoever has both accepts both, so there is no order
// to keep and no stop. Agents see that the servers trust more than they do, and
// renew. When all have, Bundle.Retire drops the older authorities.
//
// # What is refused
//
// Every refusal is an [Error] with a [Reason] and a sentence that says what was
// expected and found; times are named with this host's own clock beside them.
// The other end sees a TLS alert alone.
//
// This package starts no goroutine. A Source is safe for concurrent use; files
// are looked at when a connection is made, at most once a second.
package identity
