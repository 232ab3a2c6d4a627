package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
)

// Cluster is what the API needs of the replicated store.
type Cluster interface {
	// View is what this node knows just now. It does not block.
	View() ClusterView
	// Changes of members work on the leader alone.
	AddMember(context.Context, raftstore.Member) (raftstore.Membership, error)
	RemoveMember(ctx context.Context, name string) error
	UpdateMember(ctx context.Context, name, raftAddr, httpAddr string) error
	Promote(ctx context.Context, name string) error
	TransferLeadership(ctx context.Context, name string) error
	// Barrier waits until this node has all that was acknowledged anywhere.
	Barrier(context.Context) error
	// Backup writes what this node has.
	Backup(io.Writer) (raftstore.BackupInfo, error)
}

// ClusterView is the cluster as one server sees it.
type ClusterView struct {
	At        time.Time `json:"at"` // the answering server's clock
	ClusterID string    `json:"cluster_id"`
	// Predecessor is the cluster that this one was restored from; empty: none.
	Predecessor string `json:"predecessor,omitempty"`
	Leader      string `json:"leader"` // name; empty: none is known
	Term        uint64 `json:"term"`
	Commit      uint64 `json:"commit"`
	Applied     uint64 `json:"applied"`
	Server      About  `json:"server"` // the answering one
	// Accepted are the versions up to which every member can apply commands, by
	// state machine. What needs more is refused until the last member is upgraded.
	Accepted raftstore.Versions `json:"accepted,omitempty"`
	Members  []MemberView       `json:"members"`
	Forming  string             `json:"formation,omitempty"` // whom it waits for while there is no cluster
}

// MemberView is one server of the cluster. IDs are text, for they do not fit
// into JavaScript's numbers.
type MemberView struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	RaftAddr    string    `json:"raft_addr"`
	HTTPAddr    string    `json:"http_addr"`
	Incarnation string    `json:"incarnation"`
	Role        string    `json:"role"` // leader | follower | learner
	Progress    *Progress `json:"progress,omitempty"`

	// Versions are those of the commands that its program can apply.
	Versions raftstore.Versions `json:"versions,omitempty"`
}

// Progress is how far a member's log is, as the leader knows it.
type Progress struct {
	Match     uint64    `json:"match"`
	Active    bool      `json:"active"`
	LastHeard time.Time `json:"last_heard,omitzero"`
}

func (v ClusterView) leads() bool { return v.Leader != "" && v.Leader == v.Server.Name }

func (a *API) view() ClusterView {
	v := a.cfg.Cluster.View()
	v.At, v.Server = time.Now(), a.cfg.About
	if v.ClusterID == "" {
		v.Forming = a.cfg.Forming()
	}
	if v.Members == nil {
		v.Members = []MemberView{}
	}
	return v
}

// cluster shows the cluster. The members' progress is the leader's to know, so
// a follower asks for it; ?local=true leaves that out.
func (a *API) cluster(w http.ResponseWriter, r *http.Request) {
	local, p := flag(r, "local")
	if p != nil {
		p.send(w, r)
		return
	}
	v := a.view()
	if leader, ok := a.leader(v); ok && !v.leads() && !local {
		var theirs ClusterView
		// Without the leader's answer the view is this node's own, which is
		// still true.
		if err := a.ask(r.Context(), leader.HTTPAddr, "/api/v1/cluster?local=true", &theirs); err == nil && theirs.ClusterID == v.ClusterID && theirs.leads() {
			v.Members = theirs.Members
		}
	}
	send(w, r, http.StatusOK, v)
}

func (a *API) leader(v ClusterView) (MemberView, bool) {
	for _, m := range v.Members {
		if v.Leader != "" && m.Name == v.Leader {
			return m, true
		}
	}
	return MemberView{}, false
}

