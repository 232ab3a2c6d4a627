package reconcilebench

import (
	"fmt"
	"io"
	"runtime"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

// planLimit is what the pure plan over 10,000 services of 10 destinations each may
// take.
const planLimit = 50 * time.Millisecond

// cpuTime is what this process has used. A pure computation costs it whoever else
// is on the machine, unlike time by the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // only for a bad argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchPlan plans 10,000 × 10 for a kernel that has all, but for every tenth
// service's weight.
func benchPlan(out io.Writer, rounds int) error {
	d := state(10_000, 10)
	actual := reconcile.Actual{Now: time.Now(), Sysctls: map[string]string{}}
	for i := range d.Services {
		s := reconcile.ServiceState{Service: d.Services[i].Service}
		for _, dest := range d.Services[i].Destinations {
			s.Destinations = append(s.Destinations, reconcile.DestinationState{Destination: dest})
		}
		actual.Services = append(actual.Services, s)
	}
	want := reweighed(d, 10, 7)
	var wall, cpu []time.Duration
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := 20 * rounds
	for range n {
		began, used := time.Now(), cpuTime()
		ops := reconcile.Plan(reconcile.Config{}, want, actual)
		wall, cpu = append(wall, time.Since(began)), append(cpu, cpuTime()-used)
		changed := 0
		for i := range ops {
			if ops[i].Kind == reconcile.SetDestination {
				changed++
			}
		}
		if changed != 1000 {
			return fmt.Errorf("the plan changes %d weights, not 1,000", changed)
		}
	}
	runtime.ReadMemStats(&after)
	took := median(cpu)
	fmt.Fprintf(out, "pure plan, 10,000 services × 10 destinations, 1,000 weights differ: %s of CPU, garbage collection included (%s by the clock), %d allocations, %.1f MB\n",
		took.Round(10*time.Microsecond), median(wall).Round(10*time.Microsecond), (after.Mallocs-before.Mallocs)/uint64(n), float64(after.TotalAlloc-before.TotalAlloc)/float64(n)/1e6)
	ratio(out, "plan", planLimit, took)
	return nil
}
