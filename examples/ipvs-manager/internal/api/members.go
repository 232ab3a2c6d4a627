package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
)

// addresses are those of a member that are to change; an empty one stays.
type addresses struct {
	RaftAddr string `json:"raft_addr"`
	HTTPAddr string `json:"http_addr"`
}

// moveMember changes a server's addresses.
func (a *API) moveMember(w http.ResponseWriter, r *http.Request) {
	body, p := readBody(w, r)
	if p != nil {
		p.send(w, r)
		return
	}
	var to addresses
	if p := decode(body, &to); p != nil {
		p.send(w, r)
		return
	}
	var faults []lbstate.Fault
	for _, f := range []struct{ path, address string }{{"raft_addr", to.RaftAddr}, {"http_addr", to.HTTPAddr}} {
		if host, port, err := net.SplitHostPort(f.address); f.address != "" && (err != nil || host == "" || port == "") {
			faults = append(faults, lbstate.Fault{Path: f.path, Found: f.address, Allowed: "host:port", Reason: "is not an address"})
		}
	}
	if to == (addresses{}) {
		faults = append(faults, lbstate.Fault{Path: "raft_addr", Reason: "is required, or http_addr is"})
	}
	if faults != nil {
		invalid(faults...).send(w, r)
		return
	}
	name := r.PathValue("name")
	a.change(w, r, body, map[string]string{"moved": name}, func(ctx context.Context) error {
		return a.cfg.Cluster.UpdateMember(ctx, name, to.RaftAddr, to.HTTPAddr)
	})
}

// promoteMember makes a voter of a learner without waiting for it to catch up.
func (a *API) promoteMember(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	a.change(w, r, nil, map[string]string{"promoted": name}, func(ctx context.Context) error {
		return a.cfg.Cluster.Promote(ctx, name)
	})
}

// setLeader hands leadership to a server.
func (a *API) setLeader(w http.ResponseWriter, r *http.Request) {
	body, p := readBody(w, r)
	if p != nil {
		p.send(w, r)
		return
	}
	var to struct {
		Name string `json:"name"`
	}
	if p := decode(body, &to); p != nil {
		p.send(w, r)
		return
	}
	if to.Name == "" {
		invalid(lbstate.Fault{Path: "name", Reason: "is required"}).send(w, r)
		return
	}
	a.change(w, r, body, map[string]string{"leader": to.Name}, func(ctx context.Context) error {
		return a.cfg.Cluster.TransferLeadership(ctx, to.Name)
	})
}

// change carries out a change of members, on the leader.
func (a *API) change(w http.ResponseWriter, r *http.Request, body []byte, done any, do func(context.Context) error) {
	if a.toLeader(w, r, body) {
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	if err := do(ctx); err != nil {
		a.membership(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, done)
}

// backup streams the whole state, for `ipvs-manager restore`.
func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	stale, p := flag(r, "stale")
	if p != nil {
		p.send(w, r)
		return
	}
	if !stale {
		ctx, cancel := a.bounded(r)
		defer cancel()
		if err := a.cfg.Cluster.Barrier(ctx); err != nil {
			a.failed(err, read).send(w, r)
			return
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="ipvs-manager-%s.backup"`, time.Now().UTC().Format("20060102T150405Z")))
	out := &patient{w: w, rc: http.NewResponseController(w)}
	if _, err := a.cfg.Cluster.Backup(out); err != nil {
		a.log.Warn("a backup ended", zap.Error(err))
		if out.begun {
			panic(http.ErrAbortHandler) // so that nobody takes it for whole
		}
		h.Del("Content-Disposition")
		a.unavailable(err, false).send(w, r)
	}
}

// patient gives each piece of a long answer its own time.
type patient struct {
	w     io.Writer
	rc    *http.ResponseController
	begun bool
}

func (p *patient) Write(b []byte) (int, error) {
	p.begun = true
	// Not every ResponseWriter has deadlines: one in a test has none.
	_ = p.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
	return p.w.Write(b)
}
