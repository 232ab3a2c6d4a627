package healthbench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/figures"
	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

// Limits that ours is held against where there is no rival.
const (
	lateLimit  = 50 * time.Millisecond // p99 of targets that are well
	bytesLimit = 300                   // an idle check
)

type bench struct {
	exe    string // the worker
	rounds int
	warm   time.Duration
	window time.Duration
	rival  *rival
	ports  job.Ports
	served *worker // the targets
	// CPUs of the checker, and of the targets.
	checker, targets int
	out              io.Writer
}

// Run measures and prints. Quick takes about a minute.
func Run(ctx context.Context, o figures.Options) error {
	dir, err := os.MkdirTemp("", "healthbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{
		exe: filepath.Join(dir, "worker"), rounds: o.Rounds(), warm: time.Second, window: 8 * time.Second,
		targets: min(1, runtime.NumCPU()-1), out: os.Stdout,
	}
	if o.Quick {
		b.rounds, b.window = 1, 3*time.Second
	}
	_, self, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(self) {
		return fmt.Errorf("the benchmark must be built in its own source tree, without -trimpath")
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.exe, "./worker")
	build.Dir, build.Stderr = filepath.Dir(self), os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the worker: %w", err)
	}
	if b.rival, err = newRival(ctx, dir); err != nil {
		return err
	}
	if b.served, err = b.work(ctx, b.targets, job.Job{Task: "serve"}); err != nil {
		return err
	}
	defer b.served.end() //nolint:errcheck // the figures are taken
	if err := b.served.read(&b.ports); err != nil {
		return err
	}
	if err := b.beside(ctx); err != nil {
		return err
	}
	if err := b.adverse(ctx); err != nil {
		return err
	}
	return b.idle(ctx)
}

// side is one of those that are compared.
type side struct {
	cpu    []float64 // of a core
	each   []float64 // CPU a check, in µs
	memory []float64 // MiB
	downs  int       // of targets that answer
}

func (s *side) add(u usage, checks int64, window time.Duration, downs int) {
	s.cpu = append(s.cpu, u.cpu)
	s.each = append(s.each, u.cpu*float64(window.Microseconds())/float64(max(1, checks)))
	s.memory = append(s.memory, float64(u.memory)/1024)
	s.downs += downs
}

func (s *side) String() string {
	return fmt.Sprintf("%6.1f%% %7.1f %7.1f %6d", 100*figures.Median(s.cpu), figures.Median(s.each), figures.Median(s.memory), s.downs)
}

// beside measures ours and keepalived in turn.
func (b *bench) beside(ctx context.Context) error {
	fmt.Fprintf(b.out, "checks every %v on one core, median of %d rounds of %v; %d CPUs\n", job.Interval, b.rounds, b.window, runtime.NumCPU())
	fmt.Fprintf(b.out, "%-22s %7s %7s %7s %6s %9s %9s\n", "", "CPU", "µs each", "MiB", "false", "p99 late", "a timer")
	for _, w := range []struct {
		kind    string
		targets int
	}{{"tcp", 1000}, {"tcp", 10_000}, {"http", 1000}, {"https", 1000}} {
		j := job.Job{Task: "check", Kind: w.kind, Targets: w.targets, Ports: b.ports}
		var ours, rival side
		var late, timer []time.Duration
		failed := map[string]int{}
		for range b.rounds {
			u, found, err := b.ours(ctx, j)
			if err != nil {
				return err
			}
			ours.add(u, int64(found.OK+found.Failed+found.Local), b.window, found.FalseDowns)
			late, timer = append(late, found.P99), append(timer, found.Timer)
			for class, n := range found.Classes {
				failed[class] += n
			}
			if found.Local > 0 {
				failed["inconclusive"] += found.Local
			}
			var checks int64
			u, downs, err := b.rival.run(ctx, b.checker, j, b.warm, b.window,
				func() error { n, err := b.taken(); checks = -n; return err },
				func() error { n, err := b.taken(); checks += n; return err })
			if err != nil {
				return err
			}
			rival.add(u, checks, b.window, downs)
		}
		what := fmt.Sprint(w.kind, " ", w.targets)
		fmt.Fprintf(b.out, "%-11s ours       %v %9v %9v\n", what, &ours, tenths(figures.Median(late)), tenths(figures.Median(timer)))
		fmt.Fprintf(b.out, "%-11s keepalived %v\n", what, &rival)
		if len(failed) > 0 {
			fmt.Fprintf(b.out, "%-11s ours, results that did not succeed: %v\n", what, failed)
		}
		name := fmt.Sprintf("health/%s-%d", w.kind, w.targets)
		figures.Less(b.out, name+"-cpu", figures.Median(ours.each), figures.Median(rival.each))
		figures.Less(b.out, name+"-memory", figures.Median(ours.memory), figures.Median(rival.memory))
		figures.Less(b.out, name+"-late-p99", figures.Median(late), lateLimit)
	}
	return nil
}

