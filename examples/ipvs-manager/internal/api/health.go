package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
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
	Noted() ([]lbchecks.BackendStatus, error)
	Events(after uint64) ([]lbchecks.Event, <-chan struct{}, error)
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

	// Of those checks that succeeded with a warning, or were inconclusive, the
	// first; NotedAll is how many there are.
	Noted    []notedView `json:"noted"`
	NotedAll int         `json:"noted_all"`
}

// Bounds of what one answer lists.
const (
	maxNoted         = 200
	maxEventBackends = 16 // of services that share a check
)

type notedView struct {
	Service string    `json:"service"`
	Backend string    `json:"backend"`
	Class   string    `json:"class"`
	Text    string    `json:"text"`
	At      time.Time `json:"at"`
}

type eventView struct {
	Seq      uint64                `json:"seq"`
	At       time.Time             `json:"at"`
	Kind     healthcheck.EventKind `json:"kind"`
	Check    string                `json:"check,omitempty"`
	Backends []eventBackend        `json:"backends,omitempty"`
	From     string                `json:"from,omitempty"`
	To       string                `json:"to,omitempty"`
	Result   *healthcheck.Result   `json:"result,omitempty"`
	Count    int                   `json:"count,omitempty"`
	Text     string                `json:"text,omitempty"`
}

type eventBackend struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
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
	noted, err := a.cfg.Checks.Noted()
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	send(w, r, http.StatusOK, healthView{
		Noted: notedViews(noted), NotedAll: len(noted),
		Server: a.cfg.About.Name, Up: s.Up, Down: s.Down, Unknown: s.Unknown, Held: s.Held, Running: s.Running, Waiting: s.Waiting,
		Skipped: s.Skipped, Pending: s.Pending, OldestOverdue: s.OldestOverdue.String(), HostLate: s.Lag.String(),
		Hold: holdView{Active: h.Active, Since: h.Since, Until: h.Until, Why: h.Why},
	})
}

func notedViews(noted []lbchecks.BackendStatus) []notedView {
	views := make([]notedView, 0, min(len(noted), maxNoted))
	for _, n := range noted[:min(len(noted), maxNoted)] {
		v := notedView{Service: n.Service, Backend: n.Backend.String(), Class: n.Last.Class.String(), Text: n.Last.Warning, At: n.LastAt}
		if !n.Last.OK() {
			v.Text = n.Last.String()
		}
		views = append(views, v)
	}
	return views
}

// healthEvents shows the last events of the leader's checks: those after ?after,
// a seq of the same server and term.
func (a *API) healthEvents(w http.ResponseWriter, r *http.Request) {
	if a.toLeader(w, r, nil) {
		return
	}
	var after uint64
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseUint(text, 10, 63); err != nil {
			refused(http.StatusBadRequest, fmt.Sprintf("after is %.50q; allowed: the seq of an event, such as 12", text)).send(w, r)
			return
		}
	}
	events, _, err := a.cfg.Checks.Events(after)
	if err != nil {
		a.notChecking(err).send(w, r)
		return
	}
	views := make([]eventView, 0, len(events))
	var term uint64
	for _, ev := range events {
		term = ev.Term
		views = append(views, viewOfEvent(ev))
	}
	send(w, r, http.StatusOK, map[string]any{"server": a.cfg.About.Name, "term": term, "events": views})
}

func viewOfEvent(ev lbchecks.Event) eventView {
	v := eventView{Seq: ev.Seq, At: ev.At, Kind: ev.Kind, Check: ev.Check, Count: ev.Count, Text: ev.Text}
	for _, b := range ev.Backends[:min(len(ev.Backends), maxEventBackends)] {
		v.Backends = append(v.Backends, eventBackend{b.Service, b.Address.String()})
	}
	switch ev.Kind {
	case healthcheck.EventTransition:
		v.From, v.To, v.Result = ev.From.String(), ev.To.String(), &ev.Result
	case healthcheck.EventFirstFailure, healthcheck.EventInconclusive, healthcheck.EventWarning:
		v.Result = &ev.Result
	}
	return v
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
