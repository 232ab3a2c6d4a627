package main

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
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asManager in the environment makes the test binary ipvs-manager itself, so
// that signals and exit codes are those of a process.
const asManager = "TEST_AS_IPVS_MANAGER"

func TestMain(m *testing.M) {
	if os.Getenv(asManager) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// process is one ipvs-manager on loopback.
type process struct {
	t      *testing.T
	name   string
	url    string
	cmd    *exec.Cmd
	output *output
	dead   chan struct{}
	code   int // once it is dead
}

// output is what a process has printed so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// node is the flags of one server on free ports.
type node struct {
	name             string
	http, grpc, raft int
	dir              string
}

func newNode(t *testing.T, name string) node {
	t.Helper()
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, int(netip.MustParseAddrPort(l.Addr().String()).Port()))
	}
	return node{name, ports[0], ports[1], ports[2], filepath.Join(t.TempDir(), name)}
}

func (n node) httpAddress() string { return fmt.Sprintf("127.0.0.1:%d", n.http) }

func (n node) args(more ...string) []string {
	return append([]string{
		"--raft_node_id", n.name, "--raft_vol_dir", n.dir, "--server_port", fmt.Sprint(n.http),
		"--grpc_port", fmt.Sprint(n.grpc), "--adverties", fmt.Sprintf("127.0.0.1:%d", n.raft),
	}, more...)
}

func (n node) singleon() []string {
	return n.args("--server_type", "singleon", "--dataplane", "fake", "--agent_name", "director-"+n.name)
}

func start(t *testing.T, n node, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: n.name, url: "http://" + n.httpAddress(), cmd: exec.Command(self, args...), output: &output{}, dead: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Env = append(os.Environ(), asManager+"=1")
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the code says how it ended
		p.code = p.cmd.ProcessState.ExitCode()
		close(p.dead)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may be gone already
		<-p.dead
		if t.Failed() {
			t.Logf("---- %s:\n%s", p.name, p.output)
		}
	})
	return p
}

// end waits until it has ended by itself and returns the exit code.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.dead:
		return p.code
	case <-time.After(patience):
		p.t.Fatalf("%s has not ended within %v", p.name, patience)
		return 0
	}
}

// terminate asks it to end, as a service manager does, and returns how long
// that took.
func (p *process) terminate() time.Duration {
	p.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if code := p.end(); code != 0 {
		p.t.Errorf("%s: exit code %d after SIGTERM", p.name, code)
	}
	return time.Since(begin)
}

// eventually waits until ok says true, and fails the test with what it said
// last when that takes too long.
func eventually(t *testing.T, what string, ok func() (string, bool)) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		said, done := ok()
		if done {
			return time.Since(begin)
		}
		if time.Since(begin) > patience {
			t.Fatalf("waited %v until %s; last seen: %s", patience, what, said)
		}
		<-tick.C
	}
}

// do sends a request and returns status and body; 0 if there is no answer.
func do(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

func (p *process) ready() time.Duration {
	p.t.Helper()
	return eventually(p.t, p.name+" is ready", func() (string, bool) {
		select {
		case <-p.dead:
			p.t.Fatalf("%s has ended with code %d", p.name, p.code)
		default:
		}
		code, body := do(p.t, http.MethodGet, p.url+"/readyz", "")
		return body, code == http.StatusOK
	})
}

const webService = `{"vip": "192.0.2.10", "port": 80, "backends": [{"address": "10.1.0.1"}]}`

// converged waits until the agent has applied a revision.
func (p *process) converged(agent string, revision uint64) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s has applied revision %d", agent, revision), func() (string, bool) {
		_, body := do(p.t, http.MethodGet, p.url+"/api/v1/agents", "")
		var list struct {
			Agents []struct {
				Name            string
				Connected       bool
				AppliedRevision uint64 `json:"applied_revision"`
				Applied         struct{ Converged, Simulated bool }
			}
		}
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			return err.Error() + body, false
		}
		for _, a := range list.Agents {
			if a.Name == agent && a.Connected && a.Applied.Converged && a.Applied.Simulated && a.AppliedRevision >= revision {
				return body, true
			}
		}
		return body, false
	})
}

// put writes a service and returns the revision.
func (p *process) put(name, body string) uint64 {
	p.t.Helper()
	code, answer := do(p.t, http.MethodPut, p.url+"/api/v1/services/"+name, body)
	var res struct{ Revision uint64 }
	if err := json.Unmarshal([]byte(answer), &res); err != nil || code >= 300 {
		p.t.Fatalf("PUT %s: %d: %s (%v)", name, code, answer, err)
	}
	return res.Revision
}

