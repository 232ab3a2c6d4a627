package formation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ipvskit/ipvskit/raftstore"
)

// client asks other servers.
type client struct {
	http    *http.Client
	scheme  string
	timeout time.Duration // of a question
	join    time.Duration // of a request to join
}

// directClient is for servers of one network: it uses no proxy and follows no
// redirect.
func directClient() *http.Client {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: 2,
			IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
			TLSHandshakeTimeout: 2 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// refusal is an answer other than 200.
type refusal struct {
	status int
	failure
}

func (r *refusal) Error() string {
	if r.failure.Error == "" {
		return fmt.Sprintf("it answers with status %d", r.status)
	}
	return r.failure.Error
}

func (c *client) do(ctx context.Context, timeout time.Duration, method, address, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.scheme+"://"+address+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		r := &refusal{status: res.StatusCode}
		if err := decode(res.Body, false, &r.failure); err != nil {
			r.failure = failure{} // not one of ours: the status says enough
		}
		return r
	}
	// Unknown fields are those of a later version.
	return decode(res.Body, false, out)
}

func (c *client) node(ctx context.Context, address string) (*Info, error) {
	var info Info
	if err := c.do(ctx, c.timeout, http.MethodGet, address, pathNode, nil, &info); err != nil {
		return nil, err
	}
	if info.Incarnation == 0 || info.Name == "" {
		return nil, fmt.Errorf("it is not a server of this kind")
	}
	return &info, nil
}

func (c *client) found(ctx context.Context, address string, f raftstore.Founding) (*Info, error) {
	var info Info
	if err := c.do(ctx, c.timeout, http.MethodPost, address, pathFound, f, &info); err != nil {
		return nil, err
	}
	return &info, nil
}

func (c *client) ask(ctx context.Context, address string, r JoinRequest) (raftstore.Membership, error) {
	var m raftstore.Membership
	err := c.do(ctx, c.join, http.MethodPost, address, pathJoin, r, &m)
	return m, err
}

// poll asks all addresses at once.
func (c *client) poll(ctx context.Context, addresses []string) []answer {
	answers := make([]answer, len(addresses))
	var all sync.WaitGroup
	for i, address := range addresses {
		all.Go(func() {
			info, err := c.node(ctx, address)
			answers[i] = answer{address: address, info: info, err: err}
		})
	}
	all.Wait()
	return answers
}