// tenths rounds to tenths of a millisecond.
func tenths(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// taken is how many connections the targets have taken so far.
func (b *bench) taken() (n int64, err error) {
	if err := b.served.say("count"); err != nil {
		return 0, err
	}
	err = b.served.read(&n)
	return n, err
}

// ours measures the engine.
func (b *bench) ours(ctx context.Context, j job.Job) (usage, job.Found, error) {
	var found job.Found
	w, err := b.work(ctx, b.checker, j)
	if err != nil {
		return usage{}, found, err
	}
	var ready string
	if err := w.read(&ready); err != nil {
		return usage{}, found, err
	}
	time.Sleep(b.warm)
	u, err := measure(ctx, w.cmd.Process.Pid, b.window, func() error { return w.say("begin") }, func() error {
		if err := w.say("end"); err != nil {
			return err
		}
		return w.read(&found)
	})
	if e := w.end(); err == nil {
		err = e
	}
	return u, found, err
}

// adverse measures ours with its CPU taken by busy loops, and with a fifth of
// the targets that do not answer.
func (b *bench) adverse(ctx context.Context) error {
	fmt.Fprintf(b.out, "%-34s %6s %6s %8s %9s %9s %9s\n", "adverse, 1,000 by tcp", "ok", "false", "inconcl.", "p50 late", "p99 late", "a timer")
	for _, w := range []struct {
		name, what  string
		busy, holes int
	}{
		{"starved", "beside two busy loops on its CPU", 2, 0},
		{"black-holes", "20% black holes", 0, 200},
	} {
		var late []time.Duration
		for range b.rounds {
			found, err := b.beset(ctx, w.busy, job.Job{Task: "check", Kind: "tcp", Targets: 1000, Holes: w.holes, Ports: b.ports})
			if err != nil {
				return err
			}
			wrong := found.FalseDowns
			if w.holes == 0 {
				wrong += found.Failed
			}
			fmt.Fprintf(b.out, "%-34s %6d %6d %8d %9v %9v %9v\n", w.what, found.OK, wrong, found.Local,
				tenths(found.P50), tenths(found.P99), tenths(found.Timer))
			late = append(late, found.P99)
		}
		figures.Less(b.out, "health/"+w.name+"-late-p99", figures.Median(late), lateLimit)
	}
	return nil
}

func (b *bench) beset(ctx context.Context, busy int, j job.Job) (job.Found, error) {
	for range busy {
		w, err := b.work(ctx, b.checker, job.Job{Task: "busy"})
		if err != nil {
			return job.Found{}, err
		}
		defer w.end() //nolint:errcheck // it has nothing to tell
	}
	_, found, err := b.ours(ctx, j)
	return found, err
}

func (b *bench) idle(ctx context.Context) error {
	const n = 100_000
	w, err := b.work(ctx, b.checker, job.Job{Task: "idle", Targets: n})
	if err != nil {
		return err
	}
	var cost job.Idle
	if err := w.read(&cost); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%d idle checks: %d bytes each; adding one to them takes %v\n", n, cost.BytesEach, cost.AddEach)
	figures.Less(b.out, "health/idle-bytes", cost.BytesEach, bytesLimit)
	return nil
}
