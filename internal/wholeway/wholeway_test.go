//go:build kernel && linux

package wholeway

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	vip    = "198.51.100.10"
	webURL = "http://" + vip + ":80/"
	echo   = vip + ":7000"
)

// stage is the standing cast of the test; each step below works on what the
// step before left.
type stage struct {
	servers  []*process
	apis     []api
	agent    *process
	agentDir string
	backends map[string]*process
	foreign  string // what someone else's ipvsadm made, as ipvsadm prints it
}

func TestTheWholeWay(t *testing.T) {
	manager := os.Getenv("IPVS_MANAGER")
	if manager == "" {
		t.Fatal("IPVS_MANAGER must name the ipvs-manager binary")
	}
	layout(t)
	s := newStage(t, manager)
	for _, step := range []struct {
		name string
		do   func(*testing.T, *stage)
	}{
		{"1 three servers form one cluster", formOneCluster},
		{"2 a service put to a follower reaches the kernel", putToFollower},
		{"3 a backend dies and comes back", backendDies},
		{"4 the leader dies", leaderDies},
		{"5 all servers die, the agent restarts from its cache", allServersDie},
		{"6 changes lose no connection", changesLoseNothing},
		{"7 a profile sets the director up, and goes", profileComesAndGoes},
		{"8 a director is given back", cleanUp},
	} {
		// The steps are one story: after a failure the rest has no meaning.
		if !t.Run(step.name, func(t *testing.T) { step.do(t, s); s.foreignIntact(t) }) {
			t.FailNow()
		}
	}
}

func newStage(t *testing.T, manager string) *stage {
	dir := t.TempDir()
	s := &stage{agentDir: filepath.Join(dir, "agent"), backends: map[string]*process{}}
	list := "10.9.0.1:8010,10.9.0.2:8010,10.9.0.3:8010"
	for i := 1; i <= 3; i++ {
		ns, host := fmt.Sprintf("s%d", i), fmt.Sprintf("10.9.0.%d", i)
		s.servers = append(s.servers, newProcess(t, ns, "server-"+ns, manager,
			"--raft_node_id", ns, "--adverties", host+":8110", "--cluster", list,
			"--raft_vol_dir", filepath.Join(dir, ns), "--insecure"))
		s.apis = append(s.apis, api{"http://" + host + ":8010"})
	}
	s.agent = newProcess(t, director, "agent", manager, "--server_type", "agent",
		"--grpc_address", "10.9.0.1:8210,10.9.0.2:8210,10.9.0.3:8210",
		"--agent_name", "director", "--agent_labels", "zone=a",
		"--agent_dir", s.agentDir, "--dataplane", "kernel", "--insecure")
	for i := 1; i <= 3; i++ {
		ns := fmt.Sprintf("b%d", i)
		s.backends[ns] = startBackend(t, ns)
	}
	// Someone else's services, one of them on an address of the front interface.
	onDirector(t, "ipvsadm", "-A", "-t", "203.0.113.5:99", "-s", "sh")
	onDirector(t, "ipvsadm", "-a", "-t", "203.0.113.5:99", "-r", "10.1.0.3:99", "-g", "-w", "7")
	onDirector(t, "ipvsadm", "-A", "-u", "198.18.0.1:53", "-s", "rr")
	onDirector(t, "ipvsadm", "-A", "-f", "4242", "-s", "wlc")
	s.foreign = foreignServices(t)
	return s
}

func foreignServices(t *testing.T) string {
	t.Helper()
	out := onDirector(t, "ipvsadm", "-Sn")
	return lines(out, "203.0.113.5:99") + lines(out, "198.18.0.1:53") + lines(out, "-f 4242")
}

func (s *stage) foreignIntact(t *testing.T) {
	t.Helper()
	if got := foreignServices(t); got != s.foreign {
		t.Errorf("services made by someone else were touched:\nbefore:\n%snow:\n%s", s.foreign, got)
	}
}

