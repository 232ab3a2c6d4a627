package formation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/raftstore"
)

// Handler serves the requests of other servers under /raft/v1/. It may be used
// before and after Run: a node that has its place in a cluster must still tell
// those that have none.
func (n *Node) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathNode, func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, n.info()) })
	mux.HandleFunc("POST "+pathFound, n.serveFound)
	mux.HandleFunc("POST "+pathJoin, n.serveJoin)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n.fail(w, http.StatusNotFound, failure{Error: fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (n *Node) fail(w http.ResponseWriter, status int, f failure) {
	f.Cluster = n.store.Identity().Cluster
	reply(w, status, f)
}

// request reads the body of a request, or answers why it cannot.
func (n *Node) request(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := decode(http.MaxBytesReader(w, r.Body, maxBody+1), true, into); err != nil {
		n.fail(w, http.StatusBadRequest, failure{Error: "body: " + err.Error()})
		return false
	}
	return true
}

// serveFound takes a founding record. The store decides whether it is the first.
func (n *Node) serveFound(w http.ResponseWriter, r *http.Request) {
	var f raftstore.Founding
	if !n.request(w, r, &f) {
		return
	}
	err := acceptable(f, n.store.Identity())
	if err == nil {
		err = n.store.Found(f)
	}
	if err != nil {
		info := n.info()
		n.log.Warn("founding record refused", zap.String("from", r.RemoteAddr), zap.Error(err))
		n.fail(w, http.StatusConflict, failure{Error: err.Error(), Node: &info})
		return
	}
	n.wake()
	reply(w, http.StatusOK, n.info())
}

// serveJoin gives a place in the cluster, if this node leads it.
func (n *Node) serveJoin(w http.ResponseWriter, r *http.Request) {
	var req JoinRequest
	if !n.request(w, r, &req) {
		return
	}
	if _, err := normalize(req.HTTPAddr); err != nil || req.Incarnation == 0 || req.Name == "" || req.RaftAddr == "" {
		n.fail(w, http.StatusBadRequest, failure{Error: "a node that joins needs an incarnation, a name, a raft address and an HTTP address"})
		return
	}
	id := n.store.Identity()
	switch {
	case id.Cluster == 0:
		n.fail(w, http.StatusConflict, failure{Error: fmt.Sprintf("%s belongs to no cluster yet", n.self)})
		return
	case req.Cluster != id.Cluster:
		n.fail(w, http.StatusConflict, failure{Error: fmt.Sprintf("%s belongs to cluster %x, not to %x", n.self, id.Cluster, req.Cluster)})
		return
	}
	if leader, _ := n.leader(); leader != id.Member {
		n.sendToLeader(w, id)
		return
	}
	m, err := n.store.AddMember(r.Context(), raftstore.Member{
		Incarnation: req.Incarnation, Name: req.Name, RaftAddr: req.RaftAddr, HTTPAddr: req.HTTPAddr, Versions: req.Versions,
	})
	switch {
	case errors.Is(err, raftstore.ErrNotLeader):
		n.sendToLeader(w, id)
	case errors.Is(err, raftstore.ErrNoLeader), errors.Is(err, raftstore.ErrStopped), errors.Is(err, raftstore.ErrOverloaded):
		n.fail(w, http.StatusServiceUnavailable, failure{Error: err.Error()})
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		n.fail(w, http.StatusServiceUnavailable, failure{Error: fmt.Sprintf("adding %q took too long: %v", req.Name, err)})
	case err != nil:
		n.log.Warn("node not added", zap.String("name", req.Name), zap.String("address", req.HTTPAddr), zap.Error(err))
		n.fail(w, http.StatusConflict, failure{Error: err.Error()})
	default:
		n.log.Info("node added", zap.String("name", req.Name), zap.String("address", req.HTTPAddr), zap.String("member", fmt.Sprintf("%x", m.Member)))
		reply(w, http.StatusOK, m)
	}
}

// sendToLeader tells an asker where to ask instead.
func (n *Node) sendToLeader(w http.ResponseWriter, id raftstore.Identity) {
	leader, address := n.leader()
	if leader == 0 || leader == id.Member || address == "" {
		n.fail(w, http.StatusServiceUnavailable, failure{Error: fmt.Sprintf("cluster %x has no leader at present, as %s sees it: a quorum of its members must be up", id.Cluster, n.self)})
		return
	}
	n.fail(w, http.StatusMisdirectedRequest, failure{Error: fmt.Sprintf("%s does not lead cluster %x, ask %s", n.self, id.Cluster, address), Leader: address})
}

// info is this node as it presents itself.
func (n *Node) info() Info {
	id := n.store.Identity()
	info := Info{
		Cluster: id.Cluster, Member: id.Member, Incarnation: id.Incarnation,
		Name: id.Name, RaftAddr: id.RaftAddr, HTTPAddr: id.HTTPAddr, Versions: id.Versions,
		List: n.list, Without: n.without,
	}
	if info.Cluster == 0 {
		return info
	}
	if f, ok := n.store.Founding(); ok {
		info.Founding = &f
	}
	info.Members = n.store.Members()
	info.Accepted = n.store.Status().Accepted
	_, info.Leader = n.leader()
	return info
}

// leader returns the leader and its HTTP address, as far as they are known.
func (n *Node) leader() (uint64, string) {
	id := n.store.Status().Leader
	if id == 0 {
		return 0, ""
	}
	for _, m := range n.store.Members() {
		if m.ID == id {
			return id, m.HTTPAddr
		}
	}
	return id, ""
}
