package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/releases"
	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an API over real HTTP, on a state in a file; the cluster around it
// is what the test says.
type world struct {
	t       *testing.T
	api     *API
	server  *httptest.Server
	client  *http.Client
	link    *link
	access  *accessdata.Store
	members *members
	prober  prober
	account account
}

func noStatistics(context.Context, string, string, time.Time) (agent.Statistics, error) {
	return agent.Statistics{}, agent.ErrNotConnected
}

// account is a Releases in memory.
type account struct {
	mu  sync.Mutex // guards the fields below
	all []releases.Release
	err error
}

func (a *account) Put(_ context.Context, r releases.Release) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.all = append([]releases.Release{r}, a.all...)
	}
	return a.err
}

func (a *account) List(context.Context) ([]releases.Release, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.all), a.err
}

// link is the state's replicator, which a test can break.
type link struct {
	lbstate.Replicator

	mu            sync.Mutex // guards read and write
	read, written error
}

func (l *link) fail(read, written error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read, l.written = read, written
}

func (l *link) broken() (read, written error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read, l.written
}

func (l *link) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	if _, err := l.broken(); err != nil {
		return nil, 0, err
	}
	return l.Replicator.Propose(ctx, cmd)
}

func (l *link) Read(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err, _ := l.broken(); err != nil {
		return err
	}
	return l.Replicator.Read(ctx, fn)
}

// members is a Cluster of which the test says everything.
type members struct {
	mu      sync.Mutex // guards the rest
	view    ClusterView
	err     error
	added   []raftstore.Member
	removed []string
	done    []string // other changes
	backup  string
}

func (m *members) set(change func(*members)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

func (m *members) View() ClusterView {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.view
	v.Members = slices.Clone(v.Members)
	return v
}

func (m *members) AddMember(_ context.Context, n raftstore.Member) (raftstore.Membership, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return raftstore.Membership{}, m.err
	}
	m.added = append(m.added, n)
	n.ID, n.Learner = 7, true
	return raftstore.Membership{Cluster: 5, Member: 7, Members: []raftstore.Member{n}}, nil
}

func (m *members) RemoveMember(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.removed = append(m.removed, name)
	}
	return m.err
}

func (m *members) do(what ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.done = append(m.done, strings.Join(what, " "))
	}
	return m.err
}

func (m *members) UpdateMember(_ context.Context, name, raftAddr, httpAddr string) error {
	return m.do("move", name, raftAddr, httpAddr)
}
func (m *members) Promote(_ context.Context, name string) error { return m.do("promote", name) }
func (m *members) TransferLeadership(_ context.Context, name string) error {
	return m.do("lead", name)
}
func (m *members) Barrier(context.Context) error { return m.do("barrier") }
func (m *members) Backup(w io.Writer) (raftstore.BackupInfo, error) {
	if err := m.do("backup"); err != nil {
		return raftstore.BackupInfo{}, err
	}
	_, err := io.WriteString(w, m.backup)
	if err == nil && m.backup == "half" {
		err = errors.New("the disk is full")
	}
	return raftstore.BackupInfo{}, err
}

// asked makes requests those of an admin, or of the role that a header names.
func asked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, As(r, Caller{Role: accessdata.Role(cmp.Or(r.Header.Get("Test-Role"), "admin"))}))
	})
}