// cluster waits until every live server names the same leader, and returns
// the positions of the leader and of a live follower.
func (s *stage) cluster(t *testing.T) (leader, follower int) {
	t.Helper()
	eventually(t, 60*time.Second, "a leader that all servers name", func() (bool, string) {
		leader, follower = -1, -1
		name, id, said := "", "", ""
		for i, p := range s.servers {
			if !p.alive() {
				continue
			}
			var c cluster
			if err := s.apis[i].do(http.MethodGet, "/api/v1/cluster", nil, &c); err != nil {
				return false, err.Error()
			}
			said += fmt.Sprintf("%s: cluster %s, leader %q, %d members; ", p.ns, c.ClusterID, c.Leader, len(c.Members))
			if c.Leader == "" || c.ClusterID == "" || (name != "" && (c.Leader != name || c.ClusterID != id)) {
				return false, said
			}
			name, id = c.Leader, c.ClusterID
			if c.Leader == p.ns {
				leader = i
			} else {
				follower = i
			}
		}
		return leader >= 0 && follower >= 0, said
	})
	return leader, follower
}

func formOneCluster(t *testing.T, s *stage) {
	start := time.Now()
	for _, p := range s.servers {
		p.start()
	}
	s.agent.start()
	s.cluster(t)
	for _, a := range s.apis {
		eventually(t, 30*time.Second, a.base+"/readyz", func() (bool, string) {
			err := a.do(http.MethodGet, "/readyz", nil, nil)
			return err == nil, fmt.Sprint(err)
		})
	}
	var c cluster
	if err := s.apis[0].do(http.MethodGet, "/api/v1/cluster", nil, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Members) != 3 {
		t.Fatalf("members %+v, want three", c.Members)
	}
	t.Logf("figure: three servers formed cluster %s in %d ms", c.ClusterID, time.Since(start).Milliseconds())
	eventually(t, 30*time.Second, "the agent is seen", func() (bool, string) {
		var as agents
		err := s.apis[0].do(http.MethodGet, "/api/v1/agents", nil, &as)
		return err == nil && len(as.Agents) == 1 && as.Agents[0].Connected, fmt.Sprintf("%+v %v", as, err)
	})
}

func webService() object {
	backend := func(host string, weight int) object {
		return object{"address": host, "port": 8080, "weight": weight}
	}
	return object{
		"name": "web", "vip": vip, "port": 80, "scheduler": "wrr", "agents": object{"zone": "a"},
		"health_check": object{"type": "http", "path": "/", "expect_body": "^b[0-9]$", "interval": "500ms", "timeout": "400ms", "rise": 1, "fall": 2},
		"backends":     []object{backend("10.1.0.1", 3), backend("10.1.0.2", 2), backend("10.1.0.3", 1)},
	}
}

func echoService() object {
	return object{
		"name": "echo", "vip": vip, "port": 7000, "scheduler": "rr",
		"backends": []object{
			{"address": "10.1.0.1", "port": 7000},
			{"address": "10.1.0.3", "port": 7000},
		},
	}
}

func putToFollower(t *testing.T, s *stage) {
	_, follower := s.cluster(t)
	a := s.apis[follower]

	// Without a check the way is: commit, stream, journal, kernel.
	plain := webService()
	plain["name"], plain["port"] = "plain", 81
	delete(plain, "health_check")
	a.put(t, "/api/v1/services/plain", plain)
	t.Logf("figure: first request served %d ms after the answer of the PUT (no check)", firstServed(t, "http://"+vip+":81/").Milliseconds())
	a.put(t, "/api/v1/services/web", webService())
	t.Logf("figure: first request served %d ms after the answer of the PUT (with a health check that must pass first)", firstServed(t, webURL).Milliseconds())

	for host, weight := range map[string]int{"10.1.0.1": 3, "10.1.0.2": 2, "10.1.0.3": 1} {
		a.weight(t, "web", host, func(w int) bool { return w == weight })
	}
	a.applied(t, a.put(t, "/api/v1/services/echo", echoService()))
	got := spread(t, webURL, 120)
	t.Logf("120 requests at weights 3:2:1 were answered by %v", got)
	for name, want := range map[string]int{"b1": 60, "b2": 40, "b3": 20} {
		if got[name] < want-3 || got[name] > want+3 {
			t.Errorf("%s answered %d of 120, want %d", name, got[name], want)
		}
	}
	if err := a.do(http.MethodDelete, "/api/v1/services/plain", nil, nil); err != nil {
		t.Fatal(err)
	}
}

