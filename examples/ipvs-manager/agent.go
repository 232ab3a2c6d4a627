package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// runAgent is the role agent: it programs this host's kernel until ctx ends.
// What is in the kernel stays there.
func runAgent(ctx context.Context, cfg config, log *zap.Logger, stdout io.Writer) error {
	who, err := agentIdentity(cfg, log)
	if err != nil {
		return err
	}
	if who != nil {
		cfg.agentName = who.ID().Name
	}
	d, err := newDirector(cfg, cfg.grpcAddress, who, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "ipvs-manager %s · agent %q\n  servers      %s\n  data         %s\n%s%s",
		version(), cfg.agentName, strings.Join(cfg.grpcAddress, ", "), cfg.agentDir, identified(who), d.plane.describe(cfg))
	warn(cfg, log, d)
	return d.Run(ctx)
}

// director makes one kernel follow the servers.
type director struct {
	plane      plane
	reconciler *reconcile.Reconciler
	client     *agent.Client
}

func newDirector(cfg config, servers []string, who *identity.Source, log *zap.Logger) (*director, error) {
	p, err := openPlane(cfg, reconcile.Available, func() (reconcile.Kernel, error) {
		return reconcile.NewLinux(reconcile.LinuxConfig{})
	})
	if err != nil {
		return nil, err
	}
	account := &applier{reports: make(chan lbstate.Applied, 1)}
	if account.Reconciler, err = cfg.tuning.reconciler(cfg.agentDir, p.kernel, account.report, log); err != nil {
		return nil, err
	}
	cc := agent.ClientConfig{
		Servers: servers, Name: cfg.agentName, Labels: cfg.agentLabels, Version: version(),
		Dir: cfg.agentDir, Applier: account, Insecure: cfg.insecure, Logger: log,
	}
	if who != nil {
		cc.Credentials, cc.Renewer = credentials.NewTLS(who.ClientTLS()), who
	}
	client, err := agent.NewClient(cc)
	if err != nil {
		return nil, err
	}
	return &director{p, account.Reconciler, client}, nil
}

// Run follows the servers until ctx ends.
func (d *director) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.reconciler.Run(ctx) })
	g.Go(func() error { return d.client.Run(ctx) })
	return g.Wait()
}

// applier hands the reconciler's later accounts (of retries, repairs and ended
// drains) on to the servers, the newest alone.
type applier struct {
	*reconcile.Reconciler
	reports chan lbstate.Applied
}

func (a *applier) Reports() <-chan lbstate.Applied { return a.reports }

func (a *applier) report(r reconcile.Report) {
	for {
		select {
		case a.reports <- r.Applied():
			return
		default:
		}
		select {
		case <-a.reports: // older, and not taken yet
		default:
		}
	}
}
