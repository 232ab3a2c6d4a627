package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// tuning are the parts of a reconcile.Config that a command line sets.
type tuning struct {
	dummyName       string
	marks           reconcile.MarkRange // firewall marks that are ours
	allowedPrefixes []netip.Prefix
	drainTimeout    time.Duration
	drainServices   bool
	releaseVIPs     bool
	keepVIPs        bool // --release_vips=false, which a profile does not overrule
	arpQuiet        bool
	soleDirector    bool
	protectVIPs     bool
	leaveSysctls    []string
	timeouts        reconcile.Timeouts
	daemons         []reconcile.SyncDaemon
}

// scopeFlags say what is ours on this host.
func (t *tuning) scopeFlags(fs *pflag.FlagSet) {
	fs.Var(newValue("ipvs-manager", "string", "an interface name: 1 to 15 characters without space, '/' or ':'", func(s string) bool {
		t.dummyName = s
		return isInterface(s)
	}), "dummy_name", "name of the dummy interface that carries the VIPs")
	fs.Var(newValue("", "range", "FIRST-LAST, each 1 to 4294967295", func(s string) bool {
		var ok bool
		t.marks, ok = parseMarks(s)
		return ok
	}), "fwmark_range", "firewall marks that are this load balancer's own, as in 100-199: IPVS services of other\nmarks are never touched, those in the range that are not wanted are deleted (default: none)")
}

// flags say how this host is programmed. What is given goes before what a profile
// says; of the allowed prefixes both hold.
func (t *tuning) flags(fs *pflag.FlagSet) {
	fs.Var(newValue("", "list", "prefixes ADDRESS/LENGTH, comma separated", func(s string) bool {
		t.allowedPrefixes = nil
		for _, text := range splitList(s) {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return false
			}
			t.allowedPrefixes = append(t.allowedPrefixes, p.Masked())
		}
		return true
	}), "allowed_prefixes", "the only prefixes of which a VIP may be bound here (default: any)")
	fs.Var(newValue("1m0s", "duration", "a duration, as in 90s or 5m; 0 deletes at once", func(s string) bool {
		d, err := time.ParseDuration(s)
		if t.drainTimeout = d; d == 0 {
			t.drainTimeout = -1 // a Config's 0 is its default
		}
		return err == nil && d >= 0
	}), "drain_timeout", "how long the connections of a removed backend may go on")
	t.drainTimeout = 0 // not given: a profile's, or else what the usage says
	fs.BoolVar(&t.drainServices, "drain_services", false, "let the connections of a removed service end too, within --drain_timeout")
	fs.BoolFunc("release_vips", "unbind a VIP that no service uses any more; by default it stays, unless this director's\nprofile says otherwise; =false lets it stay whatever that says", func(s string) error {
		release, err := strconv.ParseBool(s)
		t.releaseVIPs, t.keepVIPs = release, err == nil && !release
		return err
	})
	fs.BoolVar(&t.arpQuiet, "arp_quiet", false, "answer no ARP for the VIPs: for several directors on one segment")
	fs.Var(newValue("", "timeouts", "tcp=, tcpfin= and udp= with whole seconds, comma separated, as in tcp=15m,udp=1m", func(s string) bool {
		var ok bool
		t.timeouts, ok = parseTimeouts(s)
		return ok
	}), "ipvs_timeouts", "how long IPVS keeps a connection without a packet (default: as the kernel has it)")
	fs.Var(newValue("", "daemons", "master:INTERFACE:ID or backup:INTERFACE:ID, ID 0 to 255, comma separated", func(s string) bool {
		var ok bool
		t.daemons, ok = parseDaemons(s)
		return ok
	}), "sync_daemons", "IPVS's threads that share connections with other directors by multicast (default: none)")
	fs.BoolVar(&t.soleDirector, "sole_director", false, "no other host carries these VIPs: do not warn of one that is on a segment of this host")
	fs.BoolVar(&t.protectVIPs, "protect_vips", false, "reject new connections to ports of a VIP that no service has; this host's own listeners\nanswer there otherwise")
	fs.Var(newValue("", "list", "names below /proc/sys, comma separated, or *", func(s string) bool {
		t.leaveSysctls = splitList(s)
		return true
	}), "leave_sysctls", "settings that are left as they are even where a service needs another value,\nas in net/ipv4/ip_forward; * leaves all")
}

