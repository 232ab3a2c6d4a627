// Package reconcilebench measures the reconciler: the pure plan on this host, and
// in user-mode Linux, in one run beside `ipvsadm -R`, how long the kernel side of
// it takes.
//
// Each figure is the median of interleaved rounds. A line `ratio reconcile/WHAT
// NUMBER` compares: with a rival it is the rival's time over ours, with a limit
// the time allowed over the time measured. Above 1 is better in either case. The
// absolute times of user-mode Linux mean little: a system call costs about 0.1 ms
// there.
package reconcilebench
