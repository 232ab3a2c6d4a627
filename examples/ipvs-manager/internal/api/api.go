// Package api is the HTTP API of a server: services, backends and the other
// objects of the configuration, with their history, transactions and plans; the
// watch, agents, the cluster and its members, health, and who may do what.
//
// A request is bounded in size and time. Every error is a problem as RFC 9457
// has it, and names every field's fault. Reads are linearizable unless
// ?stale=true is given; any node takes any write. Who lets requests in says with
// As who makes them; each path needs a role.
//
//	goroutine              started by   stopped by                  state it owns
//	asking another server  everywhere   its answer, or a second     none
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/agent"
)

// About is what a server says of itself.
type About struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	HTTPAddress string `json:"http_address"`
	GRPCAddress string `json:"grpc_address"`
	Insecure    bool   `json:"insecure"`            // listens off loopback without access control
	DataPlane   string `json:"data_plane"`          // "kernel" or "simulated"; empty: this process has none
	Simulated   bool   `json:"simulated,omitempty"` // the same for programs
	Notice      string `json:"notice,omitempty"`    // why it is simulated
}

// Config says what the API serves.
type Config struct {
	Store   *lbstate.Store           // required
	Cluster Cluster                  // required
	Checks  Checks                   // required
	Access  *accessdata.Store        // required: users, tokens, revocations, credentials
	Agents  func() []agent.AgentInfo // required: those connected to this server
	About   About

	Releases Releases // required

	// Statistics asks an agent that is connected to this server; see
	// agent.Server. Required.
	Statistics func(ctx context.Context, agent, service string, since time.Time) (agent.Statistics, error)

	// Forming says whom this node waits for while it has no cluster, for people.
	// Nil says nothing.
	Forming func() string

	Client  *http.Client  // asks the other servers; default one that dials directly
	Timeout time.Duration // of a read or write; default 5s
	Logger  *zap.Logger   // nil is silent
}

// API serves requests. Safe for concurrent use.
type API struct {
	cfg     Config
	log     *zap.Logger
	streams chan struct{} // a token for each open watch
	reading chan struct{} // a token for each configuration that is being read
	pace    pace          // of the watches
	closing context.Context
	close   context.CancelFunc
}

// New returns an API.
func New(cfg Config) (*API, error) {
	if cfg.Store == nil || cfg.Cluster == nil || cfg.Checks == nil || cfg.Access == nil || cfg.Agents == nil || cfg.Releases == nil || cfg.Statistics == nil {
		return nil, errors.New("api: Store, Cluster, Checks, Access, Agents, Releases and Statistics are required")
	}
	if cfg.Forming == nil {
		cfg.Forming = func() string { return "" }
	}
	if cfg.Client == nil {
		// Without a proxy: members are reached as they announce themselves.
		cfg.Client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second}}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	a := &API{cfg: cfg, log: cfg.Logger.Named("api"), streams: make(chan struct{}, maxStreams), reading: make(chan struct{}, maxReading), pace: pace{heartbeatEvery, streamWriteTimeout}}
	a.closing, a.close = context.WithCancel(context.Background())
	return a, nil
}

// Close ends all watches, which a graceful shutdown would wait for otherwise.
// It is idempotent.
func (a *API) Close() {
	a.close()
	a.cfg.Client.CloseIdleConnections()
}

