package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/api"
	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/releases"
	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/web"
	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/formation"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
	"github.com/ipvskit/ipvskit/transport/peer"
)

const (
	transferTimeout = 2 * time.Second
	drainTimeout    = 5 * time.Second // for requests that are under way at the end
	pruneEvery      = time.Hour       // of what the history has beyond its age
)

// runServer is the roles server and singleon, until ctx ends.
func runServer(ctx context.Context, cfg config, log *zap.Logger, stdout io.Writer) error {
	// Before the ports open, so that what is wrong is said before anything
	// else happens.
	var d *director
	if cfg.role == roleSingleon {
		var err error
		own, err := ownDirectorIdentity(cfg, log)
		if err != nil {
			return err
		}
		if d, err = newDirector(cfg, []string{local(cfg, cfg.grpcPort)}, own, log); err != nil {
			return err
		}
	}
	s, err := newServer(cfg, d, log)
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, greeting(cfg, d, s.identity))
	warn(cfg, log, d)
	return s.Run(ctx)
}

// server is one node: store, formation, health checks, and the ports.
//
//	goroutine     started by  stopped by           state it owns
//	store         Run         end of life          raft, the database
//	formation     Run         end of life          how far the forming is
//	health checks Run         end of life          targets and their counts
//	agents' port  Run         GracefulStop         streams
//	HTTP port     Run         Shutdown             requests
//	director      Run         end of life          the kernel (singleon)
//	announcer     Run         end of life          -
//	history       Run         end of life          -
//	revocations   Run         end of life          -
//	expiry        Run         end of life          -
//	renewals      Run         end of life          -
type server struct {
	cfg config
	log *zap.Logger

	store     *raftstore.Store
	state     *lbstate.Store
	transport *peer.Transport
	formation *formation.Node
	checks    *lbchecks.Runner
	agents    *agent.Server
	api       *api.API
	grpc      *grpc.Server
	http      *http.Server
	director  *director        // singleon only
	identity  *identity.Source // nil: plain text
	gate      *gate

	people      *accessdata.State
	accessStore *accessdata.Store
	renewals    *recorder // nil: plain text

	grpcPort, httpPort net.Listener
}

// newServer opens the ports and the data directory.
func newServer(cfg config, d *director, log *zap.Logger) (_ *server, err error) {
	s := &server{cfg: cfg, log: log, director: d}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.people = accessdata.New(accessdata.Config{Logger: log})
	if s.identity, err = serverIdentity(cfg, s.people, log); err != nil {
		return nil, err
	}
	if s.httpPort, err = listen(cfg, "server_port", cfg.serverPort); err != nil {
		return nil, err
	}
	if s.grpcPort, err = listen(cfg, "grpc_port", cfg.grpcPort); err != nil {
		return nil, err
	}
	raftPort, err := listen(cfg, "adverties", cfg.raftPort())
	if err != nil {
		return nil, err
	}
	pc := peer.Config{Listener: raftPort, Advertise: cfg.advertise, Logger: log}
	if s.identity != nil {
		pc.ServerTLS, pc.ClientTLS = s.identity.ServerTLS(identity.RoleServer), s.identity.ClientTLS()
	}
	if s.transport, err = peer.New(pc); err != nil {
		raftPort.Close()
		return nil, err
	}
	state := lbstate.New(lbstate.Config{Logger: log})
	released := &releases.State{OnRelease: s.release}
	s.store, err = raftstore.Open(raftstore.Config{
		Dir: cfg.volDir, Name: cfg.nodeID, RaftAddr: cfg.advertise, HTTPAddr: cfg.httpAddress(),
		StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state, accessdata.Bucket: s.people, releases.Bucket: released},
		Transport:     s.transport, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("--raft_vol_dir %s: %w", cfg.volDir, err)
	}
	var options []lbstate.StoreOption
	execDir := ""
	if cfg.execChecks {
		options, execDir = append(options, lbstate.AllowExecChecks()), cfg.execDir
	}
	lb := lbstate.NewStore(state, s.store.Machine(lbstate.Bucket), options...)
	s.state = lb
	s.accessStore = accessdata.NewStore(s.people, s.store.Machine(accessdata.Bucket))
	fc := formation.Config{Store: s.store, List: cfg.cluster, Self: cfg.httpAddress(), Without: cfg.without, Logger: log}
	if s.identity != nil {
		fc.Client, fc.Scheme = s.identity.HTTPClient(), "https"
	}
	s.formation, err = formation.New(fc)
	if err != nil {
		return nil, err
	}
	if s.checks, err = lbchecks.New(lbchecks.Config{Store: lb, Leadership: s.store, ExecDir: execDir, Engine: healthcheck.Config{Hold: cfg.hold}, Logger: log}); err != nil {
		return nil, err
	}
	ac := agent.ServerConfig{
		Store: lb, ServerName: cfg.nodeID, Version: version(), Logger: log,
		Cluster: func() uint64 { return s.store.Identity().Cluster }, Predecessors: released.Predecessors,
		Ready: func(ctx context.Context) error {
			_, err := lb.Revision(ctx, lbstate.ReadOptions{})
			return err
		},
		LabelsFor: labelsIn(s.people),
	}
	opts := agent.ServerOptions()
	if s.identity != nil {
		s.renewals = newRecorder(s.identity, log)
		ac.Authenticator = s.renewals
		opts = append(opts, grpc.Creds(agent.ServerCredentials(s.identity.ServerTLS(identity.RoleAgent), log)))
	}
	if s.agents, err = agent.NewServer(ac); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(opts...)
	s.agents.Register(s.grpc)
	return s, s.newHTTP(lb)
}

