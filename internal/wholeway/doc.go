// Package wholeway tests the whole way from one HTTP request to packets
// through IPVS: three ipvs-manager servers, an agent on a director, three
// backends and a client, each in a network namespace of its own, as real
// processes on a real kernel.
//
// The test needs root and a kernel with IPVS, so it carries the build tag
// kernel and runs in user-mode Linux (`make whole-way`). IPVS_MANAGER names the
// ipvs-manager binary that it drives.
//
//	client 198.18.0.2 ── front ── 198.18.0.1 director 10.1.0.254 ── back ── 10.1.0.1-4 backends
//	                                         director 10.9.0.254 ── mgmt ── 10.9.0.1-3 servers
//
// The client reaches the VIPs, 198.51.100.0/24, through the director; so do
// the servers the backends that they check.
package wholeway