// Register adds the paths to mux.
func (a *API) Register(mux *http.ServeMux) {
	const get, put, patch, post, del = http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodPost, http.MethodDelete
	services := collection{kind: lbstate.KindService}
	for path, m := range map[string]methods{
		"/api/v1/services":                                 {get: a.listServices},
		"/api/v1/services/{name}":                          {get: a.getService, put: a.putService, patch: a.patch(services), del: a.deleteService},
		"/api/v1/services/{name}/backends/{backend}":       {get: a.getBackend, put: a.putBackend, del: a.deleteBackend},
		"/api/v1/checks":                                   {get: a.list(sharedChecks)},
		"/api/v1/checks/{name}":                            {get: a.get(sharedChecks), put: a.put(sharedChecks), patch: a.patch(sharedChecks), del: a.remove(sharedChecks)},
		"/api/v1/profiles":                                 {get: a.list(directorProfiles)},
		"/api/v1/profiles/{name}":                          {get: a.get(directorProfiles), put: a.put(directorProfiles), patch: a.patch(directorProfiles), del: a.remove(directorProfiles)},
		"/api/v1/settings":                                 {get: a.get(settings), put: a.put(settings), patch: a.patch(settings)},
		"/api/v1/transactions":                             {post: a.transact},
		"/api/v1/history":                                  {get: a.history},
		"/api/v1/history/{revision}":                       {get: a.revision},
		"/api/v1/diff":                                     {get: a.diff},
		"/api/v1/config":                                   {get: a.configuration},
		"/api/v1/rollback":                                 {post: a.rollback},
		"/api/v1/plan":                                     {post: a.plan},
		"/api/v1/apply":                                    {post: a.apply},
		"/api/v1/import/{format}":                          {post: a.importText},
		"/api/v1/watch":                                    {get: a.watch},
		"/api/v1/agents":                                   {get: a.agents},
		"/api/v1/agents/{name}":                            {get: a.agent},
		"/api/v1/agents/{name}/release":                    {post: a.releaseAgent},
		"/api/v1/agents/{name}/statistics":                 {get: a.agentStatistics},
		"/api/v1/releases":                                 {get: a.listReleases},
		"/api/v1/cluster":                                  {get: a.cluster},
		"/api/v1/cluster/members":                          {post: a.addMember},
		"/api/v1/cluster/members/{name}":                   {patch: a.moveMember, del: a.removeMember},
		"/api/v1/cluster/members/{name}/promote":           {post: a.promoteMember},
		"/api/v1/cluster/leader":                           {put: a.setLeader},
		"/api/v1/cluster/backup":                           {get: a.backup},
		"/api/v1/cluster/release-predecessor":              {post: a.releasePredecessor},
		"/api/v1/health":                                   {get: a.health},
		"/api/v1/health/hold":                              {del: a.releaseHold},
		"/api/v1/health/events":                            {get: a.healthEvents},
		"/api/v1/services/{name}/checks":                   {get: a.checks},
		"/api/v1/services/{name}/backends/{backend}/probe": {post: a.probe},
		"/healthz":                                         {get: a.healthz},
		"/readyz":                                          {get: a.readyz},
	} {
		mux.Handle(path, permitted(path, fresh(m)))
	}
	for path, m := range a.accessPaths() {
		mux.Handle(path, permitted(path, fresh(m)))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refused(http.StatusNotFound, "there is nothing at "+r.URL.Path).send(w, r)
	})
}

// fresh keeps every cache from answering in the state's place.
func fresh(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func (a *API) bounded(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), a.cfg.Timeout)
}

// unavailable is the problem of an error that is not the request's fault.
func (a *API) unavailable(err error, write bool) *problem {
	p := &problem{Type: typeUnavailable, Status: http.StatusServiceUnavailable, retryAfter: 1}
	why := err.Error()
	if forming := a.cfg.Forming(); forming != "" && a.cfg.Cluster.View().ClusterID == "" {
		why += ": " + forming
	}
	switch {
	case write && neverApplied(err):
		p.Outcome = notApplied
		p.Detail = "nothing was changed; try again: " + why
	case write:
		p.Type = typeUnknown
		p.Outcome = outcomeUnknown
		p.Detail = "whether the change was made is not known; look before trying again: " + why
	case errors.Is(err, context.DeadlineExceeded):
		p.Detail = fmt.Sprintf("no quorum answered within %v; ?stale=true shows what this server has: %s", a.cfg.Timeout, why)
	case unready(err):
		p.Detail = "?stale=true shows what this server has: " + why
	default:
		return &problem{Status: http.StatusInternalServerError, Detail: why}
	}
	return p
}

// unready says whether err is of a node that cannot serve now, or of a caller
// that is gone, rather than a fault of this program.
func unready(err error) bool {
	return lbstate.NotApplied(err) || slices.ContainsFunc([]error{
		raftstore.ErrNoLeader, raftstore.ErrNotLeader, raftstore.ErrStopped, raftstore.ErrOverloaded, context.Canceled,
	}, func(e error) bool { return errors.Is(err, e) })
}

// neverApplied says whether a write that failed so is certainly not made. An
// error that does not say it of itself is one from before the proposal.
func neverApplied(err error) bool {
	var judged interface{ NotApplied() bool }
	if lbstate.NotApplied(err) || errors.As(err, &judged) {
		return lbstate.NotApplied(err)
	}
	return slices.ContainsFunc([]error{raftstore.ErrNoLeader, raftstore.ErrNotLeader, raftstore.ErrOverloaded},
		func(e error) bool { return errors.Is(err, e) })
}

func invalid(faults ...lbstate.Fault) *problem {
	return &problem{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Detail: "nothing was changed: see the faults", Faults: faults}
}