// The first thing a new user does: it comes up at once, says where, works,
// ends at once when asked, and knows everything when it starts again.
func TestSingleon(t *testing.T) {
	n := newNode(t, "node0")
	p := start(t, n, n.singleon()...)
	up := p.ready()
	for _, part := range []string{
		"http://" + n.httpAddress() + "/", fmt.Sprintf("127.0.0.1:%d (gRPC)", n.grpc), fmt.Sprintf("announced as 127.0.0.1:%d", n.raft),
		n.dir, "SIMULATED", "the data plane is simulated",
	} {
		if !strings.Contains(p.output.String(), part) {
			t.Errorf("it does not say %q", part)
		}
	}
	for path, part := range map[string]string{
		"/": "<!doctype html>", "/app.js": "EventSource", "/app.css": "color-scheme", "/favicon.svg": "<svg",
		"/healthz": "ok", "/api/v1/services": `"services": []`, "/api/v1/cluster": `"simulated": true`, "/raft/v1/node": "incarnation",
	} {
		if code, body := do(t, http.MethodGet, p.url+path, ""); code != http.StatusOK || !strings.Contains(body, part) {
			t.Errorf("%s: %d: %s", path, code, body)
		}
	}
	p.converged("director-node0", p.put("web", webService))

	// Whoever watches is sent away, not waited for.
	resp, err := http.Get(p.url + "/api/v1/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	down := p.terminate()

	p = start(t, n, n.singleon()...)
	again := p.ready()
	if code, body := do(t, http.MethodGet, p.url+"/api/v1/services/web", ""); code != http.StatusOK || !strings.Contains(body, "192.0.2.10") {
		t.Errorf("after a restart: %d: %s", code, body)
	}
	p.converged("director-node0", p.put("more", `{"vip": "192.0.2.11", "port": 80, "backends": [{"address": "10.1.0.1"}]}`))
	p.terminate()
	t.Logf("up after %v, down after %v, up again after %v", up, down, again)
	if up > 5*time.Second || down > 5*time.Second || again > 5*time.Second {
		t.Error("each should take a second or two")
	}
}

// A store survives SIGKILL, and the first read afterwards has everything that
// was acknowledged (INV-1, INV-3).
func TestSingleonIsKilled(t *testing.T) {
	n := newNode(t, "node0")
	p := start(t, n, n.singleon()...)
	p.ready()
	for i := range 8 {
		name := fmt.Sprintf("web%d", i)
		p.put(name, fmt.Sprintf(`{"vip": "192.0.2.%d", "port": 80, "backends": [{"address": "10.1.0.1"}]}`, 10+i))
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.end()
		p = start(t, n, n.singleon()...)
		p.ready()
		if code, body := do(t, http.MethodGet, p.url+"/api/v1/services/"+name, ""); code != http.StatusOK {
			t.Fatalf("%s, which was acknowledged, is not there: %d: %s", name, code, body)
		}
	}
}

// What is in the way is named by its flag, and the exit code is 1.
func TestWhatIsInTheWayIsNamed(t *testing.T) {
	n := newNode(t, "node0")
	running := start(t, n, n.singleon()...)
	running.ready()
	other := func(change func(*node)) node {
		o := newNode(t, "other")
		change(&o)
		return o
	}
	used := other(func(*node) {})
	if err := os.MkdirAll(filepath.Join(used.dir, "agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mark(filepath.Join(used.dir, "agent", kernelUsed)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("not a directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		node node
		says []string
	}{
		{"HTTP port", other(func(o *node) { o.http = n.http }), []string{"--server_port", fmt.Sprint(n.http), "in use", "other ports"}},
		{"gRPC port", other(func(o *node) { o.grpc = n.grpc }), []string{"--grpc_port", fmt.Sprint(n.grpc), "in use"}},
		{"raft port", other(func(o *node) { o.raft = n.raft }), []string{"--adverties", fmt.Sprint(n.raft), "in use"}},
		{"directory in use", other(func(o *node) { o.dir = n.dir }), []string{"--raft_vol_dir", n.dir}},
		{"not a directory", other(func(o *node) { o.dir = filepath.Join(file, "x") }), []string{"--agent_dir", file}},
		{"kernel used", used, []string{"--dataplane fake", "--agent_dir", used.dir}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := start(t, test.node, test.node.singleon()...)
			if code := p.end(); code != 1 {
				t.Errorf("exit code %d", code)
			}
			for _, part := range test.says {
				if !strings.Contains(p.output.String(), part) {
					t.Errorf("does not say %q:\n%s", part, p.output)
				}
			}
		})
	}
	if code, body := do(t, http.MethodGet, running.url+"/readyz", ""); code != http.StatusOK {
		t.Errorf("the first was disturbed: %d: %s", code, body)
	}
}

// INV-40, as a person meets it: nothing listens, and the way out is said.
func TestExposureIsRefusedByTheProcess(t *testing.T) {
	n := newNode(t, "node0")
	p := start(t, n, n.args("--listen", "0.0.0.0")...)
	if code := p.end(); code != 2 {
		t.Errorf("exit code %d", code)
	}
	for _, part := range []string{"--listen 0.0.0.0 is not on loopback", "neither encrypted nor authenticated", "ipvs-manager --raft_node_id node0", "--insecure"} {
		if !strings.Contains(p.output.String(), part) {
			t.Errorf("does not say %q:\n%s", part, p.output)
		}
	}
	if _, err := os.Stat(n.dir); !os.IsNotExist(err) {
		t.Errorf("it made its directory all the same: %v", err)
	}
}

// Two servers of one list form one cluster; either takes writes, and passes on
// what is the leader's. An agent follows both.
func TestTwoServersAndAnAgent(t *testing.T) {
	a, b := newNode(t, "node0"), newNode(t, "node1")
	list := []string{"--cluster", a.httpAddress() + "," + b.httpAddress()}
	pa, pb := start(t, a, a.args(list...)...), start(t, b, b.args(list...)...)
	pa.ready()
	pb.ready()
	var views [2]struct {
		ClusterID string `json:"cluster_id"`
		Leader    string
		Members   []struct{ Name, Role string }
	}
	eventually(t, "both know the leader", func() (string, bool) {
		said := ""
		for i, p := range []*process{pa, pb} {
			_, body := do(t, http.MethodGet, p.url+"/api/v1/cluster", "")
			if err := json.Unmarshal([]byte(body), &views[i]); err != nil {
				return err.Error(), false
			}
			said += body
		}
		return said, views[0].Leader != "" && views[0].Leader == views[1].Leader
	})
	if views[0].ClusterID == "" || views[0].ClusterID != views[1].ClusterID || len(views[0].Members) != 2 {
		t.Errorf("%+v", views)
	}

	agent := start(t, node{name: "agent"}, "--server_type", "agent", "--dataplane", "fake", "--agent_name", "director",
		"--agent_dir", filepath.Join(t.TempDir(), "agent"), "--grpc_address", fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", a.grpc, b.grpc))
	pa.converged("director", pa.put("web", webService))
	pb.converged("director", pb.put("more", `{"vip": "192.0.2.11", "port": 80, "backends": [{"address": "10.1.0.1"}]}`))
	for _, p := range []*process{pa, pb} {
		if _, body := do(t, http.MethodGet, p.url+"/api/v1/services", ""); !strings.Contains(body, "192.0.2.10") || !strings.Contains(body, "192.0.2.11") {
			t.Errorf("%s: %s", p.name, body)
		}
		// Members are the leader's to change, whichever is asked.
		if code, body := do(t, http.MethodDelete, p.url+"/api/v1/cluster/members/node7", ""); code != http.StatusNotFound {
			t.Errorf("%s: %d: %s", p.name, code, body)
		}
	}

	// One is removed: it ends and says why, the other serves alone.
	leader, follower := pa, pb
	if views[0].Leader == pb.name {
		leader, follower = pb, pa
	}
	if code, body := do(t, http.MethodDelete, leader.url+"/api/v1/cluster/members/"+follower.name, ""); code != http.StatusOK {
		t.Fatalf("%d: %s", code, body)
	}
	if code := follower.end(); code != 1 || !strings.Contains(follower.output.String(), "removed from the cluster") {
		t.Errorf("the removed one: exit code %d", code)
	}
	leader.converged("director", leader.put("last", `{"vip": "192.0.2.12", "port": 80, "backends": [{"address": "10.1.0.1"}]}`))
	t.Logf("agent down after %v, server after %v", agent.terminate(), leader.terminate())
}

// Everything that a server starts ends with it.
func TestServerLeavesNothingBehind(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	n := newNode(t, "node0")
	ctx, stop := context.WithCancel(t.Context())
	out := &output{}
	code := make(chan int, 1)
	go func() { code <- run(ctx, n.singleon(), out, out) }()
	eventually(t, "it is ready", func() (string, bool) {
		status, body := do(t, http.MethodGet, "http://"+n.httpAddress()+"/readyz", "")
		return body, status == http.StatusOK
	})
	stop()
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit code %d:\n%s", c, out)
		}
	case <-time.After(patience):
		t.Fatalf("it does not end:\n%s", out)
	}
}
