package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// event is one server-sent event; a comment has no name.
type event struct {
	name, id, comment string
	change            change
}

// reader reads the events of one watch.
type reader struct {
	t      *testing.T
	body   io.ReadCloser
	events *bufio.Reader
	cancel context.CancelFunc
}

func (w *world) watch(query string, headers ...string) *reader {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.server.URL+"/api/v1/watch"+query, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := w.client.Do(req) // the reader closes it
	if err != nil {
		w.t.Fatal(err)
	}
	r := &reader{w.t, resp.Body, bufio.NewReader(resp.Body), cancel}
	w.t.Cleanup(r.close)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != eventStream || resp.Header.Get("Cache-Control") != "no-store" {
		b, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("%s, %v: %s", resp.Status, resp.Header, b)
	}
	return r
}

func (r *reader) close() { r.cancel(); r.body.Close() }

// read returns the next block of lines, or the error that ended the stream.
func (r *reader) read() (event, error) {
	var e event
	for {
		line, err := r.events.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "":
			if line == "" {
				return e, nil
			}
			e.comment = value
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e.change); err != nil {
				return e, fmt.Errorf("%w: %s", err, value)
			}
		}
	}
}

// next is the next change; comments and the retry advice are passed over.
func (r *reader) next() event {
	r.t.Helper()
	for {
		e, err := r.read()
		if err != nil {
			r.t.Fatal(err)
		}
		if e.name != "" {
			if e.id != strconv.FormatUint(e.change.Revision, 10) {
				r.t.Errorf("event %s has ID %q, revision %d", e.name, e.id, e.change.Revision)
			}
			return e
		}
	}
}

func (e event) names() string {
	var names []string
	for _, s := range e.change.Services {
		names = append(names, s.Name)
	}
	for _, n := range e.change.Removed {
		names = append(names, "-"+n)
	}
	return e.name + " " + strings.Join(names, " ")
}

func service(vip int) string {
	return fmt.Sprintf(`{"vip": "192.0.2.%d", "port": 80, "backends": [{"address": "10.1.0.1"}]}`, vip)
}

func TestWatchFollowsAndResumes(t *testing.T) {
	w := newWorld(t)
	r := w.watch("")
	if e := r.next(); e.names() != "snapshot " || e.change.Revision != 0 || e.change.Services == nil {
		t.Errorf("first of an empty state: %+v", e)
	}
	w.put("/api/v1/services/a", service(1))
	if e := r.next(); e.names() != "change a" || e.change.Services[0].Backends[0].EffectiveWeight != 100 {
		t.Errorf("%+v", e)
	}
	w.put("/api/v1/services/b", service(2))
	last := r.next()
	if last.names() != "change b" {
		t.Errorf("%+v", last)
	}
	r.close()

	// While no one watches: one changes, one comes, one goes.
	w.put("/api/v1/services/a", service(3))
	w.put("/api/v1/services/c", service(4))
	w.do(http.MethodDelete, "/api/v1/services/b", "").ok(http.StatusOK, nil)
	for _, resumed := range []*reader{w.watch("", "Last-Event-ID: "+last.id), w.watch("?from=" + last.id)} {
		e := resumed.next()
		if e.names() != "change a c -b" || strconv.FormatUint(e.change.Since, 10) != last.id {
			t.Errorf("resumed: %s, %+v", e.names(), e)
		}
		resumed.close()
	}
	// The header of a browser that reconnects is newer than the address.
	r = w.watch("?from=0", "Last-Event-ID: "+last.id)
	if e := r.next(); e.names() != "change a c -b" {
		t.Errorf("%s", e.names())
	}
	// One that the state never had gets everything, not silence.
	r = w.watch("", "Last-Event-ID: 4096")
	if e := r.next(); e.names() != "snapshot a c" {
		t.Errorf("of the future: %s", e.names())
	}
	r = w.watch("?stale=true")
	if e := r.next(); e.names() != "snapshot a c" {
		t.Errorf("stale: %s", e.names())
	}
}

