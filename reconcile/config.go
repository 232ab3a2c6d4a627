package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Alias marks the dummy interface as ours.
const Alias = "ipvskit"

// Config says what a Reconciler works on and how. It is not changed.
type Config struct {
	// Kernel is required.
	Kernel Kernel
	// Journal keeps which VIPs are ours and what drains, across restarts. Nil: in
	// memory, so after a restart only the interface's own VIPs are known as ours.
	Journal Journal
	// DummyName is the interface that VIPs are bound to, at most 15 bytes; default
	// "ipvs-manager".
	DummyName string
	// Marks are the firewall marks that are ours: services of others in this
	// range are deleted. The zero range is empty; desired marks outside of it are
	// refused.
	Marks MarkRange
	// AllowedPrefixes limit which VIPs may be programmed; empty: any. They never
	// widen what may be deleted. A profile's limit more, and allow nothing else.
	AllowedPrefixes []netip.Prefix
	// DrainTimeout is how long the connections of a removed destination may go on
	// before it is deleted; default the profile's, else 60s; negative: deleted at
	// once. A drain that runs keeps its deadline.
	DrainTimeout time.Duration
	// DrainServices drains a removed service's destinations before it is deleted,
	// instead of deleting it at once.
	DrainServices bool
	// ReleaseVIPs unbinds a VIP that no service uses any more; by default it stays.
	ReleaseVIPs bool
	// KeepVIPs lets every VIP stay, also where a profile asks for their release.
	KeepVIPs bool
	// ARPQuiet keeps this host from answering ARP for the VIPs, for several
	// directors or real servers on one segment (arp_ignore=1, arp_announce=2).
	ARPQuiet bool
	// SoleDirector says that no other host carries these VIPs. Otherwise a VIP to
	// which clients on a segment of this host come by ARP is warned of.
	SoleDirector bool
	// ProtectVIPs rejects new connections to whatever no service has on a VIP: it
	// is an address of this host, so the host's own listeners answer there
	// otherwise. It needs connection tracking, and a rule for each port.
	ProtectVIPs bool
	// Timeouts and Daemons are this host's own, for Apply: they go before those of
	// the view's profile. A Desired that is given to Sync has its own.
	Timeouts Timeouts
	Daemons  []SyncDaemon
	// LeaveSysctls names settings that are left as they are even where a service
	// or the profile needs another value ("net/ipv4/ip_forward"); "*" leaves all.
	LeaveSysctls []string
	// DriftInterval is how often Run looks for changes by others; default 5s.
	DriftInterval time.Duration
	// FullInterval is how often it reads everything back, thresholds, tunnels and
	// packet filter included; default 1m.
	FullInterval time.Duration
	// RetryMin and RetryMax bound the pause before a failed operation is tried
	// again; default 1s and 1m.
	RetryMin, RetryMax time.Duration
	// OnReport gets the report of each reconciliation that Run made and that
	// changed or found something. It is called with no lock held.
	OnReport func(Report)
	Logger   *zap.Logger // nil: silent
	Metrics  Metrics     // nil: none

	profile *lbstate.DesiredProfile // in force; see under
}

// MarkRange is a range of firewall marks, both ends included. The zero value is
// empty: 0 is no mark.
type MarkRange struct{ First, Last uint32 }

// Contains says whether the mark is in the range.
func (r MarkRange) Contains(mark uint32) bool { return mark != 0 && mark >= r.First && mark <= r.Last }

func (r MarkRange) String() string {
	if r.Last == 0 || r.First > r.Last {
		return "none"
	}
	return fmt.Sprintf("%d to %d", max(1, r.First), r.Last)
}

func (c Config) withDefaults() Config {
	if c.DummyName == "" {
		c.DummyName = "ipvs-manager"
	}
	if c.DriftInterval == 0 {
		c.DriftInterval = 5 * time.Second
	}
	if c.FullInterval == 0 {
		c.FullInterval = time.Minute
	}
	if c.RetryMin == 0 {
		c.RetryMin = time.Second
	}
	if c.RetryMax == 0 {
		c.RetryMax = max(time.Minute, c.RetryMin)
	}
	if c.Journal == nil {
		c.Journal = new(memoryJournal)
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("reconcile")
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	c.AllowedPrefixes = slices.Clone(c.AllowedPrefixes)
	c.LeaveSysctls = slices.Clone(c.LeaveSysctls)
	c.Daemons = slices.Clone(c.Daemons)
	return c
}

func (c Config) validate() error {
	switch {
	case c.Kernel == nil:
		return errors.New("reconcile: no Kernel in the Config; NewLinux or fakekernel.New make one")
	case c.ReleaseVIPs && c.KeepVIPs:
		return errors.New("reconcile: ReleaseVIPs and KeepVIPs contradict each other")
	case len(c.DummyName) > 15:
		return fmt.Errorf("reconcile: dummy interface name %q: at most 15 bytes are possible", c.DummyName)
	case c.DriftInterval < 0 || c.FullInterval < 0 || c.RetryMin < 0 || c.RetryMax < c.RetryMin:
		return errors.New("reconcile: intervals must not be negative, nor RetryMax below RetryMin")
	}
	for _, p := range c.AllowedPrefixes {
		if !p.IsValid() {
			return errors.New("reconcile: an allowed prefix is not valid")
		}
	}
	if _, _, wrong := checkDirector(Desired{Timeouts: c.Timeouts, Daemons: c.Daemons}); len(wrong) > 0 {
		return fmt.Errorf("reconcile: %w", wrong[0])
	}
	return nil
}

func (c Config) leaves(sysctl string) bool {
	return slices.Contains(c.LeaveSysctls, "*") || slices.Contains(c.LeaveSysctls, sysctl)
}

// Metrics counts what a Reconciler does. Methods must not block.
type Metrics interface {
	// Reconciled is called after each reconciliation.
	Reconciled(Report)
	// Operated is called for each operation; err is nil if it was done.
	Operated(kind OpKind, err error)
	// Drained is called when a drain ends; left is how many connections it cut.
	Drained(left int)
}

type noMetrics struct{}

func (noMetrics) Reconciled(Report)      {}
func (noMetrics) Operated(OpKind, error) {}
func (noMetrics) Drained(int)            {}