// release tells the agents' port of a release that was committed. It is called
// while the store runs.
func (s *server) release(r releases.Release) {
	if err := releaseTo(s.agents, r, time.Now()); err != nil {
		s.log.Info("an agent's release is not passed on by this server", zap.String("agent", r.Agent), zap.Error(err))
	}
}

// releaseLasts is how long after it was made a release is passed on.
const releaseLasts = 10 * time.Minute

// releaser is the agents' port, as far as releases go.
type releaser interface {
	Release(name, held, reason string) error
}

// releaseTo passes a release on unless it is old: a server that starts applies
// again what its log has had since the last checkpoint, and an agent may by then
// hold back another state for the same reason, which nobody has looked at. The
// clock plays no part in the replicated state.
func releaseTo(agents releaser, r releases.Release, now time.Time) error {
	if age := now.Sub(r.At); age > releaseLasts {
		return fmt.Errorf("it was made at %s, %v ago by this host's clock, and lasts for %v", r.At.UTC().Format(time.RFC3339), age.Round(time.Second), releaseLasts)
	}
	return agents.Release(r.Agent, r.Held, r.By+": "+r.Reason)
}

func (s *server) newHTTP(lb *lbstate.Store) (err error) {
	about := api.About{
		Name: s.cfg.nodeID, Version: version(), HTTPAddress: s.cfg.httpAddress(),
		GRPCAddress: net.JoinHostPort(s.cfg.host(), strconv.Itoa(s.cfg.grpcPort)), Insecure: s.cfg.insecure,
	}
	if s.director != nil {
		p := s.director.plane
		about.DataPlane, about.Simulated, about.Notice = p.name(), p.simulated(), p.notice
	}
	ac := api.Config{
		Store: lb, Cluster: cluster{s.store}, Checks: s.checks, Access: s.accessStore, Agents: s.agents.Agents, About: about, Logger: s.log,
		Statistics: s.agents.Statistics, Releases: releases.NewStore(s.store.Machine(releases.Bucket)),
		Forming: func() string {
			if p := s.formation.Progress(); !p.In() {
				return p.String()
			}
			return ""
		},
	}
	if s.identity != nil {
		ac.Client = s.identity.HTTPClient()
	}
	if s.api, err = api.New(ac); err != nil {
		return err
	}
	mux := http.NewServeMux()
	s.api.Register(mux)
	mux.Handle("/raft/v1/", s.formation.Handler())
	if err := web.Register(mux); err != nil {
		return err
	}
	names := append([]string{s.cfg.host(), s.cfg.listen}, s.cfg.hostNames...)
	s.gate = newGate(s.identity, s.people, s.accessStore, mux, s.log)
	var secure *tls.Config
	if s.identity != nil {
		var browsers *identity.WebCertificate
		if s.cfg.httpCert != "" {
			if browsers, err = identity.OpenWebCertificate(s.cfg.httpCert, s.cfg.httpKey, s.log); err != nil {
				return fmt.Errorf("--http_cert, --http_key: %w", err)
			}
		}
		secure = s.identity.HTTPTLS(browsers)
	}
	s.http = &http.Server{
		Handler:           api.Guard(names, s.gate),
		TLSConfig:         secure,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          zap.NewStdLog(s.log.Named("http")),
	}
	return nil
}

// listen opens one of the ports; the error says which flag to change.
func listen(cfg config, flag string, port int) (net.Listener, error) {
	l, err := net.Listen("tcp", cfg.listenAddress(port))
	if err != nil {
		return nil, fmt.Errorf("--%s: %w; if another ipvs-manager runs here, give this one other ports", flag, err)
	}
	return l, nil
}

