package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// view is the state as one set of labels selects it. All streams with these
// labels share it: the store is read once a change for all of them, and what
// they are sent is encoded once.
type view struct {
	server *Server
	key    string
	labels map[string]string
	ctx    context.Context // ends all reading
	cancel context.CancelFunc

	// Guarded by views.mu.
	users int
	idle  *time.Timer // gives the view up; nil while it has users

	mu      sync.Mutex // guards the fields below
	streams map[*stream]struct{}
	now     *moment // nil until the first read
	err     error   // why reading has ended

	// Of run alone.
	versions map[string]uint64 // by service
}

// moment is a view at one revision. It does not change, but for its encodings.
type moment struct {
	revision uint64
	digest   uint64 // of the services; see sum
	profile  *lbstate.DirectorProfile
	moved    uint64 // when this view last saw another profile
	base     uint64 // steps hold what changed after it
	steps    []step // oldest first
	restores int    // how often the whole state was put in the place of another

	mu        sync.Mutex // guards encodings
	encodings map[encodingKey]*encoding
}

// step is what changed from one revision to the next that this view saw.
type step struct {
	revision uint64
	services []lbstate.ServiceStatus
	removed  []string
}

const (
	// keptSteps and keptServices bound the changes that a view remembers, for
	// agents that are a little behind. Others get what they lack from the store.
	keptSteps    = 64
	keptServices = 4096
	// keepIdle is how long a view without streams is kept: agents come back.
	keepIdle = 10 * time.Second
	// keepRead is how long what was read from the store for one revision is kept,
	// for agents that come together.
	keepRead = 3 * time.Second
)

type encodingKey struct {
	cluster, since uint64
	full           bool // the whole state, not what changed since
	profiles       bool // for agents that know profiles
}

// encoding is an update as it is sent, to all who need the same.
type encoding struct {
	once     sync.Once
	err      error
	revision uint64
	digest   uint64
	empty    bool // nothing has changed since
	chunks   []*agentpb.ServerMessage
}

// views are those in use, by their labels.
type views struct {
	mu   sync.Mutex // guards the fields below, and those of each view that say so
	open map[string]*view
	shut bool
}

func labelsKey(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "%q=%q,", k, labels[k]) // quoted: an agent may say any bytes
	}
	return b.String()
}

// acquire returns the view of labels, which tells st what changes, until release.
// It is nil once the server is closed.
func (s *Server) acquire(labels map[string]string, st *stream) *view {
	key := labelsKey(labels)
	s.views.mu.Lock()
	defer s.views.mu.Unlock()
	if s.views.shut {
		return nil
	}
	v := s.views.open[key]
	if v == nil {
		v = &view{server: s, key: key, labels: labels, streams: map[*stream]struct{}{}}
		v.ctx, v.cancel = context.WithCancel(context.Background())
		s.views.open[key] = v
		s.streams.Go(v.run)
	}
	v.mu.Lock()
	v.streams[st] = struct{}{}
	v.mu.Unlock()
	v.users++
	if v.idle != nil {
		v.idle.Stop()
		v.idle = nil
	}
	return v
}

func (s *Server) release(v *view, st *stream) {
	v.mu.Lock()
	delete(v.streams, st)
	v.mu.Unlock()
	s.views.mu.Lock()
	defer s.views.mu.Unlock()
	if v.users--; v.users > 0 || s.views.shut {
		return
	}
	v.idle = time.AfterFunc(keepIdle, func() {
		s.views.mu.Lock()
		defer s.views.mu.Unlock()
		if v.users == 0 && s.views.open[v.key] == v {
			delete(s.views.open, v.key)
			v.cancel()
		}
	})
}

// closeViews ends all views; there will be no other.
func (s *Server) closeViews() {
	s.views.mu.Lock()
	defer s.views.mu.Unlock()
	s.views.shut = true
	for _, v := range s.views.open {
		v.cancel()
		if v.idle != nil {
			v.idle.Stop()
		}
	}
}

// run follows the store until the view is given up, or cannot be read.
func (v *view) run() {
	w := v.server.cfg.Store.Watch(lbstate.WatchOptions{Labels: v.labels})
	for {
		u, err := w.Next(v.ctx)
		if err != nil {
			v.fail(err)
			v.tell()
			return
		}
		v.take(u)
		v.tell()
	}
}

// tell tells the streams that the view has changed, which none of them makes
// wait.
func (v *view) tell() {
	v.mu.Lock()
	streams := slices.Collect(maps.Keys(v.streams))
	v.mu.Unlock()
	const each = 64
	var next atomic.Int64
	var working sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (len(streams)+each-1)/each) {
		working.Go(func() {
			for {
				end := int(next.Add(each))
				for _, st := range streams[min(end-each, len(streams)):min(end, len(streams))] {
					st.changed()
				}
				if end >= len(streams) {
					return
				}
			}
		})
	}
	working.Wait()
}

func (v *view) fail(err error) {
	v.server.views.mu.Lock()
	if v.server.views.open[v.key] == v {
		delete(v.server.views.open, v.key)
	}
	v.server.views.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err = err
}

