//go:build kernel && linux

package wholeway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// api talks to one server's HTTP API, from the director's namespace.
type api struct{ base string }

var apiClient = &http.Client{
	Timeout: 8 * time.Second,
	Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialIn(ctx, director, address)
		},
	},
}

func (a api) do(method, path string, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, a.base+path, r)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := apiClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if into != nil {
		return json.Unmarshal(b, into)
	}
	return nil
}

// put writes an object and returns the revision that it made.
func (a api) put(t *testing.T, path string, body any) uint64 {
	t.Helper()
	var answer struct{ Revision uint64 }
	if err := a.do(http.MethodPut, path, body, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Revision == 0 {
		t.Fatalf("PUT %s: the answer carries no revision", path)
	}
	return answer.Revision
}

type object = map[string]any

type service struct {
	Name     string
	Backends []struct {
		Address         string
		Port            int
		EffectiveWeight int `json:"effective_weight"`
		Reason          string
	}
}

type cluster struct {
	ClusterID string `json:"cluster_id"`
	Leader    string
	Members   []struct {
		Name string
		Role string
	}
}

type agents struct {
	Agents []struct {
		Name            string
		Connected       bool
		AppliedRevision uint64 `json:"applied_revision"`
		Applied         struct {
			Converged bool
			Simulated bool
		}
	}
}

// applied waits until the agent says that its kernel holds the revision.
func (a api) applied(t *testing.T, revision uint64) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("agent at revision %d", revision), func() (bool, string) {
		var as agents
		if err := a.do(http.MethodGet, "/api/v1/agents", nil, &as); err != nil {
			return false, err.Error()
		}
		for _, g := range as.Agents {
			if g.Connected && g.AppliedRevision >= revision && g.Applied.Converged {
				if g.Applied.Simulated {
					t.Fatal("the agent works on a simulated kernel")
				}
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", as.Agents)
	})
}

// weight waits until a backend has an effective weight.
func (a api) weight(t *testing.T, name, address string, want func(int) bool) time.Duration {
	t.Helper()
	return eventually(t, 30*time.Second, "effective weight of "+address, func() (bool, string) {
		var s service
		if err := a.do(http.MethodGet, "/api/v1/services/"+name, nil, &s); err != nil {
			return false, err.Error()
		}
		for _, b := range s.Backends {
			if b.Address == address && want(b.EffectiveWeight) {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", s.Backends)
	})
}
