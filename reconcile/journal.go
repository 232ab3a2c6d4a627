package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Journal keeps one document across restarts. Save is durable and atomic when it
// returns: a crash leaves the old document or the new. Load gives nil if there
// is none. A Reconciler never calls them concurrently.
type Journal interface {
	Load() ([]byte, error)
	Save([]byte) error
}

// FileJournal keeps the document in a file, replaced by renaming. The folder
// must exist.
func FileJournal(path string) Journal { return fileJournal(path) }

type fileJournal string

func (j fileJournal) Load() ([]byte, error) {
	b, err := os.ReadFile(string(j))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (j fileJournal) Save(b []byte) error {
	dir := filepath.Dir(string(j))
	f, err := os.CreateTemp(dir, filepath.Base(string(j))+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), string(j))
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

type memoryJournal struct {
	mu  sync.Mutex
	doc []byte // guarded by mu
}

func (j *memoryJournal) Load() ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.doc), nil
}

func (j *memoryJournal) Save(b []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doc = slices.Clone(b)
	return nil
}

// Drain is a destination that was removed and still has connections.
type Drain struct {
	Service  Key
	Dest     netip.AddrPort
	Since    time.Time
	Deadline time.Time // it is deleted then, whatever is left
}

// record is the journal's document: what is ours beyond what the interface
// itself shows.
type record struct {
	VIPs    map[netip.Addr]bool   // ours; noted before the first operation on one
	Own     map[Key]bool          // ours on VIPs that another interface holds
	Foreign map[Key]bool          // found on a VIP when it became ours: not ours
	Drains  map[destination]Drain // still in the kernel, with weight 0
	Daemons map[SyncRole]bool     // sync daemons that we started
	Before  before                // of what profiles changed
	Profile string                // in force last, for people
	// Protected: the chains of Config.ProtectVIPs may be there.
	Protected bool
}

type destination struct {
	service Key
	addr    netip.AddrPort
}

func newRecord() *record {
	return &record{
		VIPs: map[netip.Addr]bool{}, Own: map[Key]bool{}, Foreign: map[Key]bool{}, Drains: map[destination]Drain{},
		Daemons: map[SyncRole]bool{}, Before: before{Sysctls: map[string]string{}},
	}
}

func (r *record) clone() *record {
	return &record{
		VIPs: maps.Clone(r.VIPs), Own: maps.Clone(r.Own), Foreign: maps.Clone(r.Foreign), Drains: maps.Clone(r.Drains), Daemons: maps.Clone(r.Daemons),
		Before: before{maps.Clone(r.Before.Sysctls), r.Before.Timeouts}, Profile: r.Profile, Protected: r.Protected,
	}
}

func (r *record) equal(o *record) bool {
	return maps.Equal(r.VIPs, o.VIPs) && maps.Equal(r.Own, o.Own) && maps.Equal(r.Foreign, o.Foreign) &&
		maps.EqualFunc(r.Drains, o.Drains, func(a, b Drain) bool {
			return a.Service == b.Service && a.Dest == b.Dest && a.Since.Equal(b.Since) && a.Deadline.Equal(b.Deadline)
		}) &&
		maps.Equal(r.Daemons, o.Daemons) && r.Protected == o.Protected && r.Profile == o.Profile &&
		maps.Equal(r.Before.Sysctls, o.Before.Sysctls) && r.Before.Timeouts == o.Before.Timeouts
}

const recordVersion = 1

type recordJSON struct {
	Version int          `json:"version"`
	VIPs    []netip.Addr `json:"vips"`
	Own     []string     `json:"own,omitempty"`
	Foreign []string     `json:"foreign,omitempty"`
	Drains  []drainJSON  `json:"drains,omitempty"`
	Daemons []string     `json:"daemons,omitempty"`

	Protected bool   `json:"protected,omitempty"`
	Profile   string `json:"profile,omitempty"`
	// Before profiles changed them: settings by path, timeouts in seconds.
	Sysctls  map[string]string `json:"sysctls,omitempty"`
	Timeouts map[string]int64  `json:"timeouts,omitempty"`
}

