// Package healthcheck is an engine that probes any number of targets for ever,
// judges them, and reports what changed, in batches. It knows nothing of load
// balancers or of replication.
package healthcheck
