package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// outputLimit is how many bytes of a program's output are kept.
const outputLimit = 4096

// ExecConfig says how a probe runs a program.
type ExecConfig struct {
	// Path of the program, absolute. It must be in Allowed.
	Path string
	// Args go to the program as they are: no shell reads them. In each, {address}
	// and {port} stand for the target's.
	Args []string
	// Env is the whole environment, "NAME=value" each, with TARGET_ADDRESS and
	// TARGET_PORT added. By default it has a PATH.
	Env []string
	// Allowed are the programs that may be run, by their paths; whoever
	// configures this host says so, not whoever writes a check. Empty: none.
	Allowed []string
}

// Exec is a probe that runs a program: exit code 0 is a success. Its first
// line of output is told when it fails. On Unix one that its group or everyone
// may write is not run. A program that outlives the timeout is
// killed, on Unix with all that is in its process group. It is made by NewExec.
type Exec struct{ cfg ExecConfig }

// ErrNotAllowed says that a program is not among those that may be run.
var ErrNotAllowed = errors.New("programs may be run by health checks only where this host's configuration allows them")

// NewExec makes a probe that runs a program.
func NewExec(cfg ExecConfig) (*Exec, error) {
	switch {
	case !filepath.IsAbs(cfg.Path) || filepath.Clean(cfg.Path) != cfg.Path:
		return nil, fmt.Errorf("program probe: path is %q, want an absolute one without detours", cfg.Path)
	case !slices.Contains(cfg.Allowed, cfg.Path):
		return nil, fmt.Errorf("program probe: %s: %w", cfg.Path, ErrNotAllowed)
	case slices.ContainsFunc(append(cfg.Args, cfg.Env...), func(s string) bool { return strings.ContainsRune(s, 0) }):
		return nil, errors.New("program probe: arguments and environment cannot have a zero byte")
	}
	if len(cfg.Env) == 0 {
		cfg.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	cfg.Args, cfg.Env = slices.Clone(cfg.Args), slices.Clone(cfg.Env)
	return &Exec{cfg: cfg}, nil
}

// Probe runs the program once.
func (p *Exec) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	expected := p.cfg.Path + " to end with exit code 0"
	bad := func(class healthcheck.Class, found, advice string) healthcheck.Result {
		return healthcheck.Result{Class: class, Phase: "program", Expected: expected, Found: found, Advice: advice}
	}
	address, port := target.Addr().String(), fmt.Sprint(target.Port())
	fill := strings.NewReplacer("{address}", address, "{port}", port)
	if info, err := os.Stat(p.cfg.Path); err == nil && othersWrite(info.Mode()) {
		return bad(healthcheck.Local, fmt.Sprintf("its mode is %v: others than its owner may write it, and would have run here what they like", info.Mode()), "chmod go-w it, once you have looked at what it does")
	}
	cmd := exec.CommandContext(ctx, p.cfg.Path)
	for _, a := range p.cfg.Args {
		cmd.Args = append(cmd.Args, fill.Replace(a))
	}
	cmd.Env = append(slices.Clone(p.cfg.Env), "TARGET_ADDRESS="+address, "TARGET_PORT="+port)
	cmd.Dir = "/"
	group(cmd)
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = 20 * time.Millisecond // for output that a descendant keeps open
	out := &headOf{limit: outputLimit}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		killGroup(cmd) //nolint:errcheck // it may be in a group of its own; its output is read no more
	}
	said := ""
	if line := out.firstLine(); line != "" {
		said = ": " + line
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return bad(healthcheck.Local, "the probe was given up", "")
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		return healthcheck.Result{}
	case ctx.Err() != nil:
		return bad(healthcheck.Timeout, "it ran longer than the timeout"+said, "raise the timeout, or let the program watch the time itself")
	case errors.As(err, &exit) && exit.Exited():
		return bad(healthcheck.BadStatus, fmt.Sprintf("exit code %d%s", exit.ExitCode(), said), "")
	case errors.As(err, &exit):
		return bad(healthcheck.Local, exit.String()+said, "this is a fault of the program, not of the target")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return bad(healthcheck.Local, quote(err.Error()), "install the program on every host that checks, and make it executable")
	default:
		return bad(healthcheck.Local, quote(err.Error()), "check this host's limits (processes, files, memory)")
	}
}

// headOf keeps the first bytes that are written, and takes the rest.
type headOf struct {
	limit int
	data  []byte
}

func (h *headOf) Write(p []byte) (int, error) {
	h.data = append(h.data, p[:min(len(p), h.limit-len(h.data))]...)
	return len(p), nil
}

func (h *headOf) firstLine() string {
	for line := range strings.Lines(string(h.data)) {
		if line = quote(line); line != "" {
			return line
		}
	}
	return ""
}
