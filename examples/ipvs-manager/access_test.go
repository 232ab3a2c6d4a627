package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/transport/agent"
)

// freePorts returns ports that were free a moment ago.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// program runs the manager until the test ends.
func program(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := &output{}
	done := make(chan int, 1)
	go func() { done <- run(ctx, args, out, out) }()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("%v ended with code %d", args, code)
		}
		if t.Failed() {
			t.Logf("%v:\n%s", args, out)
		}
	})
}

// caller is an HTTP client with a credential, or with none.
func caller(t *testing.T, credential, trusted string) *http.Client {
	t.Helper()
	ca, err := os.ReadFile(trusted)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AppendCertsFromPEM(ca)
	if credential != "" {
		pair, err := tls.LoadX509KeyPair(credential, credential)
		if err != nil {
			t.Fatal(err)
		}
		// Also where the server has not asked for one of its authority.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// secureCluster is three servers with certificates, the last of which does not
// hold the cluster's key.
type secureCluster struct {
	t          *testing.T
	dir, key   string
	http, grpc []string
	ports      []int
}

func newSecureCluster(t *testing.T) *secureCluster {
	t.Helper()
	c := &secureCluster{t: t, dir: t.TempDir(), ports: freePorts(t, 9)}
	c.key = c.file("cluster.key")
	made(t, "keygen", "--key_file", c.key)
	made(t, "server-cert", "--key_file", c.key, "--name", "node2", "--hosts", "127.0.0.1", "--out", c.file("node2.key"))
	if err := os.WriteFile(c.file("revoked"), []byte("# none yet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.http = append(c.http, fmt.Sprintf("127.0.0.1:%d", c.ports[3*i]))
		c.grpc = append(c.grpc, fmt.Sprintf("127.0.0.1:%d", c.ports[3*i+1]))
	}
	return c
}

func (c *secureCluster) file(name string) string { return filepath.Join(c.dir, name) }

// start starts the servers, and waits until they are one cluster.
func (c *secureCluster) start() {
	c.t.Helper()
	for i := range 3 {
		mine := c.key
		if i == 2 {
			mine = c.file("node2.key")
		}
		program(c.t, "--raft_node_id", fmt.Sprintf("node%d", i), "--adverties", fmt.Sprintf("127.0.0.1:%d", c.ports[3*i+2]),
			"--server_port", fmt.Sprint(c.ports[3*i]), "--grpc_port", fmt.Sprint(c.ports[3*i+1]), "--cluster", strings.Join(c.http, ","),
			"--raft_vol_dir", c.file(fmt.Sprintf("data%d", i)), "--key_file", mine, "--revoked_file", c.file("revoked"), "--log_level", "warn")
	}
	anyone := caller(c.t, "", c.key)
	within(c.t, 30*time.Second, "one cluster with a leader", func() bool {
		for i := range c.http {
			if status, _ := c.ask(anyone, i, http.MethodGet, "/readyz", ""); status != http.StatusOK {
				return false
			}
		}
		return true
	})
}

// agent starts a director whose credential has its name.
func (c *secureCluster) agent(name string, servers ...string) {
	c.t.Helper()
	program(c.t, "--server_type", "agent", "--grpc_address", strings.Join(servers, ","), "--agent_dir", c.file(name),
		"--dataplane", "fake", "--key_file", c.file(name+".key"), "--log_level", "warn")
}

// ask makes a request of one of the servers; status 0 is none, and why.
func (c *secureCluster) ask(client *http.Client, server int, method, path, body string, headers ...string) (status int, text string) {
	c.t.Helper()
	r, err := http.NewRequest(method, "https://"+c.http[server]+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(data)
}

// INV-40: three servers form one cluster by their certificates, a director
// follows them, and only who has the right role gets an answer.
func TestClusterWithCertificates(t *testing.T) {
	c := newSecureCluster(t)
	file, key, cluster := c.file, c.key, c.http
	made(t, "agent-cert", "--key_file", key, "--name", "lb1", "--labels", "zone=a", "--out", file("lb1.key"))
	made(t, "operator-cert", "--key_file", key, "--name", "alice", "--out", file("alice.key"))
	made(t, "keygen", "--key_file", file("other.key"))
	made(t, "operator-cert", "--key_file", file("other.key"), "--name", "alice", "--out", file("mallory.key"))
	c.start()
	c.agent("lb1", c.grpc...)
	ask := func(client *http.Client, method, path, body string) (int, string) {
		return c.ask(client, 1, method, path, body)
	}
	anyone, alice := caller(t, "", key), caller(t, file("alice.key"), key)
	connected := func() (agent.AgentInfo, bool) {
		_, body := ask(alice, http.MethodGet, "/api/v1/agents", "")
		var list struct{ Agents []agent.AgentInfo }
		if json.Unmarshal([]byte(body), &list) != nil || len(list.Agents) != 1 {
			return agent.AgentInfo{}, false
		}
		return list.Agents[0], list.Agents[0].Connected
	}
	const service = `{"vip": "192.0.2.10", "port": 80, "agents": {"zone": "a"}, "backends": [{"address": "10.1.0.1"}]}`
	if status, body := ask(alice, http.MethodPut, "/api/v1/services/web", service); status != http.StatusOK && status != http.StatusCreated {
		t.Fatalf("an operator's change: %d %s", status, body)
	}
	within(t, 20*time.Second, "the director has the service", func() bool {
		info, ok := connected()
		return ok && info.Name == "lb1" && info.Labels["zone"] == "a" && info.Applied.Services == 1
	})

	for _, test := range []struct {
		name   string
		client *http.Client
		path   string
		status int
		says   string
	}{
		{"no certificate", anyone, "/api/v1/services", http.StatusUnauthorized, "operator-cert"},
		{"no certificate, the page", anyone, "/", http.StatusUnauthorized, "operator-cert"},
		{"a director", caller(t, file("lb1.key"), key), "/api/v1/services", http.StatusForbidden, `agent \"lb1\"`},
		{"an operator asks to join", alice, "/raft/v1/node", http.StatusForbidden, `operator \"alice\"`},
		{"a server asks to join", caller(t, file("node2.key"), key), "/raft/v1/node", http.StatusOK, "node1"},
		{"an operator is the author of a change", alice, "/api/v1/history", http.StatusOK, `"author": "operator alice"`},
		{"wrong CA", caller(t, file("mallory.key"), key), "/api/v1/services", 0, ""}, // ends with the handshake
	} {
		if status, body := ask(test.client, http.MethodGet, test.path, ""); status != test.status || !strings.Contains(body, test.says) {
			t.Errorf("%s: %d %s", test.name, status, body)
		}
	}

	began, ended := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(ended)
		watch, err := alice.Get("https://" + cluster[1] + "/api/v1/watch")
		if err != nil {
			began <- 0
			return
		}
		defer watch.Body.Close()
		began <- watch.StatusCode
		_, _ = io.Copy(io.Discard, watch.Body) // until the server ends it
	}()
	if status := <-began; status != http.StatusOK {
		t.Fatalf("watch: %d", status)
	}
	if err := os.WriteFile(file("revoked"), []byte("operator/alice left the company\nagent/lb1 sold\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the watch of a revoked operator goes on")
	}
	if status, body := ask(alice, http.MethodGet, "/api/v1/services", ""); status != 0 && (status != http.StatusForbidden || !strings.Contains(body, "left the company")) {
		t.Errorf("a revoked operator: %d %s", status, body)
	}
	made(t, "operator-cert", "--key_file", key, "--name", "bob", "--out", file("bob.key"))
	alice = caller(t, file("bob.key"), key)
	within(t, 20*time.Second, "the revoked director is off", func() bool {
		info, ok := connected()
		return !ok && info.Name == "lb1"
	})
}
