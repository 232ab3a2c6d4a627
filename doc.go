// Package ipvskit is the map of a replicated control plane for Linux IPVS, and
// of the parts to build your own. It holds no code.
//
//	raftstore    a replicated bbolt database: propose, read, members, snapshots
//	lbstate      the load balancer's state: model, validation, apply, watch
//	reconcile    makes one director's kernel equal to the desired state
//	healthcheck  an engine that probes targets and reports transitions
//	transport    raft between servers (peer), the stream to agents (agent),
//	             certificates by role (identity)
//	examples     ipvs-manager (server, agent, singleon), embed
//
// The import diagram, the life of a change and the behavior that must hold
// are in ARCHITECTURE.md.
package ipvskit
