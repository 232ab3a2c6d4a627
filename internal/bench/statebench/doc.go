// Package statebench measures lbstate: the time and the memory that many
// services take to be stored, listed, changed and watched, and beside it etcd's
// Put and Watch with the same bytes.
//
// Both run in this process, without replication, on a database that does not
// sync: what is compared is the state, not the disk. Ours goes through Store,
// etcd through the client that it embeds.
package statebench