// take makes the next moment of u.
func (v *view) take(u lbstate.Update) {
	v.mu.Lock()
	now := v.now
	v.mu.Unlock()
	next := &moment{revision: u.Revision, profile: u.Profile, moved: u.Revision}
	if u.Full || now == nil {
		v.versions = make(map[string]uint64, len(u.Services))
		next.base = u.Revision
		if now != nil {
			next.restores = now.restores + 1
		}
	} else {
		next.digest, next.base, next.steps, next.restores = now.digest, now.base, now.steps, now.restores
		if !u.ProfileChanged {
			next.moved = now.moved
		}
	}
	for _, name := range u.Removed {
		if old, ok := v.versions[name]; ok {
			next.digest -= pairDigest(name, old)
			delete(v.versions, name)
		}
	}
	for _, s := range u.Services {
		if old, ok := v.versions[s.Name]; ok {
			next.digest -= pairDigest(s.Name, old)
		}
		v.versions[s.Name] = s.Version
		next.digest += pairDigest(s.Name, s.Version)
	}
	if !u.Full && now != nil {
		next.keep(step{u.Revision, u.Services, u.Removed})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now = next
}

// keep adds a step, and forgets those that are too many.
func (m *moment) keep(s step) {
	steps := append(slices.Clip(m.steps), s)
	sum := 0
	for i := len(steps) - 1; i >= 0; i-- {
		sum += len(steps[i].services) + len(steps[i].removed)
		if len(steps)-i > keptSteps || sum > keptServices {
			m.base, steps = steps[i].revision, steps[i+1:]
			break
		}
	}
	m.steps = steps
}

// state returns the present moment, which is nil before the first.
func (v *view) state() (*moment, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now, v.err
}

// since returns what changed after a revision that the steps cover: each service
// once, as it is now.
func (m *moment) since(revision uint64) (services []lbstate.ServiceStatus, removed []string) {
	seen := map[string]struct{}{}
	first := func(name string) bool {
		_, ok := seen[name]
		seen[name] = struct{}{}
		return !ok
	}
	for i := len(m.steps) - 1; i >= 0 && m.steps[i].revision > revision; i-- {
		for _, s := range m.steps[i].services {
			if first(s.Name) {
				services = append(services, s)
			}
		}
		for _, name := range m.steps[i].removed {
			if first(name) {
				removed = append(removed, name)
			}
		}
	}
	slices.SortFunc(services, func(a, b lbstate.ServiceStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(removed)
	return services, removed
}

func (m *moment) covers(revision uint64) bool { return revision >= m.base && revision <= m.revision }

// sum is the digest of the view, as an agent has it that does, or does not, know
// profiles.
func (m *moment) sum(profiles bool) uint64 {
	if !profiles || m.profile == nil {
		return m.digest
	}
	return m.digest + profileDigest(m.profile.Name, m.profile.Revision)
}

// delta is what leads from a revision that m covers to m, for an agent that does,
// or does not, know profiles.
func (m *moment) delta(cluster, since uint64, profiles bool) (*encoding, error) {
	return m.encoding(encodingKey{cluster, since, false, profiles}, 0, func(e *encoding) error {
		services, removed := m.since(since)
		e.revision, e.digest = m.revision, m.sum(profiles)
		u := &agentpb.Update{Cluster: cluster, Since: since, Removed: removed}
		if profiles && m.moved > since {
			say(u, m.profile)
		}
		return e.encode(u, services)
	})
}

// read takes from the store what leads an agent from a revision to the present
// state: what changed since, where that is known and full is not asked for, else
// the whole.
func (v *view) read(m *moment, cluster, since uint64, full, profiles bool) (*encoding, error) {
	return m.encoding(encodingKey{cluster, since, full || since == 0, profiles}, keepRead, func(e *encoding) error {
		u, err := v.server.cfg.Store.Watch(lbstate.WatchOptions{From: since, Full: true, Labels: v.labels}).Next(v.ctx)
		if err != nil {
			return err
		}
		for _, s := range u.Services {
			e.digest += pairDigest(s.Name, s.Version)
		}
		e.revision = u.Revision
		services := u.Services
		whole := full || since == 0 || u.Since != since
		if !whole {
			services = slices.DeleteFunc(slices.Clone(services), func(s lbstate.ServiceStatus) bool { return s.Version <= since })
			e.empty = len(services)+len(u.Removed) == 0 && u.Revision == since
		}
		p := &agentpb.Update{Cluster: cluster, Full: whole, Since: since, Removed: u.Removed}
		if profiles {
			if u.Profile != nil {
				e.digest += profileDigest(u.Profile.Name, u.Profile.Revision)
			}
			say(p, u.Profile)
		}
		return e.encode(p, services)
	})
}

// encoding makes one of the moment's encodings, or returns the one that is made.
func (m *moment) encoding(key encodingKey, keep time.Duration, fill func(*encoding) error) (*encoding, error) {
	m.mu.Lock()
	e := m.encodings[key]
	if e == nil {
		if m.encodings == nil {
			m.encodings = map[encodingKey]*encoding{}
		}
		e = new(encoding)
		m.encodings[key] = e
		if keep > 0 {
			time.AfterFunc(keep, func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				delete(m.encodings, key)
			})
		}
	}
	m.mu.Unlock()
	e.once.Do(func() { e.err = fill(e) })
	return e, e.err
}

// encode fills the chunks: p with the encoding's revision and digest, and
// services, each of which the store has encoded once for all.
func (e *encoding) encode(p *agentpb.Update, services []lbstate.ServiceStatus) error {
	p.Revision, p.Digest = e.revision, e.digest
	header, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return err
	}
	var c chunker
	c.write(header)
	var tag [16]byte
	for _, s := range services {
		body, err := s.EncodedDesired()
		if err != nil {
			return err
		}
		c.write(protowire.AppendVarint(protowire.AppendTag(tag[:0], servicesField, protowire.BytesType), uint64(len(body))))
		c.write(body)
	}
	c.cut(true)
	e.chunks = c.chunks
	return nil
}

// servicesField is the number of Update.services.
var servicesField = (&agentpb.Update{}).ProtoReflect().Descriptor().Fields().ByName("services").Number()