func parseMarks(s string) (reconcile.MarkRange, bool) {
	if s == "" {
		return reconcile.MarkRange{}, true
	}
	a, b, ok := strings.Cut(s, "-")
	first, err1 := strconv.ParseUint(a, 10, 32)
	last, err2 := strconv.ParseUint(b, 10, 32)
	return reconcile.MarkRange{First: uint32(first), Last: uint32(last)}, ok && errors.Join(err1, err2) == nil && first > 0 && first <= last
}

// parseTimeouts reads tcp=15m,tcpfin=2m,udp=5m, each at most once.
func parseTimeouts(s string) (t reconcile.Timeouts, ok bool) {
	fields := map[string]*time.Duration{"tcp": &t.TCP, "tcpfin": &t.TCPFin, "udp": &t.UDP}
	for _, part := range splitList(s) {
		name, text, _ := strings.Cut(part, "=")
		d, err := time.ParseDuration(text)
		field := fields[name]
		if field == nil || err != nil || d < time.Second || d%time.Second != 0 {
			return t, false
		}
		*field = d
		delete(fields, name)
	}
	return t, true
}

// parseDaemons reads master:eth1:7,backup:eth1:7.
func parseDaemons(s string) (daemons []reconcile.SyncDaemon, ok bool) {
	roles := map[string]reconcile.SyncRole{"master": reconcile.SyncMaster, "backup": reconcile.SyncBackup}
	for _, part := range splitList(s) {
		words := strings.Split(part, ":")
		if len(words) != 3 || !isInterface(words[1]) {
			return nil, false
		}
		role, known := roles[words[0]]
		id, err := strconv.ParseUint(words[2], 10, 8)
		if !known || err != nil {
			return nil, false
		}
		daemons = append(daemons, reconcile.SyncDaemon{Role: role, Interface: words[1], ID: uint8(id)})
	}
	return daemons, true
}

// reconciler makes the Reconciler of this host; dir is the agent's directory.
func (t tuning) reconciler(dir string, kernel reconcile.Kernel, onReport func(reconcile.Report), log *zap.Logger) (*reconcile.Reconciler, error) {
	cfg := reconcile.Config{
		Kernel: kernel, DummyName: t.dummyName, Marks: t.marks, AllowedPrefixes: t.allowedPrefixes,
		DrainTimeout: t.drainTimeout, DrainServices: t.drainServices, ReleaseVIPs: t.releaseVIPs, KeepVIPs: t.keepVIPs, ARPQuiet: t.arpQuiet,
		SoleDirector: t.soleDirector, Timeouts: t.timeouts, Daemons: t.daemons, ProtectVIPs: t.protectVIPs, LeaveSysctls: t.leaveSysctls, OnReport: onReport, Logger: log,
	}
	if !kernel.Simulated() {
		// A simulated kernel is empty at each start, so it has no scope to
		// remember. One that it left would be taken for the real kernel's.
		cfg.Journal = reconcile.FileJournal(filepath.Join(dir, "scope"))
	}
	return reconcile.New(cfg)
}

// cleanup removes from the kernel all that is this load balancer's.
func cleanup(args []string, stdout io.Writer) error {
	var t tuning
	var dir string
	fs := pflag.NewFlagSet("cleanup", pflag.ContinueOnError)
	fs.StringVar(&dir, "agent_dir", "agent_data", "directory of the agent's journal, which knows what is ours")
	t.scopeFlags(fs)
	if err := parseCommand(fs, "removes what an agent has programmed on this host and nothing else: services, with\n"+
		"their connections, the interface with its VIPs, packet-filter chains. The agent must be\nstopped; when it runs again it programs all of it again.", args); err != nil {
		return err
	}
	lock, err := agent.Lock(dir)
	if err != nil {
		return fmt.Errorf("--agent_dir: %w", err)
	}
	defer lock.Close()
	if err := reconcile.Available(); err != nil {
		return err
	}
	kernel, err := reconcile.NewLinux(reconcile.LinuxConfig{})
	if err != nil {
		return err
	}
	r, err := t.reconciler(dir, kernel, nil, nil)
	if err != nil {
		return err
	}
	rep, err := r.Cleanup(context.Background())
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d operations carried out\n", rep.Operations)
	if rep.Converged {
		return nil
	}
	left := make([]string, len(rep.Failures))
	for i, f := range rep.Failures {
		left[i] = f.Error()
	}
	return fmt.Errorf("still there: %s", strings.Join(left, "; "))
}