func newAccess(t testing.TB) *accessdata.Store {
	t.Helper()
	state := accessdata.New(accessdata.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	return accessdata.NewStore(state, local)
}

func newWorld(t *testing.T, options ...func(*Config)) *world {
	t.Helper()
	return newTunedWorld(t, func(*API, *http.Server) {}, options...)
}

// newTunedWorld lets the test change what Config does not have, before the
// first request.
func newTunedWorld(t *testing.T, tune func(*API, *http.Server), options ...func(*Config)) *world {
	t.Helper()
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	w := &world{t: t, link: &link{Replicator: local}, access: newAccess(t), members: &members{}}
	w.members.view = ClusterView{ClusterID: "00000000000000c1", Leader: "node0", Term: 3, Members: []MemberView{
		{Name: "node0", HTTPAddr: "127.0.0.1:1", Role: "leader"},
	}}
	cfg := Config{
		Store: lbstate.NewStore(state, w.link), Cluster: w.members, Checks: &w.prober, Access: w.access,
		Agents: func() []agent.AgentInfo { return nil },
		About:  About{Name: "node0"}, Releases: &w.account, Statistics: noStatistics,
	}
	for _, option := range options {
		option(&cfg)
	}
	w.serve(cfg, tune)
	return w
}

func (w *world) serve(cfg Config, tune func(*API, *http.Server)) {
	w.t.Helper()
	var err error
	if w.api, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	mux := http.NewServeMux()
	w.api.Register(mux)
	w.server = httptest.NewUnstartedServer(Guard([]string{"lb.example"}, asked(mux)))
	tune(w.api, w.server.Config)
	w.server.Start()
	w.client = w.server.Client()
	w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	w.t.Cleanup(func() {
		w.api.Close()
		w.client.CloseIdleConnections()
		w.server.Close()
	})
}

// address is what other servers dial.
func (w *world) address() string { return strings.TrimPrefix(w.server.URL, "http://") }

// answer is a response, read to its end.
type answer struct {
	t       *testing.T
	request string
	status  int
	header  http.Header
	body    []byte
}

// do sends a request. Headers are "Name: value"; a body is JSON unless they
// say otherwise.
func (w *world) do(method, path, body string, headers ...string) answer {
	w.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, w.server.URL+path, reader)
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", mediaJSON)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ":")
		switch value = strings.TrimSpace(value); {
		case name == "Host":
			req.Host = value
		case value == "":
			req.Header.Del(name)
		default:
			req.Header.Set(name, value)
		}
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{w.t, method + " " + path, resp.StatusCode, resp.Header, data}
}

func (w *world) put(path, body string) {
	w.t.Helper()
	a := w.do(http.MethodPut, path, body)
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		w.t.Fatalf("PUT %s: %d: %s", path, a.status, a.body)
	}
}

// ok requires a status and reads the JSON.
func (a answer) ok(status int, into any) {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d: %s", a.request, a.status, status, a.body)
	}
	if typ := a.header.Get("Content-Type"); typ != mediaJSON {
		a.t.Errorf("%s: Content-Type %q", a.request, typ)
	}
	if a.header.Get("Cache-Control") != "no-store" {
		a.t.Errorf("%s: may be cached: %q", a.request, a.header.Get("Cache-Control"))
	}
	if into != nil {
		if err := json.Unmarshal(a.body, into); err != nil {
			a.t.Fatalf("%s: %v: %s", a.request, err, a.body)
		}
	}
}

// problem requires an error as RFC 9457 has it.
func (a answer) problem(status int) problem {
	a.t.Helper()
	var p problem
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d: %s", a.request, a.status, status, a.body)
	}
	if typ := a.header.Get("Content-Type"); typ != "application/problem+json" {
		a.t.Errorf("%s: Content-Type %q", a.request, typ)
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		a.t.Fatalf("%s: %v: %s", a.request, err, a.body)
	}
	if p.Type == "" || p.Title == "" || p.Status != status || p.Detail == "" || p.Instance == "" {
		a.t.Errorf("%s: incomplete: %s", a.request, a.body)
	}
	if a.header.Get("Cache-Control") != "no-store" {
		a.t.Errorf("%s: may be cached: %q", a.request, a.header.Get("Cache-Control"))
	}
	return p
}

// paths are those of the faults, in order.
func (p problem) paths() string {
	var paths []string
	for _, f := range p.Faults {
		paths = append(paths, f.Path)
	}
	return strings.Join(paths, " ")
}

func (p problem) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}

const web = `{"vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1", "port": 8080, "weight": 7}]}`
