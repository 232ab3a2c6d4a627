package lbchecks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/lbstate"
)

// Leadership tells whether this node is to check. A *raftstore.Store is one.
type Leadership interface {
	// Leadership says whether this node leads, and in which term; changed is
	// closed when either may have changed. It does not block.
	Leadership() (leading bool, term uint64, changed <-chan struct{})
}

// Always is the Leadership of a program of one process, in term 1.
type Always struct{}

// Leadership is true, for ever.
func (Always) Leadership() (bool, uint64, <-chan struct{}) { return true, 1, nil }

// Config says what a Runner checks. Store and Leadership are required.
type Config struct {
	Store      *lbstate.Store
	Leadership Leadership

	// ExecDir is an absolute path: the directory of those programs that checks of
	// type exec may run on this host. A check names a file in it and can reach no
	// other. Empty: none may be run; such checks are inconclusive.
	ExecDir string

	// Engine configures the engine of each term; Sink, Epoch, Confirmations and
	// Holds are the Runner's own, and Logger is taken from below.
	Engine healthcheck.Config

	Logger *zap.Logger // nil: silent
}

// Runner checks the backends of a store's services while its node leads. All
// its methods may be called from any goroutine.
type Runner struct {
	cfg    Config // its Engine.Hold is guarded by mu
	log    *zap.Logger
	asking chan struct{}                                        // places for ProbeNow
	probes func(lbstate.HealthCheck) (healthcheck.Probe, error) // for tests; nil: by type

	mu      sync.Mutex // guards what follows
	current *follower  // of the term that this node leads; nil: none
}

// New returns a Runner. Nothing happens until Run.
func New(cfg Config) (*Runner, error) {
	if cfg.Store == nil || cfg.Leadership == nil {
		return nil, errors.New("lbchecks: Store and Leadership are required")
	}
	if cfg.ExecDir != "" && (!filepath.IsAbs(cfg.ExecDir) || filepath.Clean(cfg.ExecDir) != cfg.ExecDir) {
		return nil, fmt.Errorf("lbchecks: ExecDir is %q, want an absolute path without detours", cfg.ExecDir)
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	cfg.Engine.Logger = cfg.Logger
	if _, err := healthcheck.New(cfg.Engine); err != nil {
		return nil, fmt.Errorf("lbchecks: %w", err)
	}
	return &Runner{cfg: cfg, log: cfg.Logger.Named("lbchecks"), asking: make(chan struct{}, 16)}, nil
}

// Run checks, in every term that this node leads, until ctx ends, which gives
// nil. Any other error says why checking cannot go on.
func (r *Runner) Run(ctx context.Context) error {
	for {
		leading, term, changed := r.cfg.Leadership.Leadership()
		if leading {
			if err := r.serve(ctx, term, changed); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// serve checks until this node does not lead in term any more, or ctx ends.
func (r *Runner) serve(ctx context.Context, term uint64, changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := r.newFollower(term)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- f.engine.Run(ctx) }()
	go func() { ended <- f.follow(ctx) }()
	r.log.Info("checking begins", zap.Uint64("term", term))
	running := 2
	for err == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err = <-ended:
			running--
		case <-changed:
			leading, now, next := r.cfg.Leadership.Leadership()
			changed = next // membership may have changed alone
			if !leading || now != term {
				cancel()
			}
		}
	}
	cancel()
	r.forget() // what it knows is no longer this node's to tell
	for range running {
		if e := <-ended; err == nil {
			err = e
		}
	}
	r.log.Info("checking ended", zap.Uint64("term", term))
	return err
}

func (r *Runner) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = nil
}
