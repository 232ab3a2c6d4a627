package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	eventStream    = "text/event-stream"
	maxStreams     = 256
	heartbeatEvery = 10 * time.Second
	// A reader that takes nothing for so long is cut off; it resumes by itself.
	streamWriteTimeout = 10 * time.Second
)

// pace bounds how long a watch says nothing, and how long a reader may take.
type pace struct{ heartbeat, write time.Duration }

// change is the data of an event: of a snapshot all services, otherwise those
// that changed after since, and the names of those that are gone.
type change struct {
	Revision uint64                  `json:"revision"`
	Since    uint64                  `json:"since,omitempty"`
	Services []lbstate.ServiceStatus `json:"services"`
	Removed  []string                `json:"removed,omitempty"`
}

// watch streams server-sent events, first what changed since the revision that
// the client has (Last-Event-ID, or ?from=). An event's ID is its revision, so
// a browser resumes without loss. A slow reader gets fewer events, each with
// the newest of every service.
func (a *API) watch(w http.ResponseWriter, r *http.Request) {
	from, p := watchFrom(r)
	var o lbstate.ReadOptions
	if p == nil {
		o, p = readOptions(r)
	}
	if p != nil {
		p.send(w, r)
		return
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", eventStream)
		return
	}
	select {
	case a.streams <- struct{}{}:
		defer func() { <-a.streams }()
	default:
		(&problem{
			Type: typeUnavailable, Status: http.StatusServiceUnavailable, retryAfter: 10,
			Detail: fmt.Sprintf("%d streams are open, which is the limit of one server; ask another", maxStreams),
		}).send(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.closing, cancel)()

	// Before the answer begins, so that a node that cannot serve says so.
	first, done := context.WithTimeout(ctx, a.cfg.Timeout)
	_, err := a.cfg.Store.Revision(first, o)
	done()
	if err != nil {
		a.failed(err, read).send(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("X-Accel-Buffering", "no") // a proxy must not hold events back
	s := stream{w: w, rc: http.NewResponseController(w), timeout: a.pace.write}
	if s.write("retry: 1000\n\n") != nil {
		return
	}
	watcher := a.cfg.Store.Watch(lbstate.WatchOptions{From: from, Stale: o.Stale})
	for {
		tick, stop := context.WithTimeout(ctx, a.pace.heartbeat)
		u, err := watcher.Next(tick)
		stop()
		switch {
		case err == nil:
			err = s.send(u)
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.DeadlineExceeded):
			err = s.write(": alive\n\n")
		default:
			a.log.Warn("a watch ended", zap.Error(err))
		}
		if err != nil {
			return
		}
	}
}

func watchFrom(r *http.Request) (uint64, *problem) {
	name, text := "Last-Event-ID", r.Header.Get("Last-Event-ID")
	if text == "" {
		name, text = "from", r.URL.Query().Get("from")
	}
	if text == "" {
		return 0, nil
	}
	from, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, refused(http.StatusBadRequest, fmt.Sprintf("%s is %q; allowed: a revision, as the ID of an event says it", name, text))
	}
	return from, nil
}

// stream writes events to one client.
type stream struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration // of a write
}

func (s stream) send(u lbstate.Update) error {
	name := "change"
	if u.Full {
		name = "snapshot"
	}
	if u.Services == nil {
		u.Services = []lbstate.ServiceStatus{}
	}
	data, err := json.Marshal(change{u.Revision, u.Since, u.Services, u.Removed})
	if err != nil {
		return err
	}
	return s.write(fmt.Sprintf("event: %s\nid: %d\ndata: %s\n\n", name, u.Revision, data))
}

func (s stream) write(text string) error {
	// Not every ResponseWriter has deadlines: one in a test has none.
	if err := s.rc.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.rc.Flush()
}
