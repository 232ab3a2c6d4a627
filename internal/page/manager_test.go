package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// binary is the ipvs-manager that TestMain builds.
var binary string

type object = map[string]any

// manager is one ipvs-manager on loopback, with the in-memory kernel.
type manager struct {
	t    *testing.T
	args []string
	url  string
	log  string // file of what it prints
	cmd  *exec.Cmd
	dead chan struct{}
}

// ports are free at the time of asking. Another process may take one before
// it is used; ipvs-manager then says so, and start fails with its words.
func ports(t *testing.T, n int) []int {
	t.Helper()
	var free []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		free = append(free, portOf(l))
	}
	return free
}

func portOf(l net.Listener) int {
	return int(netip.MustParseAddrPort(l.Addr().String()).Port())
}

// singleon starts one that is a server and its own director.
func singleon(t *testing.T) *manager {
	t.Helper()
	p := ports(t, 3)
	dir := t.TempDir()
	m := newManager(t, "node0", p[0],
		"--server_type", "singleon", "--dataplane", "fake", "--agent_name", "director0", "--agent_labels", "zone=a",
		"--raft_node_id", "node0", "--raft_vol_dir", filepath.Join(dir, "data"),
		"--server_port", fmt.Sprint(p[0]), "--grpc_port", fmt.Sprint(p[1]), "--adverties", fmt.Sprintf("127.0.0.1:%d", p[2]),
		"--log_level", "warn")
	m.start()
	m.ready()
	return m
}

// cluster makes the servers of one list, which are not started yet, and an
// agent of them.
func cluster(t *testing.T, n int) (servers []*manager, agent *manager) {
	t.Helper()
	p := ports(t, 3*n)
	var http, grpc []string
	for i := range n {
		http = append(http, fmt.Sprintf("127.0.0.1:%d", p[3*i]))
		grpc = append(grpc, fmt.Sprintf("127.0.0.1:%d", p[3*i+1]))
	}
	for i := range n {
		name := fmt.Sprintf("node%d", i)
		servers = append(servers, newManager(t, name, p[3*i],
			"--raft_node_id", name, "--raft_vol_dir", filepath.Join(t.TempDir(), name), "--cluster", strings.Join(http, ","),
			"--server_port", fmt.Sprint(p[3*i]), "--grpc_port", fmt.Sprint(p[3*i+1]), "--adverties", fmt.Sprintf("127.0.0.1:%d", p[3*i+2]),
			"--log_level", "warn"))
	}
	agent = newManager(t, "director1", 0, "--server_type", "agent", "--dataplane", "fake", "--agent_name", "director1",
		"--agent_dir", filepath.Join(t.TempDir(), "agent"), "--grpc_address", strings.Join(grpc, ","), "--log_level", "warn")
	return servers, agent
}

func newManager(t *testing.T, name string, httpPort int, args ...string) *manager {
	m := &manager{t: t, args: args, url: fmt.Sprintf("http://127.0.0.1:%d", httpPort), log: filepath.Join(t.TempDir(), name+".log")}
	t.Cleanup(func() {
		m.kill()
		if b, err := os.ReadFile(m.log); err == nil && t.Failed() {
			t.Logf("---- %s:\n%s", name, b)
		}
	})
	return m
}

func (m *manager) start() {
	m.t.Helper()
	f, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	m.cmd = exec.Command(binary, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = f, f
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.dead = make(chan struct{})
	go func(cmd *exec.Cmd, dead chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(dead)
	}(m.cmd, m.dead)
}

// ready waits until it can serve.
func (m *manager) ready() {
	m.t.Helper()
	eventually(m.t, "ipvs-manager is ready", func() (string, bool) {
		select {
		case <-m.dead:
			b, _ := os.ReadFile(m.log)
			m.t.Fatalf("ipvs-manager ended:\n%s", b)
		default:
		}
		resp, err := http.Get(m.url + "/readyz")
		if err != nil {
			return err.Error(), false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b), resp.StatusCode == http.StatusOK
	})
}

// kill ends it without a farewell, as a power cut would.
func (m *manager) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGKILL) // it may be gone already
		<-m.dead
		m.cmd = nil
	}
}

func (m *manager) put(name string, service object) { m.t.Helper(); m.do(http.MethodPut, name, service) }

func (m *manager) delete(name string) { m.t.Helper(); m.do(http.MethodDelete, name, nil) }

// get returns a service as the API has it, or nil if there is none.
func (m *manager) get(name string) object {
	m.t.Helper()
	resp, err := http.Get(m.url + "/api/v1/services/" + name)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil
	}
	var s object
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *manager) do(method, name string, body object) {
	m.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, m.url+"/api/v1/services/"+name, bytes.NewReader(data))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		m.t.Fatalf("%s %s: %s: %s", method, name, resp.Status, b)
	}
}

// target is a port on loopback that health checks ask.
type target struct {
	t    *testing.T
	port int
	l    net.Listener
	http *http.Server
}

func newTarget(t *testing.T) *target {
	t.Helper()
	g := &target{t: t}
	g.up()
	t.Cleanup(g.down)
	return g
}

// up listens, after down on the same port again.
func (g *target) up() {
	g.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", g.port))
	if err != nil {
		g.t.Fatal(err)
	}
	g.l, g.port = l, portOf(l)
	g.http = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/up") {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		fmt.Fprintln(w, "ok")
	})}
	go func() { _ = g.http.Serve(l) }() // ends with Close
}

func (g *target) down() { g.http.Close() }

// tcp is a check of it by TCP, of whatever backend.
func (g *target) tcp() object {
	return object{"type": "tcp", "address": "127.0.0.1", "port": g.port, "interval": "100ms", "timeout": "500ms", "rise": 1, "fall": 1}
}

// get is a check of it by HTTP.
func (g *target) get(path string) object {
	return object{"type": "http", "url": fmt.Sprintf("http://127.0.0.1:%d%s", g.port, path), "interval": "100ms", "timeout": "500ms", "rise": 1, "fall": 1}
}

// patience is how long anything may take that is waited for.
const patience = 20 * time.Second

// eventually waits until ok says true, and fails the test with what it said
// last when that takes too long.
func eventually(t *testing.T, what string, ok func() (string, bool)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		said, done := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v until %s; last seen:\n%s", patience, what, said)
		}
		<-tick.C
	}
}
