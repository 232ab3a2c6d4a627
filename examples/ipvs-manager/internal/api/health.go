package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
)

// Checks is what the API needs of the health checks; *lbchecks.Runner is one.
// All but ProbeNow fail with lbchecks.ErrNotChecking where this server does not
// lead.
type Checks interface {
	Stats() (healthcheck.Stats, error)
	Hold() (healthcheck.HoldStatus, error)
	ReleaseHold() (bool, error)
	ServiceStatus(service string) ([]lbchecks.BackendStatus, error)
	ProbeNow(ctx context.Context, service string, backend netip.AddrPort) (healthcheck.Result, error)
}

type healthView struct {
	Server        string   `json:"server"` // that checks: the leader
	Up            int      `json:"up"`
	Down          int      `json:"down"`
	Unknown       int      `json:"unknown"`
	Held          int      `json:"held"`
	Running       int      `json:"running"`
	Waiting       int      `json:"waiting"` // due, without a free place
	Skipped       uint64   `json:"skipped"`
	Pending       int      `json:"pending"` // transitions that the store has not acknowledged
	OldestOverdue string   `json:"oldest_overdue"`
	HostLate      string   `json:"host_late"` // added up since the server leads
	Hold          holdView `json:"hold"`
}

type holdView struct {
	Active bool      `json:"active"`
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"`
	Why    string    `json:"why,omitempty"`
}

type checkView struct {
	Backend   string              `json:"backend"`
	Target    string              `json:"target,omitempty"`
	State     healthcheck.State   `json:"state"`
	Raw       healthcheck.State   `json:"raw"` // by its own results; differs while it is held
	Confirmed bool                `json:"confirmed"`
	Successes int                 `json:"successes"`
	Failures  int                 `json:"failures"`
	Since     time.Time           `json:"since,omitzero"`
	LastAt    time.Time           `json:"last_at,omitzero"`
	Last      *healthcheck.Result `json:"last,omitempty"`
	Next      time.Time           `json:"next,omitzero"`
	P50       string              `json:"p50,omitempty"` // latency of successes
	P99       string              `json:"p99,omitempty"`
}

// health shows the leader's checks as a whole.
func (a *API) health(w http.ResponseWriter, r *http.Request) {
	if a.toLeader(w, r, nil) {
		return
	}
	s, err := a.cfg.Checks.Stats()
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	h, err := a.cfg.Checks.Hold()
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, healthView{
		Server: a.cfg.About.Name, Up: s.Up, Down: s.Down, Unknown: s.Unknown, Held: s.Held, Running: s.Running, Waiting: s.Waiting,
		Skipped: s.Skipped, Pending: s.Pending, OldestOverdue: s.OldestOverdue.String(), HostLate: s.Lag.String(),
		Hold: holdView{Active: h.Active, Since: h.Since, Until: h.Until, Why: h.Why},
	})
}

// releaseHold makes the checks believe what they hold back.
func (a *API) releaseHold(w http.ResponseWriter, r *http.Request) {
	if a.toLeader(w, r, nil) {
		return
	}
	released, err := a.cfg.Checks.ReleaseHold()
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, map[string]bool{"released": released})
}

// checks shows what the leader finds of a service's backends.
func (a *API) checks(w http.ResponseWriter, r *http.Request) {
	if a.toLeader(w, r, nil) {
		return
	}
	ctx, cancel := a.bounded(r)
	defer cancel()
	s, p := a.service(ctx, r)
	if p != nil {
		p.send(w, r)
		return
	}
	all, err := a.cfg.Checks.ServiceStatus(s.Name)
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	views := make([]checkView, 0, len(all))
	for _, c := range all {
		v := checkView{
			Backend: c.Backend.String(), State: c.State, Raw: c.Raw, Confirmed: c.Confirmed, Successes: c.Successes, Failures: c.Failures,
			Since: c.Since, LastAt: c.LastAt, Next: c.Next,
		}
		if c.Target.IsValid() {
			v.Target = c.Target.String()
		}
		if !c.LastAt.IsZero() {
			v.Last = &c.Last
		}
		if c.P50 > 0 {
			v.P50, v.P99 = c.P50.String(), c.P99.String()
		}
		views = append(views, v)
	}
	send(w, r, http.StatusOK, map[string]any{"service": s.Name, "checks": views})
}

// probe tries a backend's check once, from this server. It counts for nothing.
func (a *API) probe(w http.ResponseWriter, r *http.Request) {
	key, p := backendKey(r)
	if p != nil {
		p.send(w, r)
		return
	}
	// The check's own timeout bounds it; this is for what waits before.
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	res, err := a.cfg.Checks.ProbeNow(ctx, r.PathValue("name"), key)
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, map[string]any{"server": a.cfg.About.Name, "ok": res.OK(), "result": res})
}

func (a *API) notChecking(err error) *problem {
	switch {
	case errors.Is(err, lbchecks.ErrNoCheck):
		return refused(http.StatusNotFound, err.Error())
	case errors.Is(err, lbchecks.ErrNotChecking):
		return &problem{Type: typeUnavailable, Status: http.StatusServiceUnavailable, retryAfter: 1, Detail: err.Error()}
	}
	return a.failed(err, read)
}
