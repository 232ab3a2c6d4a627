// Package fakekernel is a kernel in memory for tests of whatever programs
// load balancers: a network namespace with IPVS services, interfaces, addresses,
// our packet filter chain and settings, behind the interface that the real one
// has.
//
// It holds state and answers as Linux does (docs/kernel.md): keys cannot change,
// adding what exists is EEXIST, a destination of a missing service is ESRCH, and
// so on. The suite of reconcile/kerneltest runs against both, so the two cannot
// drift apart. No packet is ever forwarded; Simulated says so.
//
//	k := fakekernel.New()
//	r, err := reconcile.New(reconcile.Config{Kernel: k})
//	...
//	fmt.Print(k.Dump()) // as ipvsadm -Sn would
//
// Inject makes operations fail, Watch sees each of them, Connect sets how many
// connections a destination has, and Do by the test itself plays the operator
// with ipvsadm. A Kernel is safe for concurrent use and starts no goroutine.
package fakekernel
