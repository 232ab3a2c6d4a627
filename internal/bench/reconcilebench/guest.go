package reconcilebench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// short is how often what is short is measured in each round.
const short = 7

// times are those of one figure, ours and the rival's in turn.
type times struct{ ours, rival []time.Duration }

// Guest measures on the kernel of this machine, which must be nobody else's: its
// IPVS is emptied again and again.
func Guest(ctx context.Context, rounds int, out io.Writer) error {
	d := state(1000, 10)
	tenth := reweighed(d, 10, 7)
	figures := map[string]*times{}
	for _, name := range []string{"first-sync", "no-op", "one-change", "ten-percent", "removal"} {
		figures[name] = new(times)
	}
	load, edit, remove, err := scripts(ctx, d, tenth)
	if err != nil {
		return err
	}
	for range rounds {
		if err := rivals(ctx, figures, load, edit, remove); err != nil {
			return err
		}
		if err := ours(ctx, figures, d, tenth); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "1,000 services × 10 destinations, median of %d rounds in user-mode Linux; ours with VIPs, SNAT and settings\n", rounds)
	fmt.Fprintf(out, "%-12s %12s %12s  beside\n", "", "ours", "rival")
	for _, f := range []struct {
		name, rival string
		allowed     float64 // of the rival's time
	}{
		{"first-sync", "ipvsadm -R", 1},
		{"no-op", "reading /proc/net/ip_vs, 1.5 times allowed", 1.5},
		{"one-change", "ipvsadm -e, one process", 1},
		{"ten-percent", "ipvsadm -R of 100 edits", 1},
		{"removal", "ipvsadm -R of 1,000 deletions", 1},
	} {
		t := figures[f.name]
		mine, rival := median(t.ours), median(t.rival)
		fmt.Fprintf(out, "%-12s %12s %12s  %s\n", f.name, mine.Round(10*time.Microsecond), rival.Round(10*time.Microsecond), f.rival)
		ratio(out, f.name, time.Duration(f.allowed*float64(rival)), mine)
	}
	return flatness(ctx, rounds, out)
}

// scripts are what ipvsadm reads to load d, to make it tenth, and to empty it.
func scripts(ctx context.Context, d, tenth reconcile.Desired) (load, edit, remove string, err error) {
	k := fakekernel.New()
	var dumps [2]string
	for i, d := range []reconcile.Desired{d, tenth} {
		r, err := reconcile.New(reconcile.Config{Kernel: k})
		if err != nil {
			return "", "", "", err
		}
		if _, err := r.Sync(ctx, d); err != nil {
			return "", "", "", err
		}
		dumps[i] = k.Dump()
	}
	before, after := strings.Split(dumps[0], "\n"), strings.Split(dumps[1], "\n")
	for i := range before {
		if before[i] != after[i] {
			edit += "-e" + strings.TrimPrefix(after[i], "-a") + "\n"
		}
		if service, ok := strings.CutPrefix(before[i], "-A"); ok {
			service, _, _ = strings.Cut(service, " -s ")
			remove += "-D" + service + "\n"
		}
	}
	return dumps[0], edit, remove, nil
}

func rivals(ctx context.Context, figures map[string]*times, load, edit, remove string) error {
	ipvsadm := func(name, stdin string, args ...string) error {
		cmd := exec.CommandContext(ctx, "ipvsadm", args...)
		cmd.Stdin = strings.NewReader(stdin)
		began := time.Now()
		b, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("ipvsadm %s: %w: %s", strings.Join(args, " "), err, b)
		}
		figures[name].rival = append(figures[name].rival, time.Since(began))
		return nil
	}
	if err := ipvsadm("first-sync", load, "-R"); err != nil {
		return err
	}
	if err := readProc(&figures["no-op"].rival); err != nil {
		return err
	}
	first, _, _ := strings.Cut(edit, "\n")
	for range short {
		if err := ipvsadm("one-change", "", strings.Fields(first)...); err != nil {
			return err
		}
	}
	if err := ipvsadm("ten-percent", edit, "-R"); err != nil {
		return err
	}
	return ipvsadm("removal", remove, "-R")
}

