//go:build kernel && linux

package wholeway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// request asks a URL from the client on a fresh connection and returns the
// answer, which is the backend's name.
func request(url string) (string, error) { return requestWithin(3*time.Second, url) }

// requestWithin gives up after limit: a packet that came before the service
// is lost, and sent again after a second only.
func requestWithin(limit time.Duration, url string) (string, error) {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialIn(ctx, client, address)
		},
	}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: limit}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), nil
}

// spread sends n requests one after the other and counts who answered.
func spread(t *testing.T, url string, n int) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for i := range n {
		name, err := request(url)
		if err != nil {
			t.Fatalf("request %d of %d to %s: %v (answered so far: %v)", i+1, n, url, err, seen)
		}
		seen[name]++
	}
	return seen
}

// load is a client that goes on in the background: long-lived connections that
// exchange a byte now and then, and new requests.
type load struct {
	stop     chan struct{}
	wg       sync.WaitGroup
	conns    int
	lost     atomic.Int64
	echoes   atomic.Int64
	requests atomic.Int64
	failed   atomic.Int64
	mu       sync.Mutex // guards first
	first    error
}

func startLoad(t *testing.T, echo, url string, conns int) *load {
	t.Helper()
	l := &load{stop: make(chan struct{}), conns: conns}
	for range conns {
		c, err := dialIn(context.Background(), client, echo)
		if err != nil {
			t.Fatalf("long-lived connection: %v", err)
		}
		l.wg.Add(1)
		go l.hold(c)
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		for l.pause(20 * time.Millisecond) {
			l.requests.Add(1)
			if _, err := request(url); err != nil {
				l.failed.Add(1)
				l.note(fmt.Errorf("request: %w", err))
			}
		}
	}()
	return l
}

func (l *load) hold(c net.Conn) {
	defer l.wg.Done()
	defer c.Close()
	buf := []byte{0}
	for l.pause(100 * time.Millisecond) {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // fails only on a closed connection, as the next line then does
		_, err := c.Write(buf)
		if err == nil {
			_, err = io.ReadFull(c, buf)
		}
		if err != nil {
			l.lost.Add(1)
			l.note(fmt.Errorf("connection from %v: %w", c.LocalAddr(), err))
			return
		}
		l.echoes.Add(1)
	}
}

func (l *load) pause(d time.Duration) bool {
	select {
	case <-l.stop:
		return false
	case <-time.After(d):
		return true
	}
}

func (l *load) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = err
	}
}

// end stops the load, and fails the test if anything was lost.
func (l *load) end(t *testing.T, during string) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	t.Logf("%s: %d connections held, %d lost, %d echoes; %d new requests, %d failed",
		during, l.conns, l.lost.Load(), l.echoes.Load(), l.requests.Load(), l.failed.Load())
	if l.lost.Load()+l.failed.Load() > 0 {
		t.Errorf("%s: traffic was lost, first: %v", during, l.first)
	}
	if l.echoes.Load() == 0 || l.requests.Load() == 0 {
		t.Errorf("%s: the load did not run", during)
	}
}
