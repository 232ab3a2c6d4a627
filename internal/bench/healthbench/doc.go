// Package healthbench measures the health-check engine beside keepalived's
// checker, Debian's package, in one run.
//
// Targets are addresses of 127.0.0.0/8 at one port, served by a process of its
// own. The checker under test has one CPU to itself, the targets another where
// there is one. CPU is what the kernel says its threads got; on the loopback it
// has the targets' share of the network's work in it, alike for both.
//
// keepalived manages IPVS, and runs without it in the kernel with -C and a small
// preloaded library that answers the IP_VS socket options. What is missing is
// downloaded with apt-get and unpacked into a temporary directory.
//
// How late checks are depends on how late the machine is: beside each figure
// stands that of a bare timer in the same process.
//
// Each figure is the median of interleaved rounds. A line `ratio health/WHAT
// NUMBER` compares: with keepalived it is its figure over ours, with a limit the
// limit over what was measured. Above 1 is better in either case.
package healthbench
