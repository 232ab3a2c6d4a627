package reconcilebench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// Run measures and prints. Quick takes about a minute.
func Run(ctx context.Context, quick bool, out io.Writer) error {
	rounds := 5
	if quick {
		rounds = 3
	}
	if err := benchPlan(out, rounds); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "reconcilebench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, self, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(self) {
		return fmt.Errorf("the benchmark must be built in its own source tree, without -trimpath")
	}
	here := filepath.Dir(self)
	exe := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-o", exe, "./guest")
	build.Dir, build.Env = here, append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = out, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the guest's part: %w", err)
	}
	guest := exec.CommandContext(ctx, filepath.Join(here, "..", "..", "uml", "run"), "-t", "600", "--", exe, "-rounds", fmt.Sprint(rounds))
	guest.Dir = dir
	guest.Stdout, guest.Stderr = out, os.Stderr
	// Let it take its guest down with it.
	guest.Cancel = func() error { return guest.Process.Signal(os.Interrupt) }
	if err := guest.Run(); err != nil {
		return fmt.Errorf("in user-mode Linux: %w", err)
	}
	return nil
}

// median of times; of an even count the lower of the two in the middle.
func median(times []time.Duration) time.Duration {
	s := slices.Clone(times)
	slices.Sort(s)
	return s[(len(s)-1)/2]
}

// ratio prints how often ours fits into what is allowed, or into a rival's time.
func ratio(out io.Writer, what string, allowed, ours time.Duration) {
	fmt.Fprintf(out, "ratio reconcile/%s %.2f\n", what, float64(allowed)/float64(ours))
}
