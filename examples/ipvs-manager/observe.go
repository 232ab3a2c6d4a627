package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
)

// openReconciler is for commands that look at the kernel beside a running agent.
func openReconciler(name, what string, args []string, more func(*pflag.FlagSet)) (*reconcile.Reconciler, error) {
	var t tuning
	var dir string
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.StringVar(&dir, "agent_dir", "agent_data", "directory of the agent's journal, which knows what is ours")
	t.scopeFlags(fs)
	if more != nil {
		more(fs)
	}
	if err := parseCommand(fs, what, args); err != nil {
		return nil, err
	}
	if err := reconcile.Available(); err != nil {
		return nil, err
	}
	kernel, err := reconcile.NewLinux(reconcile.LinuxConfig{})
	if err != nil {
		return nil, err
	}
	return t.reconciler(dir, kernel, nil, nil)
}

// observe shows what is ours in this host's kernel.
func observe(args []string, stdout io.Writer) error {
	r, err := openReconciler("observe", "shows what this host's kernel has of the load balancer: services and backends with\n"+
		"connections and rates, and what others have made. It changes nothing, and the agent may run.", args, nil)
	if err != nil {
		return err
	}
	a, err := r.Observe(context.Background())
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tBACKEND\tHOW\tWEIGHT\tACTIVE\tINACTIVE\tCONNECTIONS\tCONN/S\tIN B/S\tOUT B/S")
	for _, s := range a.Services {
		c := s.Counters
		fmt.Fprintf(w, "%s\t\t%s\t\t\t\t%d\t%d\t%d\t%d\n", s.Key, s.Scheduler, c.Connections, c.ConnectionRate, c.ByteRateIn, c.ByteRateOut)
		for _, d := range s.Destinations {
			c := d.Counters
			fmt.Fprintf(w, "\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", d.AddrPort(), d.Forwarding, d.Weight, d.Active, d.Inactive, c.Connections, c.ConnectionRate, c.ByteRateIn, c.ByteRateOut)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if a.Profile != "" {
		fmt.Fprintf(stdout, "profile: %s\n", a.Profile)
	}
	for _, d := range a.Drains {
		fmt.Fprintf(stdout, "drains: %s -> %s, until %s at the latest\n", d.Service, d.Dest, d.Deadline.Format("15:04:05"))
	}
	for _, k := range a.Foreign {
		fmt.Fprintf(stdout, "of others: %s\n", k)
	}
	return nil
}

// zero sets the counters of our services back.
func zero(args []string, _ io.Writer) error {
	r, err := openReconciler("zero", "sets the kernel's counters of the load balancer's services to zero.", args, nil)
	if err != nil {
		return err
	}
	return r.Zero(context.Background())
}

// plan shows what it would take to make this host's kernel equal to a file.
func plan(args []string, stdout io.Writer) error {
	file := ""
	var labels map[string]string
	r, err := openReconciler("plan", "prints the operations that would make this host's kernel equal to a configuration\n"+
		"(as GET /api/v1/config gives it), with every backend healthy. It changes nothing, and the\nagent may run.", args, func(fs *pflag.FlagSet) {
		fs.StringVar(&file, "config", "config.yaml", "file with the configuration, JSON or YAML")
		fs.Var(newValue("", "labels", "k=v pairs, comma separated, each key once", func(s string) (ok bool) {
			labels, ok = parseLabels(s)
			return ok
		}), "agent_labels", "this director's labels, which select its services and its profile\n(default: every service, and the profile of a director without labels)")
	})
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	view, err := viewOf(text, labels)
	if err != nil {
		return fmt.Errorf("--config %s: %w", file, err)
	}
	desired, unusable := reconcile.FromView(view)
	ops, failures, err := r.Plan(context.Background(), desired)
	if err != nil {
		return err
	}
	if p := view.Profile; p != nil {
		fmt.Fprintf(stdout, "profile: %s\n", p.Name)
	}
	for _, op := range ops {
		fmt.Fprintln(stdout, op)
	}
	for _, f := range append(unusable, failures...) {
		fmt.Fprintf(stdout, "cannot be: %v\n", f)
	}
	fmt.Fprintf(stdout, "%d operations\n", len(ops))
	return nil
}

// viewOf is what a director with these labels gets of a configuration; without any
// it gets all services.
func viewOf(text []byte, labels map[string]string) (lbstate.View, error) {
	var v lbstate.View
	set, err := lbstate.DecodeConfiguration(text)
	if err != nil {
		return v, err
	}
	if err := set.Validate(); err != nil {
		return v, err
	}
	checks := make(map[string]lbstate.SharedCheck, len(set.Checks))
	for _, c := range set.Checks {
		checks[c.Name] = c
	}
	if p := lbstate.ProfileOf(set.Profiles, labels); p != nil {
		desired := p.Desired()
		v.Profile = &desired
	}
	for _, s := range set.Services {
		if len(labels) > 0 && !s.Selects(labels) {
			continue
		}
		s = s.WithDefaults()
		healthy := make(map[netip.AddrPort]lbstate.BackendHealth, len(s.Backends))
		for _, b := range s.Backends {
			healthy[b.AddrPort()] = lbstate.BackendHealth{State: lbstate.Up}
		}
		v.Services = append(v.Services, lbstate.Desired(lbstate.Effective(s, checks, healthy, 0)))
	}
	return v, nil
}
