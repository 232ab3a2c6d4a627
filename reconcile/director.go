package reconcile

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// IPVS is what the kernel's IPVS has beside its services.
type IPVS struct {
	Version   string // of IPVS, "1.2.1"
	TableSize uint32 // of the connection table, in buckets
	Timeouts  Timeouts
	Daemons   []SyncDaemon // those that run, with all their values; by role
}

// Timeouts are how long IPVS keeps a connection without a packet, in whole
// seconds. A zero field of what is desired leaves the kernel's value as it is.
type Timeouts struct {
	TCP    time.Duration // established; the kernel begins with 15m
	TCPFin time.Duration // after a FIN; 2m
	UDP    time.Duration // 5m
}

func (t Timeouts) String() string {
	return fmt.Sprintf("tcp %s, tcp-fin %s, udp %s", t.TCP, t.TCPFin, t.UDP)
}

// fields are those of t, by the names that profiles have for them.
func (t *Timeouts) fields() map[string]*time.Duration {
	return map[string]*time.Duration{"tcp": &t.TCP, "tcp_fin": &t.TCPFin, "udp": &t.UDP}
}

// over is t with the fields of base where it has none.
func (t Timeouts) over(base Timeouts) Timeouts {
	for _, f := range []struct{ to, from *time.Duration }{{&t.TCP, &base.TCP}, {&t.TCPFin, &base.TCPFin}, {&t.UDP, &base.UDP}} {
		if *f.to == 0 {
			*f.to = *f.from
		}
	}
	return t
}

// maxTimeout is what the kernel counts in ticks of an int, at 1,000 a second
// (ip_vs_set_timeout in net/netfilter/ipvs/ip_vs_ctl.c).
const maxTimeout = 2147483 * time.Second

func (t Timeouts) check() error {
	for _, d := range []time.Duration{t.TCP, t.TCPFin, t.UDP} {
		if d < 0 || d > maxTimeout || d%time.Second != 0 {
			return fmt.Errorf("timeout %s: whole seconds from 1s to %s are possible, 0 leaves it as it is", d, maxTimeout)
		}
	}
	return nil
}

// SyncRole is what a sync daemon does, by the kernel's numbers.
type SyncRole uint8

// The roles: a director can have a daemon of each at the same time.
const (
	SyncMaster SyncRole = 1 // tells others of this director's connections
	SyncBackup SyncRole = 2 // learns connections from others
)

func (r SyncRole) String() string {
	switch r {
	case SyncMaster:
		return "master"
	case SyncBackup:
		return "backup"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// SyncDaemon is the kernel's thread that shares connections between directors by
// multicast, so that another one can take them over. Of what is desired, the zero
// value of Group, Port, TTL and MaxLen is the kernel's choice.
type SyncDaemon struct {
	Role      SyncRole
	Interface string     // that it sends or listens on; it must exist
	ID        uint8      // directors with the same ID share connections
	Group     netip.Addr // default 224.0.0.81
	Port      uint16     // default 8848
	TTL       uint8      // default 1
	MaxLen    uint16     // bytes of a packet's payload; default by the interface's MTU
}

func (d SyncDaemon) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s id %d", d.Role, d.Interface, d.ID)
	if d.Group.IsValid() {
		fmt.Fprintf(&b, " group %s", d.Group)
	}
	if d.Port != 0 {
		fmt.Fprintf(&b, " port %d", d.Port)
	}
	if d.TTL != 0 {
		fmt.Fprintf(&b, " ttl %d", d.TTL)
	}
	if d.MaxLen != 0 {
		fmt.Fprintf(&b, " maxlen %d", d.MaxLen)
	}
	return b.String()
}

// satisfied says whether the daemon that runs is the one that is wanted.
func (d SyncDaemon) satisfied(runs SyncDaemon) bool {
	return d.Role == runs.Role && d.Interface == runs.Interface && d.ID == runs.ID &&
		(!d.Group.IsValid() || d.Group == runs.Group) &&
		(d.Port == 0 || d.Port == runs.Port) &&
		(d.TTL == 0 || d.TTL == runs.TTL) &&
		(d.MaxLen == 0 || d.MaxLen == runs.MaxLen)
}

func (d SyncDaemon) check() error {
	switch {
	case d.Role != SyncMaster && d.Role != SyncBackup:
		return fmt.Errorf("%s is not a sync daemon's; master and backup are", d.Role)
	case d.Interface == "" || len(d.Interface) > 15:
		return fmt.Errorf("interface %q of the sync daemon: a name of 1 to 15 bytes is needed", d.Interface)
	case d.Role == SyncBackup && d.MaxLen > 0 && d.MaxLen < 1024:
		// The kernel would take 1024 instead (ip_vs_sync.c, start_sync_thread).
		return fmt.Errorf("maxlen %d of the sync daemon: at least 1024 is possible for the backup", d.MaxLen)
	case d.Group.IsValid() && !d.Group.IsMulticast():
		return fmt.Errorf("group %s of the sync daemon is not a multicast address", d.Group)
	}
	return nil
}

// checkDirector gives what of the desired settings of IPVS itself can be had.
func checkDirector(d Desired) (Timeouts, []SyncDaemon, []Failure) {
	var failures []Failure
	timeouts := d.Timeouts
	if err := timeouts.check(); err != nil {
		failures = append(failures, Failure{Object: "timeouts", Op: "check", Err: err})
		timeouts = Timeouts{}
	}
	var daemons []SyncDaemon
	roles := map[SyncRole]bool{}
	for _, s := range d.Daemons {
		err := s.check()
		if err == nil && roles[s.Role] {
			err = fmt.Errorf("there can be one sync daemon of a role")
		}
		if err != nil {
			failures = append(failures, Failure{Object: "sync daemon " + s.Role.String(), Op: "check", Err: err})
			continue
		}
		roles[s.Role] = true
		daemons = append(daemons, s)
	}
	return timeouts, daemons, failures
}

// planDirector brings timeouts and sync daemons to what is wanted. A daemon is
// ours if we started it: another one of its role is in the way.
func (c Config) planDirector(p *plan, w *wanted, a *Actual) {
	if t := w.timeouts.over(a.before.Timeouts).over(a.IPVS.Timeouts); t != a.IPVS.Timeouts {
		p.host = append(p.host, Op{Kind: SetTimeouts, Timeouts: &t})
	}
	for _, role := range []SyncRole{SyncMaster, SyncBackup} {
		want, runs := daemonOf(w.daemons, role), daemonOf(a.IPVS.Daemons, role)
		object := "sync daemon " + role.String()
		switch {
		case want == nil && runs == nil, want != nil && runs != nil && want.satisfied(*runs):
		case want == nil:
			if a.ownDaemons[role] {
				p.remove = append(p.remove, Op{Kind: StopDaemon, Daemon: runs})
			}
		case runs == nil:
			p.host = append(p.host, Op{Kind: StartDaemon, Daemon: want})
		case a.ownDaemons[role]:
			p.host = append(p.host, Op{Kind: StopDaemon, Daemon: runs, Why: "its values cannot change while it runs"}, Op{Kind: StartDaemon, Daemon: want})
		default:
			p.collisions = append(p.collisions, Collision{object, "one that is not ours runs: " + runs.String()})
			p.failures = append(p.failures, Failure{Object: object, Op: "start", Err: fmt.Errorf(
				"another runs already (%s) and is not ours; stop it: ipvsadm --stop-daemon %s", runs, role)})
		}
	}
}

func daemonOf(ds []SyncDaemon, role SyncRole) *SyncDaemon {
	for i := range ds {
		if ds[i].Role == role {
			return &ds[i]
		}
	}
	return nil
}