func readProc(took *[]time.Duration) error {
	b := make([]byte, 1<<17)
	began := time.Now()
	f, err := os.Open("/proc/net/ip_vs")
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if n, err := f.Read(b); n == 0 || err != nil {
			*took = append(*took, time.Since(began))
			return nil
		}
	}
}

func ours(ctx context.Context, figures map[string]*times, d, tenth reconcile.Desired) error {
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{})
	if err != nil {
		return err
	}
	defer k.(io.Closer).Close()
	r, err := reconcile.New(reconcile.Config{Kernel: k})
	if err != nil {
		return err
	}
	sync := func(name string, d reconcile.Desired, atMost int) error {
		began := time.Now()
		rep, err := r.Sync(ctx, d)
		took := time.Since(began)
		if err == nil && (!rep.Converged || atMost >= 0 && rep.Operations > atMost) {
			err = fmt.Errorf("%d operations, failures %v", rep.Operations, rep.Failures)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if f := figures[name]; f != nil {
			f.ours = append(f.ours, took)
		}
		return nil
	}
	if err := sync("first-sync", d, -1); err != nil {
		return err
	}
	runtime.GC() // what the first sync left is not the others' to clean up
	for range short {
		if err := sync("no-op", d, 0); err != nil {
			return err
		}
		if err := readProc(&figures["no-op"].rival); err != nil {
			return err
		}
	}
	for i := range short {
		if err := sync("one-change", reweighed(d, len(d.Services), uint32(3+i)), 1); err != nil {
			return err
		}
	}
	if err := sync("ten-percent", tenth, 100); err != nil {
		return err
	}
	if err := sync("removal", reconcile.Desired{}, 1001); err != nil {
		return err
	}
	rep, err := r.Cleanup(ctx)
	if err == nil && !rep.Converged {
		err = fmt.Errorf("failures %v", rep.Failures)
	}
	return err
}

// flatness measures one change that is known from a stream, among few and among
// many services.
func flatness(ctx context.Context, rounds int, out io.Writer) error {
	const few, many, changes = 100, 10_000, 20
	took := map[int]time.Duration{}
	for _, n := range []int{few, many} {
		var all []time.Duration
		err := running(ctx, n, func(r *reconcile.Reconciler, d reconcile.Desired) error {
			for i := range changes * rounds {
				s := reweigh(d.Services[i%n], uint32(101+i))
				began := time.Now()
				rep, err := r.Update(ctx, reconcile.Change{Set: []reconcile.DesiredService{s}})
				all = append(all, time.Since(began))
				if err == nil && (!rep.Converged || rep.Operations != 1) {
					err = fmt.Errorf("one change: %d operations, failures %v", rep.Operations, rep.Failures)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		took[n] = median(all)
		fmt.Fprintf(out, "one change known from the stream among %d services × 10: %s\n", n, took[n].Round(10*time.Microsecond))
	}
	ratio(out, "flatness", took[few]*3/2, took[many])
	return nil
}

// running calls f with a Reconciler that runs and has n services.
func running(ctx context.Context, n int, f func(*reconcile.Reconciler, reconcile.Desired) error) error {
	k, err := reconcile.NewLinux(reconcile.LinuxConfig{})
	if err != nil {
		return err
	}
	defer k.(io.Closer).Close()
	r, err := reconcile.New(reconcile.Config{Kernel: k, DriftInterval: time.Hour, FullInterval: time.Hour})
	if err != nil {
		return err
	}
	d := state(n, 10)
	if rep, err := r.Sync(ctx, d); err != nil || !rep.Converged {
		return fmt.Errorf("%d services: %w %v", n, err, rep.Failures)
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	err = f(r, d)
	cancel()
	if err := errors.Join(err, <-ran); err != nil {
		return err
	}
	_, err = r.Cleanup(context.WithoutCancel(ctx))
	return err
}
