// Package kerneltest holds the contract of reconcile.Kernel as tests: what each
// operation does and which error it gives (docs/kernel.md). It runs against the
// kernel in memory in every `go test`, and against Linux in `make kernel`, so
// that the two cannot drift apart. Who writes a Kernel of his own runs it too:
//
//	func TestContract(t *testing.T) {
//		kerneltest.Contract(t, func(t *testing.T) reconcile.Kernel { return newKernel(t) })
//	}
//
// Differ carries out random operations on two kernels and compares every result
// and every state. On Linux, Namespace is a network namespace for tests with
// real traffic.
package kerneltest
