package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Report is the account of one reconciliation: the state after it, and what it
// took. It is a value; nothing in it changes later.
type Report struct {
	Revision   uint64
	Converged  bool // the kernel equals what is desired; drains may still run
	Simulated  bool // the kernel is an in-memory one
	Services   int  // in scope, in the kernel
	Operations int  // carried out without an error
	Repaired   int  // of them, those that undid a change by others
	Draining   int
	Failures   []Failure
	Collisions []Collision
	Warnings   []Warning
	Host       []HostChange            // sysctls that were changed since New
	Profile    *lbstate.AppliedProfile // in force; nil: none
	Took       time.Duration
}

// String is the report on one line, with the first of what failed.
func (r Report) String() string {
	state := "converged"
	switch {
	case !r.Converged && r.Services > 0:
		state = "partial"
	case !r.Converged:
		state = "failed"
	}
	text := fmt.Sprintf("revision %d: %s, %d services, %d operations in %s", r.Revision, state, r.Services, r.Operations, r.Took.Round(time.Millisecond))
	for _, c := range []struct {
		n    int
		what string
	}{
		{len(r.Failures), "failures"}, {r.Repaired, "repaired"}, {r.Draining, "draining"}, {len(r.Collisions), "collisions"}, {len(r.Warnings), "warnings"},
	} {
		if c.n > 0 {
			text += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	if r.Simulated {
		text += ", simulated"
	}
	for i, f := range r.Failures {
		if i == 3 {
			return text + "; and more"
		}
		text += "; " + f.Error()
	}
	return text
}

// settled says that nothing is left to do, nor to wait for.
func (r Report) settled() bool { return r.Converged && r.Draining == 0 && len(r.Collisions) == 0 }

// Failure names an object that is not as desired.
type Failure struct {
	Object  string // "tcp/192.0.2.10:80", "tcp/192.0.2.10:80 -> 10.1.0.1:8080", "snat ipv4", ...
	Service string // its service's name, where it has one
	Op      string
	Err     error
}

func (f Failure) Error() string { return f.Op + " " + f.Object + ": " + f.Err.Error() }

// Unwrap gives the kernel's error.
func (f Failure) Unwrap() error { return f.Err }

// Collision is an object of someone else that is in our way and is left alone.
type Collision struct {
	Object string
	Reason string
}

func (c Collision) String() string { return c.Object + ": " + c.Reason }

// Warning is something that works, but perhaps not as meant.
type Warning struct {
	Object string
	Reason string
}

func (w Warning) String() string { return w.Object + ": " + w.Reason }

// HostChange is a setting of the host that was changed, and why.
type HostChange struct {
	Name, From, To, Why string
}

func (h HostChange) String() string {
	return fmt.Sprintf("%s: %s -> %s (%s)", h.Name, h.From, h.To, h.Why)
}

// Applied is the report in lbstate's words.
func (r Report) Applied() lbstate.Applied {
	a := lbstate.Applied{
		Revision: r.Revision, Converged: r.Converged, Simulated: r.Simulated,
		Services: r.Services, Operations: r.Operations, Draining: r.Draining, Profile: r.Profile,
	}
	for _, f := range r.Failures {
		a.Failures = append(a.Failures, lbstate.Failure{Object: f.Object, Op: f.Op, Reason: f.Err.Error()})
	}
	for _, c := range r.Collisions {
		a.Collisions = append(a.Collisions, c.String())
	}
	return a
}

// explained is the kernel's error with what to do about it.
type explained struct {
	err  error
	hint string
}

func (e *explained) Error() string { return e.err.Error() + ": " + e.hint }
func (e *explained) Unwrap() error { return e.err }

// explain adds what to do to an error whose errno alone says too little.
func explain(op Op, err error) error {
	var hint string
	switch {
	case IsNoScheduler(op, err):
		hint = fmt.Sprintf("this kernel has no scheduler %q; try `modprobe ip_vs_%s` or choose another", op.Service.Scheduler, op.Service.Scheduler)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EROFS):
		hint = permissionHint(op)
	case errors.Is(err, syscall.EOPNOTSUPP) && op.Kind == AddLink:
		hint = "this kernel has no dummy interfaces; try `modprobe dummy`"
	case op.Kind == SetSysctl && errors.Is(err, fs.ErrNotExist):
		hint = "this kernel has no such setting"
	case errors.Is(err, syscall.EINVAL) && (op.Kind == AddDestination || op.Kind == SetDestination):
		hint = "the kernel takes no such destination: it must be a unicast address, of the service's family unless tunneled"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		hint = "this kernel has no IPVS for this family of addresses"
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		hint = "the kernel is out of memory"
	default:
		return err
	}
	return &explained{err, hint}
}
