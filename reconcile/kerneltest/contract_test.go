package kerneltest_test

import (
	"testing"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
	"github.com/ipvskit/ipvskit/reconcile/kerneltest"
)

func TestContractOfTheKernelInMemory(t *testing.T) {
	kerneltest.Contract(t, func(*testing.T) reconcile.Kernel { return fakekernel.New() })
}

// What a kernel in memory dumps, another loads, and is the same.
func TestDumpAndLoad(t *testing.T) {
	for seed := range uint64(20) {
		a := fakekernel.New()
		kerneltest.Differ(t, a, fakekernel.New(), seed, 200)
		b := fakekernel.New()
		if err := b.Load(a.Dump()); err != nil {
			t.Fatal(err)
		}
		if a.Dump() != b.Dump() {
			t.Fatalf("dumped:\n%s\nloaded:\n%s", a.Dump(), b.Dump())
		}
	}
}