type drainJSON struct {
	Service  string         `json:"service"`
	Dest     netip.AddrPort `json:"destination"`
	Since    time.Time      `json:"since"`
	Deadline time.Time      `json:"deadline"`
}

// encode is deterministic, so that an unchanged record need not be saved.
func (r *record) encode() []byte {
	doc := recordJSON{Version: recordVersion, VIPs: []netip.Addr{}}
	for a := range r.VIPs {
		doc.VIPs = append(doc.VIPs, a)
	}
	slices.SortFunc(doc.VIPs, netip.Addr.Compare)
	keys := func(m map[Key]bool) (out []string) {
		for k := range m {
			out = append(out, k.String())
		}
		slices.Sort(out)
		return out
	}
	doc.Own, doc.Foreign = keys(r.Own), keys(r.Foreign)
	doc.Protected, doc.Profile, doc.Sysctls = r.Protected, r.Profile, r.Before.Sysctls
	for name, d := range r.Before.Timeouts.fields() {
		if *d != 0 {
			if doc.Timeouts == nil {
				doc.Timeouts = map[string]int64{}
			}
			doc.Timeouts[name] = int64(*d / time.Second)
		}
	}
	for _, role := range []SyncRole{SyncMaster, SyncBackup} {
		if r.Daemons[role] {
			doc.Daemons = append(doc.Daemons, role.String())
		}
	}
	for _, d := range r.Drains {
		doc.Drains = append(doc.Drains, drainJSON{d.Service.String(), d.Dest, d.Since.UTC(), d.Deadline.UTC()})
	}
	slices.SortFunc(doc.Drains, func(a, b drainJSON) int {
		if c := a.Dest.Compare(b.Dest); c != 0 {
			return c
		}
		if a.Service < b.Service {
			return -1
		}
		return 1
	})
	b, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		panic(err) // every field is a string or a number
	}
	return b
}

func decodeRecord(b []byte) (*record, error) {
	r := newRecord()
	if len(b) == 0 {
		return r, nil
	}
	var doc recordJSON
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	if doc.Version != recordVersion {
		return nil, fmt.Errorf("version %d; this program reads %d", doc.Version, recordVersion)
	}
	for _, a := range doc.VIPs {
		if !a.IsValid() {
			return nil, errors.New("an empty VIP")
		}
		r.VIPs[a] = true
	}
	for _, p := range []struct {
		from []string
		to   map[Key]bool
	}{{doc.Own, r.Own}, {doc.Foreign, r.Foreign}} {
		for _, text := range p.from {
			k, err := ParseKey(text)
			if err != nil {
				return nil, err
			}
			p.to[k] = true
		}
	}
	r.Protected, r.Profile = doc.Protected, doc.Profile
	maps.Copy(r.Before.Sysctls, doc.Sysctls)
	fields := r.Before.Timeouts.fields()
	for name, seconds := range doc.Timeouts {
		field := fields[name]
		if field == nil || seconds <= 0 || seconds > int64(maxTimeout/time.Second) {
			return nil, fmt.Errorf("a timeout %q of %d seconds", name, seconds)
		}
		*field = time.Duration(seconds) * time.Second
	}
	for _, text := range doc.Daemons {
		switch text {
		case SyncMaster.String():
			r.Daemons[SyncMaster] = true
		case SyncBackup.String():
			r.Daemons[SyncBackup] = true
		default:
			return nil, fmt.Errorf("a sync daemon %q; there are master and backup", text)
		}
	}
	for _, d := range doc.Drains {
		k, err := ParseKey(d.Service)
		if err != nil {
			return nil, err
		}
		if !d.Dest.IsValid() {
			return nil, errors.New("a drain without a destination")
		}
		r.Drains[destination{k, d.Dest}] = Drain{k, d.Dest, d.Since, d.Deadline}
	}
	return r, nil
}