// Run serves until ctx ends, then leaves in order: leadership is handed over,
// requests are answered, streams end, the store closes. Any part that fails
// ends the rest, and Run returns its error.
func (s *server) Run(ctx context.Context) error {
	defer s.close()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, life := errgroup.WithContext(life)
	part := func(name string, run func(context.Context) error) {
		g.Go(func() error {
			if err := run(life); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	part("store", s.store.Run)
	part("forming the cluster", s.formation.Run)
	part("health checks", s.checks.Run)
	part("agents' port", func(context.Context) error { return s.grpc.Serve(s.grpcPort) })
	part("HTTP port", func(context.Context) error {
		err := s.serveHTTP()
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	part("announcer", s.announce)
	part("history", func(ctx context.Context) error { return regularly(ctx, time.Tick(pruneEvery), s.prune, s.log) })
	part("revocations", s.recheck)
	part("expiry", func(ctx context.Context) error { return regularly(ctx, time.Tick(expireEvery), s.expire, s.log) })
	if s.renewals != nil {
		part("renewals", s.record)
	}
	if s.director != nil {
		part("director", s.director.Run)
	}
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
	case <-life.Done():
	}
	s.leave()
	end()
	return g.Wait()
}

func (s *server) serveHTTP() error {
	if s.identity != nil {
		return s.http.ServeTLS(s.httpPort, "", "") // certificates come from TLSConfig
	}
	return s.http.Serve(s.httpPort)
}

// leave ends what others notice, while the store still works.
func (s *server) leave() {
	if err := s.handOver(); err != nil {
		s.log.Info("leadership was not handed over; the others elect a leader", zap.Error(err))
	}
	s.api.Close()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
	}
	s.agents.Close()
	stopped := context.AfterFunc(ctx, s.grpc.Stop)
	s.grpc.GracefulStop()
	stopped()
}

// handOver gives leadership to the most advanced voter, if this node has it.
func (s *server) handOver() error {
	leading, _, changed := s.store.Leadership()
	st := s.store.Status()
	if !leading {
		return nil
	}
	best := ""
	var match uint64
	for _, m := range s.store.Members() {
		p := progressOf(st, m.ID)
		if p != nil && p.Active && !m.Learner && m.ID != st.Member && (best == "" || p.Match > match) {
			best, match = m.Name, p.Match
		}
	}
	if best == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferTimeout)
	defer cancel()
	if err := s.store.TransferLeadership(ctx, best); err != nil {
		return err
	}
	select {
	case <-changed:
		s.log.Info("leadership handed over", zap.String("to", best))
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close is idempotent.
func (s *server) close() {
	if s.http != nil {
		s.http.Close()
	}
	if s.grpc != nil {
		s.grpc.Stop()
	}
	for _, l := range []net.Listener{s.httpPort, s.grpcPort} {
		if l != nil {
			l.Close()
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("closing the store failed", zap.Error(err))
		}
	}
	if s.transport != nil {
		s.transport.Close()
	}
}

// announce logs who leads, at each change of it.
func (s *server) announce(ctx context.Context) error {
	var last string
	for {
		changed := s.store.Changed()
		v := cluster{s.store}.View()
		now := fmt.Sprint(v.ClusterID, v.Leader, v.Term, len(v.Members))
		if v.ClusterID != "" && now != last {
			last = now
			names := make([]string, len(v.Members))
			for i, m := range v.Members {
				names[i] = m.Name
			}
			s.log.Info("cluster", zap.String("id", v.ClusterID), zap.String("leader", v.Leader),
				zap.Uint64("term", v.Term), zap.Strings("servers", names))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// prune drops what the history has beyond its age, while this node leads: no
// clock is read when commands are applied.
func (s *server) prune(ctx context.Context) error {
	if leading, _, _ := s.store.Leadership(); !leading {
		return nil
	}
	if _, err := s.state.PruneHistory(ctx, lbstate.WriteOptions{Author: s.cfg.nodeID, Reason: "older than settings.history_age"}); err != nil {
		return fmt.Errorf("prune the history: %w", err)
	}
	return nil
}

// regularly calls do at each tick, until ctx ends. What fails is said, and tried
// again at the next.
func regularly(ctx context.Context, tick <-chan time.Time, do func(context.Context) error, log *zap.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		if err := do(ctx); err != nil && ctx.Err() == nil {
			log.Warn("not done at its time", zap.Error(err))
		}
	}
}

// cluster shows the store as the API has it.
type cluster struct{ *raftstore.Store }

func (c cluster) View() api.ClusterView {
	st := c.Status()
	v := api.ClusterView{Leader: st.LeaderName, Term: st.Term, Commit: st.Commit, Applied: st.Applied, Accepted: st.Accepted}
	if st.Cluster == 0 {
		return v
	}
	v.ClusterID = fmt.Sprintf("%016x", st.Cluster)
	if st.Predecessor != 0 {
		v.Predecessor = fmt.Sprintf("%016x", st.Predecessor)
	}
	for _, m := range c.Members() {
		view := api.MemberView{
			ID: fmt.Sprintf("%016x", m.ID), Name: m.Name, RaftAddr: m.RaftAddr, HTTPAddr: m.HTTPAddr,
			Incarnation: fmt.Sprintf("%016x", m.Incarnation), Role: "follower", Versions: m.Versions,
		}
		switch {
		case m.Learner:
			view.Role = "learner"
		case m.ID == st.Leader:
			view.Role = "leader"
		}
		if p := progressOf(st, m.ID); p != nil {
			view.Progress = &api.Progress{Match: p.Match, Active: p.Active, LastHeard: p.LastHeard}
		}
		v.Members = append(v.Members, view)
	}
	return v
}

func progressOf(st raftstore.Status, member uint64) *raftstore.Progress {
	i := slices.IndexFunc(st.Progress, func(p raftstore.Progress) bool { return p.Member == member })
	if i < 0 {
		return nil
	}
	return &st.Progress[i]
}