// firstServed is how long it takes until a request is served: one is sent every
// 5 ms, and given up after 200.
func firstServed(t *testing.T, url string) time.Duration {
	t.Helper()
	return eventually(t, 20*time.Second, "first request to "+url, func() (bool, string) {
		_, err := requestWithin(200*time.Millisecond, url)
		return err == nil, fmt.Sprint(err)
	})
}

func backendDies(t *testing.T, s *stage) {
	_, follower := s.cluster(t)
	a := s.apis[follower]
	s.backends["b2"].signal(syscall.SIGKILL)
	seen := a.weight(t, "web", "10.1.0.2", func(w int) bool { return w == 0 })
	kernelWeight(t, "10.1.0.2:8080", "0")
	t.Logf("figure: the dead backend's weight was 0 in the state %d ms after its death", seen.Milliseconds())
	got := spread(t, webURL, 60)
	if got["b2"] > 0 {
		t.Errorf("answers %v from a backend that is dead", got)
	}
	s.backends["b2"].start()
	a.weight(t, "web", "10.1.0.2", func(w int) bool { return w == 2 })
	kernelWeight(t, "10.1.0.2:8080", "2")
	if got = spread(t, webURL, 60); got["b2"] == 0 {
		t.Errorf("answers %v, none from the backend that came back", got)
	}
}

// kernelWeight waits until the director's kernel has a destination of the web
// service at a weight.
func kernelWeight(t *testing.T, destination, weight string) {
	t.Helper()
	eventually(t, 15*time.Second, "weight "+weight+" of "+destination+" in the kernel", func() (bool, string) {
		said := lines(lines(onDirector(t, "ipvsadm", "-Sn"), vip+":80 "), destination)
		return strings.Contains(said, "-w "+weight+"\n"), said
	})
}

func leaderDies(t *testing.T, s *stage) {
	leader, follower := s.cluster(t)
	l := startLoad(t, echo, webURL, 20)
	time.Sleep(500 * time.Millisecond) // lets the load run before the blow; nothing waits for it
	s.servers[leader].signal(syscall.SIGKILL)
	a := s.apis[follower]
	changed := webService()
	changed["labels"] = object{"after": "the leader's death"}
	var revision uint64
	down := eventually(t, 30*time.Second, "writes work again", func() (bool, string) {
		var answer struct{ Revision uint64 }
		err := a.do(http.MethodPut, "/api/v1/services/web", changed, &answer)
		revision = answer.Revision
		return err == nil, fmt.Sprint(err)
	})
	t.Logf("figure: writes work again %d ms after the leader was killed", down.Milliseconds())
	// The change arrives in the kernel too.
	extra := webService()
	extra["name"], extra["port"] = "extra", 82
	delete(extra, "health_check")
	revision = max(revision, a.put(t, "/api/v1/services/extra", extra))
	a.applied(t, revision)
	if _, err := request("http://" + vip + ":82/"); err != nil {
		t.Errorf("a service made after the leader's death: %v", err)
	}
	l.end(t, "leader killed")
	s.servers[leader].start()
	s.cluster(t)
}

func allServersDie(t *testing.T, s *stage) {
	l := startLoad(t, echo, webURL, 10)
	for _, p := range s.servers {
		p.signal(syscall.SIGKILL)
	}
	time.Sleep(2 * time.Second) // traffic goes on meanwhile; nothing waits for it
	s.agent.signal(syscall.SIGTERM)
	s.agent.start()
	agentHas := func(what string) {
		t.Helper()
		eventually(t, 20*time.Second, what, func() (bool, string) {
			_, err := request(webURL)
			return err == nil && s.agent.alive(), fmt.Sprint(err)
		})
	}
	agentHas("traffic after the agent's restart")
	time.Sleep(time.Second) // the restarted agent has run for a while when the load ends
	l.end(t, "all servers dead, agent restarted")

	// As after a reboot of the director: nothing of ours is in the kernel, and
	// no server is there. All comes back from the agent's cache.
	s.agent.signal(syscall.SIGKILL)
	for _, port := range []string{"80", "82", "7000"} {
		onDirector(t, "ipvsadm", "-D", "-t", vip+":"+port)
	}
	onDirector(t, "ip", "link", "del", "ipvs-manager")
	if _, err := request(webURL); err == nil {
		t.Fatal("requests are served though the director was wiped")
	}
	s.agent.start()
	agentHas("traffic from the agent's cache after the director was wiped")
	for _, p := range s.servers {
		p.start()
	}
	s.cluster(t)
}