func TestWatchRefusals(t *testing.T) {
	w := newTunedWorld(t, func(a *API, _ *http.Server) { a.streams = make(chan struct{}, 2) })
	w.do(http.MethodGet, "/api/v1/watch", "", "Last-Event-ID: x").problem(http.StatusBadRequest)
	w.do(http.MethodGet, "/api/v1/watch?from=-1", "").problem(http.StatusBadRequest)
	w.do(http.MethodGet, "/api/v1/watch?stale=2", "").problem(http.StatusBadRequest)

	first, _ := w.watch(""), w.watch("")
	first.next()
	a := w.do(http.MethodGet, "/api/v1/watch", "")
	if p := a.problem(http.StatusServiceUnavailable); a.header.Get("Retry-After") == "" || p.Type != typeUnavailable {
		t.Errorf("%v", p)
	}
	// A place that is given up is free again.
	first.close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		select {
		case w.api.streams <- struct{}{}:
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("a closed watch keeps its place")
		}
		w.do(http.MethodGet, "/healthz", "") // gives the server something to do, and the time for it
	}
}

// A silent stream says that it lives; and it outlives the limit that the
// server has for reading a request.
func TestWatchHeartbeatAndReadTimeout(t *testing.T) {
	w := newTunedWorld(t, func(a *API, s *http.Server) {
		a.pace.heartbeat, s.ReadTimeout = 20*time.Millisecond, 100*time.Millisecond
	})
	r := w.watch("")
	r.next()
	for beats, start := 0, time.Now(); time.Since(start) < 400*time.Millisecond || beats < 3; beats++ {
		e, err := r.read()
		if err != nil {
			t.Fatalf("after %v and %d heartbeats: %v", time.Since(start), beats, err)
		}
		if e.comment != "alive" {
			t.Errorf("%+v", e)
		}
	}
	w.put("/api/v1/services/a", service(1))
	if e := r.next(); e.names() != "change a" {
		t.Errorf("%s", e.names())
	}
}

func TestCloseEndsWatches(t *testing.T) {
	w := newWorld(t)
	r := w.watch("")
	r.next()
	w.api.Close()
	if e, err := r.read(); !errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v", e, err)
	}
	w.api.Close() // again
}

// A reader that takes nothing is cut off; meanwhile it costs one state, not
// one event for each change, and no one waits for it. When it comes back it
// has everything.
func TestWatchOfASlowReader(t *testing.T) {
	// Small buffers, so that a state or two fill them.
	w := newTunedWorld(t, func(a *API, s *http.Server) {
		a.pace.write = 300 * time.Millisecond
		s.ConnState = func(c net.Conn, state http.ConnState) {
			if tcp, ok := c.(*net.TCPConn); ok && state == http.StateNew {
				_ = tcp.SetWriteBuffer(4 << 10) // without it the test takes longer
			}
		}
	})
	dialer := net.Dialer{}
	conn, err := dialer.DialContext(t.Context(), "tcp", w.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /api/v1/watch HTTP/1.1\r\nHost: %s\r\n\r\n", w.address())

	// Writers go on; the reader's place is given back once it is cut off.
	var labels strings.Builder
	for i := range 30 {
		fmt.Fprintf(&labels, `"k%d": %q,`, i, strings.Repeat("x", 120))
	}
	full := false
	for i := 0; ; i++ {
		w.put("/api/v1/services/a", fmt.Sprintf(`{"vip": "192.0.2.1", "port": 80, "labels": {%s "n": "%d"}}`, labels.String(), i))
		if n := len(w.api.streams); n == 1 {
			full = true
		} else if full {
			break
		}
		if i > 100000 {
			t.Fatal("a reader that takes nothing is never cut off")
		}
	}
	r := w.watch("")
	if e := r.next(); e.names() != "snapshot a" {
		t.Errorf("%s", e.names())
	}
}

// Events of many changes are coalesced: the newest of each service.
func TestWatchCoalesces(t *testing.T) {
	w := newWorld(t)
	w.put("/api/v1/services/a", service(1))
	for i := range 20 {
		w.put("/api/v1/services/b", service(10+i))
	}
	r := w.watch("?from=1")
	e := r.next()
	if e.names() != "change b" || e.change.Services[0].VIP.String() != "192.0.2.29" {
		t.Errorf("%s: %+v", e.names(), e.change.Services)
	}
	if rev, err := w.api.cfg.Store.Revision(t.Context(), lbstate.ReadOptions{}); err != nil || e.change.Revision != rev {
		t.Errorf("revision %d of %d, %v", e.change.Revision, rev, err)
	}
}
