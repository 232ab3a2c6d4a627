// Package reconcile makes one Linux director's kernel equal to a desired state,
// again and again: IPVS services and destinations, the dummy interface with the
// VIPs, SNAT, and the settings that these need. It changes the smallest part in
// place, loses no connection that it need not lose, and touches nothing that is
// not its own.
//
//	kernel, err := reconcile.NewLinux(reconcile.LinuxConfig{}) // or fakekernel.New()
//	r, err := reconcile.New(reconcile.Config{Kernel: kernel, Journal: reconcile.FileJournal("scope.json")})
//	go r.Run(ctx)                       // drains, retries, drift
//	report, err := r.Sync(ctx, desired) // whenever desired changes
//
// Or in one: r.Follow(ctx, source).
//
// # Nouns
//
// A Desired holds services with their destinations, IPVS's timeouts and sync
// daemons, and a profile. Observe gives the Actual, with counters, rates and connections; a Plan
// is the list of Ops that lead from one to the other, pure and printable; Sync
// carries it out, reads back what it touched, and gives a Report. Update is Sync
// for one who knows the Change. Cleanup removes all that is ours. A Kernel is the
// seam: Linux, the one in memory of package fakekernel, or your own, checked by
// package kerneltest. A Journal keeps across restarts what is ours and what drains.
//
// # What is ours
//
// A service is ours if its VIP is on the dummy interface, which carries the alias
// "ipvskit", or in the journal, or if its firewall mark is in Config.Marks. On a
// VIP that another interface holds, only the services that the journal names are
// ours. In the packet filter ours are two chains, IPVSKIT-POSTROUTING in table nat
// and IPVSKIT-INPUT in table filter, with one jump to each; of sync daemons those
// that we started. Services that were on a VIP before it became ours stay someone
// else's. Nothing else is changed or deleted; what collides is reported by name. An
// interface of the configured name without the alias is adopted if it is a dummy
// without any alias whose addresses are all wanted.
//
// # Order
//
// Settings, timeouts, sync daemons; rules of the packet filter, additions only; the
// interface; services with all their destinations, raised weights; lowered weights;
// VIPs; then removals: drained destinations, services, VIPs if Config.ReleaseVIPs
// asks for it, rules. If every destination that should get connections fails,
// weights are not lowered. A removed destination gets weight 0 and is deleted when
// it has no connections or at its deadline; one that returns meanwhile is one edit.
// A removed service is deleted at once unless Config.DrainServices is set; its VIP
// and the interface stay.
//
// # Profiles
//
// A Desired may have a profile: how the director is set up, said for many at once.
// What Config, Desired.Timeouts and Desired.Daemons say goes before it, it goes
// before defaults and before what services need of the host; prefixes that it
// allows only narrow Config.AllowedPrefixes. It holds as everything desired does:
// changed at any time, repaired, failures by its name. What it changed of timeouts
// and settings is noted in the journal first, and goes back when no profile says it
// any more. Report.Profile tells which fields the host's own values override.
//
// # Caveats
//
// The settings in Report.Host are those of the whole network namespace, so they
// also hold for services of others: net.ipv4.vs.expire_nodest_conn=1 (connections
// of a deleted destination are reset, not dropped silently),
// net.ipv4.vs.expire_quiescent_template=1 with persistence,
// net.ipv4.vs.conntrack=1 with SNAT, forwarding with masquerading (with IPv6 also
// accept_ra=2 where it was 1, so that the host keeps a default route from router
// advertisements). Config.LeaveSysctls leaves them as they are.
//
// A connection that this director itself opens to a VIP is answered with snat
// local or all, and only for masqueraded destinations. What the host listens for
// on all addresses is reachable through a VIP, unless Config.ProtectVIPs is set.
// Others who change a value and change it back between two looks are not noticed;
// what the cheap listing does not show (thresholds, tunnel options, scheduler
// flags, the packet filter, settings) is looked at every Config.FullInterval.
//
// # Goroutines
//
// | goroutine | started by | stopped by | state it owns |
// |---|---|---|---|
// | Run | the caller | its ctx | a timer; while it has the turn, what Sync has while it runs: record, reader, back-offs |
// | Run, and one that waits for the source | Follow | its ctx, the source's error | the latest desired state |
// | listener | Run, for a Kernel that is a Notifier | Run's end, which waits for it | a socket |
//
// Nothing else runs: Sync, Update, Apply, Cleanup, Zero, Plan and Observe work on
// their caller's goroutine and take turns.
package reconcile