// addMember adds a server as a learner; it is promoted when it has caught up.
// A server that is started with --cluster does this by itself.
func (a *API) addMember(w http.ResponseWriter, r *http.Request) {
	body, p := readBody(w, r)
	if p != nil {
		p.send(w, r)
		return
	}
	var m raftstore.Member
	if p := decode(body, &m); p != nil {
		p.send(w, r)
		return
	}
	var faults []lbstate.Fault
	if m.Name == "" {
		faults = append(faults, lbstate.Fault{Path: "name", Reason: "is required"})
	}
	for _, f := range []struct{ path, address string }{{"raft_addr", m.RaftAddr}, {"http_addr", m.HTTPAddr}} {
		if host, port, err := net.SplitHostPort(f.address); err != nil || host == "" || port == "" {
			faults = append(faults, lbstate.Fault{Path: f.path, Found: f.address, Allowed: "host:port", Reason: "is not an address"})
		}
	}
	if m.Incarnation == 0 {
		faults = append(faults, lbstate.Fault{Path: "incarnation", Reason: "is required: the random number of the server's data directory, as its /raft/v1/node shows it"})
	}
	if m.ID != 0 {
		faults = append(faults, lbstate.Fault{Path: "id", Found: fmt.Sprint(m.ID), Reason: "is assigned by the leader"})
	}
	if faults != nil {
		invalid(faults...).send(w, r)
		return
	}
	if a.toLeader(w, r, body) {
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	membership, err := a.cfg.Cluster.AddMember(ctx, m)
	if err != nil {
		a.membership(err).send(w, r)
		return
	}
	send(w, r, http.StatusCreated, membership)
}

func (a *API) removeMember(w http.ResponseWriter, r *http.Request) {
	if a.toLeader(w, r, nil) {
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	name := r.PathValue("name")
	if err := a.cfg.Cluster.RemoveMember(ctx, name); err != nil {
		a.membership(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, map[string]string{"removed": name})
}

// membership is the problem of a change of members that failed.
func (a *API) membership(err error) *problem {
	switch {
	case errors.Is(err, raftstore.ErrNoMember):
		return refused(http.StatusNotFound, err.Error())
	case errors.Is(err, raftstore.ErrNameInUse), errors.Is(err, raftstore.ErrQuorum), errors.Is(err, raftstore.ErrRemoved), errors.Is(err, raftstore.ErrOlder):
		return &problem{Type: typeConflict, Status: http.StatusConflict, Outcome: notApplied, Detail: err.Error()}
	}
	return a.unavailable(err, true)
}

// decode reads JSON or YAML strictly.
func decode(body []byte, into any) *problem {
	data, err := yaml.YAMLToJSONStrict(body)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err = dec.Decode(into); err == nil {
			return nil
		}
	}
	fault := lbstate.Fault{Reason: strings.TrimPrefix(err.Error(), "json: ")}
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		fault = lbstate.Fault{Path: typ.Field, Found: typ.Value, Allowed: typ.Type.String(), Reason: "has the wrong type"}
	}
	if name, ok := strings.CutPrefix(fault.Reason, "unknown field "); ok {
		fault = lbstate.Fault{Path: strings.Trim(name, `"`), Reason: "there is no such field"}
	}
	return &problem{Type: typeInvalid, Status: http.StatusBadRequest, Detail: "the body cannot be read as what it should be", Faults: []lbstate.Fault{fault}}
}

// healthz says that the process serves; a store that failed has ended it.
func (a *API) healthz(w http.ResponseWriter, r *http.Request) {
	send(w, r, http.StatusOK, map[string]string{"status": "ok"})
}

type readiness struct {
	Ready     bool   `json:"ready"`
	ClusterID string `json:"cluster_id"`
	Leader    string `json:"leader"`
	Reason    string `json:"reason,omitempty"` // why it is not ready
}

// readyz says whether this node can serve: it is in a cluster that has a
// leader, and a linearizable read passes.
func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	v := a.view()
	s := readiness{ClusterID: v.ClusterID, Leader: v.Leader}
	switch {
	case v.ClusterID == "" && v.Forming != "":
		s.Reason = v.Forming
	case v.ClusterID == "":
		s.Reason = "this server is in no cluster yet"
	case v.Leader == "":
		s.Reason = "there is no leader"
	default:
		ctx, cancel := context.WithTimeout(r.Context(), min(askTimeout, a.cfg.Timeout))
		defer cancel()
		if _, err := a.cfg.Store.Revision(ctx, lbstate.ReadOptions{}); err != nil {
			s.Reason = "a linearizable read failed: " + err.Error()
		} else {
			s.Ready = true
		}
	}
	status := http.StatusOK
	if !s.Ready {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	send(w, r, status, s)
}

// toLeader passes a request on to the leader and its answer back. It says
// whether it did; if not, this node is to answer.
func (a *API) toLeader(w http.ResponseWriter, r *http.Request, body []byte) bool {
	v := a.view()
	leader, ok := a.leader(v)
	if !ok || v.leads() || r.Header.Get(forwardedBy) != "" {
		return false
	}
	a.pass(w, r, leader, "the leader "+leader.Name, body)
	return true
}

// pass passes a request on to another server, and its answer back.
func (a *API) pass(w http.ResponseWriter, r *http.Request, to MemberView, who string, body []byte) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*a.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "http://"+to.HTTPAddr+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		a.unavailable(fmt.Errorf("pass the request on to %s: %w", who, err), r.Method != http.MethodGet).send(w, r)
		return
	}
	req.Header.Set(forwardedBy, a.cfg.About.Name)
	for _, name := range []string{"Content-Type", "Accept"} {
		if v := r.Header.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	resp, err := a.cfg.Client.Do(req)
	if err != nil {
		a.unavailable(fmt.Errorf("pass the request on to %s: %w", who, err), r.Method != http.MethodGet).send(w, r)
		return
	}
	defer resp.Body.Close()
	for _, name := range []string{"Content-Type", "Retry-After", "Allow", "Accept"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(resp.Body, maxAnswer)) // a broken answer shows as one to the caller
}
