package lbstate

import (
	"cmp"
	"net/netip"
)

// DirectorProfile says how the directors that it selects are set up, apart
// from their services. A director has at most one: of those that select it the
// one with the highest priority, then the first by name. Profiles are not
// merged.
type DirectorProfile struct {
	Name            string            `json:"name"`
	Agents          map[string]string `json:"agents,omitempty"` // labels an agent must have; empty means all
	Priority        int               `json:"priority,omitempty"`
	Timeouts        *Timeouts         `json:"timeouts,omitempty"` // nil: the kernel's are left alone
	SyncDaemons     []SyncDaemon      `json:"sync_daemons,omitempty"`
	Sysctls         map[string]string `json:"sysctls,omitempty"`          // net.ipv4.vs.* and a few others, see validSysctl
	ReleaseVIPs     bool              `json:"release_vips,omitempty"`     // unbind a VIP that no service uses any more
	AllowedPrefixes []netip.Prefix    `json:"allowed_prefixes,omitempty"` // what may be bound; empty: everything
	SNAT            SNATMode          `json:"snat,omitempty"`             // instead of what services say; empty: as they say
	DrainTimeout    Duration          `json:"drain_timeout,omitempty"`    // of what is removed; 0: the agent's own
	Guard           *Guard            `json:"guard,omitempty"`            // nil: the agent's own
	Notes           string            `json:"notes,omitempty"`
	Revision        uint64            `json:"revision,omitempty"` // as Service's
}

// Timeouts are the kernel's for IPVS connections, in whole seconds; 0 leaves
// one as it is.
type Timeouts struct {
	TCP    Duration `json:"tcp,omitempty"`
	TCPFin Duration `json:"tcp_fin,omitempty"`
	UDP    Duration `json:"udp,omitempty"`
}

// SyncDaemon is one half of the kernel's synchronization of connections.
type SyncDaemon struct {
	Role      string     `json:"role"` // master | backup
	Interface string     `json:"interface"`
	ID        int        `json:"id,omitempty"`         // 0 to 255
	MaxLength int        `json:"max_length,omitempty"` // bytes; 0: the kernel's default
	Group     netip.Addr `json:"group,omitzero"`       // multicast; default the kernel's, 224.0.0.81
	Port      int        `json:"port,omitempty"`       // default the kernel's, 8848
	TTL       int        `json:"ttl,omitempty"`        // default the kernel's, 1
}

// Guard says when an agent holds a full state back for a person to confirm:
// when more services than both limits allow would vanish.
type Guard struct {
	MaxServices int `json:"max_services,omitempty"` // default 3
	MaxPercent  int `json:"max_percent,omitempty"`  // default 50
}

// Settings are the state's own, one object for the whole cluster. A zero field
// means its default.
type Settings struct {
	ChangeRevisions  int      `json:"change_revisions,omitempty"`  // how far a watcher may lag before it gets the full state; default 10,000
	HistoryRevisions int      `json:"history_revisions,omitempty"` // configuration revisions kept; default 10,000
	HistoryBytes     int      `json:"history_bytes,omitempty"`     // default 64 MiB
	HistoryAge       Duration `json:"history_age,omitempty"`       // what PruneHistory drops; default never
	IdempotencyKeys  int      `json:"idempotency_keys,omitempty"`  // default 10,000
	Revision         uint64   `json:"revision,omitempty"`          // as Service's
}

// WithDefaults returns the settings with every default filled in. The defaults
// are part of command version 1, since apply goes by them: to change one is to
// raise the version.
func (s Settings) WithDefaults() Settings {
	s.ChangeRevisions = cmp.Or(s.ChangeRevisions, 10_000)
	s.HistoryRevisions = cmp.Or(s.HistoryRevisions, 10_000)
	s.HistoryBytes = cmp.Or(s.HistoryBytes, 64<<20)
	s.IdempotencyKeys = cmp.Or(s.IdempotencyKeys, 10_000)
	return s
}

// Selects says whether an agent with these labels may get the profile.
func (p DirectorProfile) Selects(labels map[string]string) bool { return satisfied(p.Agents, labels) }

// ProfileOf is the one of profiles that an agent with these labels has; nil: none.
func ProfileOf(profiles []DirectorProfile, labels map[string]string) *DirectorProfile {
	var best *DirectorProfile
	for i := range profiles {
		if p := &profiles[i]; p.Selects(labels) && (best == nil || p.before(*best)) {
			best = p
		}
	}
	return best
}

// before says whether p goes before q for an agent that both select.
func (p DirectorProfile) before(q DirectorProfile) bool {
	if p.Priority != q.Priority {
		return p.Priority > q.Priority
	}
	return p.Name < q.Name
}

// satisfied says whether labels have all that a selector asks for.
func satisfied(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