func changesLoseNothing(t *testing.T, s *stage) {
	_, follower := s.cluster(t)
	a := s.apis[follower]
	l := startLoad(t, echo, webURL, 20)
	steps := []func(object){
		func(e object) { e["backends"].([]object)[0]["weight"] = 7 },
		func(e object) { e["scheduler"] = "wlc" },
		func(e object) {
			e["backends"] = append(e["backends"].([]object), object{"address": "10.1.0.2", "port": 7000})
		},
		func(e object) { e["scheduler"] = "sh"; e["backends"].([]object)[1]["weight"] = 1 },
	}
	e := echoService()
	for _, change := range steps {
		change(e)
		a.applied(t, a.put(t, "/api/v1/services/echo", e))
	}
	out := onDirector(t, "ipvsadm", "-Sn")
	for _, want := range []string{"-A -t " + echo + " -s sh", "-r 10.1.0.1:7000 -m -w 7", "-r 10.1.0.2:7000 -m", "-r 10.1.0.3:7000 -m -w 1"} {
		if !strings.Contains(lines(out, echo), want) {
			t.Errorf("the kernel lacks %q:\n%s", want, lines(out, echo))
		}
	}
	l.end(t, "weight, scheduler and backend changed")

	var answer struct{ Revision uint64 }
	if err := a.do(http.MethodDelete, "/api/v1/services/web", nil, &answer); err != nil {
		t.Fatal(err)
	}
	a.applied(t, answer.Revision)
	eventually(t, 10*time.Second, "the removed service's rules are gone", func() (bool, string) {
		left := lines(onDirector(t, "ipvsadm", "-Sn"), vip+":80 ")
		return left == "", left
	})
	if addrs := onDirector(t, "ip", "-o", "addr", "show", "dev", "ipvs-manager"); !strings.Contains(addrs, vip+"/32") {
		t.Errorf("interface and VIP should stay when a service is removed, but there is only:\n%s", addrs)
	}
}

// profileComesAndGoes: what a profile says of the director's kernel holds there
// while it is, under load, and what cannot be is told by the field.
func profileComesAndGoes(t *testing.T, s *stage) {
	_, follower := s.cluster(t)
	a := s.apis[follower]
	l := startLoad(t, echo, "http://"+vip+":82/", 10)
	before := onDirector(t, "ipvsadm", "-L", "--timeout")
	profile := object{"name": "edge", "agents": object{"zone": "a"}, "timeouts": object{"tcp": "7m", "udp": "33s"}}
	revision := a.put(t, "/api/v1/profiles/edge", profile)
	a.applied(t, revision)
	if got := onDirector(t, "ipvsadm", "-L", "--timeout"); !strings.Contains(got, "420 120 33") {
		t.Errorf("timeouts in the kernel: %s, at first %s", got, before)
	}
	type account struct {
		Applied struct {
			Converged bool
			Profile   struct {
				Name     string
				Revision uint64
			}
			Failures []struct{ Object, Reason string }
		}
	}
	var g account
	if err := a.do(http.MethodGet, "/api/v1/agents/director", nil, &g); err != nil || g.Applied.Profile.Name != "edge" || g.Applied.Profile.Revision != revision {
		t.Errorf("the agent's account is %+v, %v; want profile edge of revision %d", g, err, revision)
	}
	if seen := onDirector(t, os.Getenv("IPVS_MANAGER"), "observe", "--agent_dir", s.agentDir); !strings.Contains(seen, fmt.Sprintf("profile: edge, of revision %d", revision)) {
		t.Errorf("observe does not show the profile:\n%s", seen)
	}
	profile["sync_daemons"] = []object{{"role": "master", "interface": "nowhere"}}
	revision = a.put(t, "/api/v1/profiles/edge", profile)
	eventually(t, 30*time.Second, "the field that the director cannot have is named", func() (bool, string) {
		g = account{}
		err := a.do(http.MethodGet, "/api/v1/agents/director", nil, &g)
		f := g.Applied.Failures
		return err == nil && g.Applied.Profile.Revision == revision && !g.Applied.Converged && len(f) == 1 &&
			f[0].Object == "profile/edge" && strings.HasPrefix(f[0].Reason, "sync_daemons[0]: "), fmt.Sprintf("%+v, %v", g, err)
	})
	var answer struct{ Revision uint64 }
	if err := a.do(http.MethodDelete, "/api/v1/profiles/edge", nil, &answer); err != nil {
		t.Fatal(err)
	}
	a.applied(t, answer.Revision)
	if got := onDirector(t, "ipvsadm", "-L", "--timeout"); got != before {
		t.Errorf("timeouts in the kernel: %s, at first %s", got, before)
	}
	l.end(t, "a profile came, changed and went")
}

// cleanUp removes what the agent has made; what others have made stays.
func cleanUp(t *testing.T, s *stage) {
	manager := os.Getenv("IPVS_MANAGER")
	seen := onDirector(t, manager, "observe", "--agent_dir", s.agentDir)
	for _, want := range []string{"tcp/" + echo, "10.1.0.1:7000", "of others: fwmark/4242/ipv4", "of others: udp/198.18.0.1:53"} {
		if !strings.Contains(seen, want) {
			t.Errorf("observe does not show %q:\n%s", want, seen)
		}
	}
	// A plan of a file with another service alone adds it and removes ours.
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("services:\n- {name: new, vip: "+vip+", port: 8443, backends: [{address: 10.1.0.2}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := onDirector(t, "ipvsadm", "-Sn")
	planned := onDirector(t, manager, "plan", "--config", file, "--agent_dir", s.agentDir)
	for _, want := range []string{"add service tcp/" + vip + ":8443", "-> 10.1.0.2:8443", "delete service tcp/" + echo} {
		if !strings.Contains(planned, want) {
			t.Errorf("the plan lacks %q:\n%s", want, planned)
		}
	}
	if after := onDirector(t, "ipvsadm", "-Sn"); after != before {
		t.Errorf("a plan changed the kernel:\n%s\nbefore:\n%s", after, before)
	}
	counted := func() string {
		words := strings.Fields(lines(onDirector(t, "ipvsadm", "-Ln", "--stats", "--exact", "-t", echo), "TCP "))
		if len(words) < 3 {
			t.Fatalf("no statistics of %s: %q", echo, words)
		}
		return words[2] // connections
	}
	if n := counted(); n == "0" {
		t.Error("nobody has used the service, so there is nothing to set back")
	}
	onDirector(t, manager, "zero", "--agent_dir", s.agentDir)
	if n := counted(); n != "0" {
		t.Errorf("%s connections are counted after zero", n)
	}
	if out, err := tryOnDirector(manager, "cleanup", "--agent_dir", s.agentDir); err == nil || !strings.Contains(out, "another agent uses this directory") {
		t.Errorf("cleanup beside a running agent: %v\n%s", err, out)
	}
	s.agent.signal(syscall.SIGTERM)
	t.Log(onDirector(t, manager, "cleanup", "--agent_dir", s.agentDir))
	if left := lines(onDirector(t, "ipvsadm", "-Sn"), vip); left != "" {
		t.Errorf("services are left:\n%s", left)
	}
	if links := onDirector(t, "ip", "-o", "link"); strings.Contains(links, "ipvs-manager") {
		t.Errorf("the interface is left:\n%s", links)
	}
	if rules := onDirector(t, "iptables-legacy", "-t", "nat", "-S"); strings.Contains(rules, "IPVSKIT") {
		t.Errorf("packet-filter chains are left:\n%s", rules)
	}
}
