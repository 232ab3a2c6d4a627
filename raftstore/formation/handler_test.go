package formation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/raftstore"
)

// request sends body to a node's handler.
func request(t *testing.T, n *Node, method, path, body string) (int, map[string]any) {
	t.Helper()
	rec := httptest.NewRecorder()
	n.Handler().ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	var got map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatalf("%s %s answers %q, which is not JSON", method, path, rec.Body)
	}
	return rec.Code, got
}

func idleNode(t *testing.T) (*world, *disk, *Node) {
	t.Helper()
	w := newWorld(t, 1, 1)
	h := w.all()[0]
	n, err := New(Config{Store: h.disk})
	if err != nil {
		t.Fatal(err)
	}
	h.node = n
	return w, h.disk, n
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHostileBodies(t *testing.T) {
	_, d, n := idleNode(t)
	good := raftstore.Founding{Cluster: 7, Founders: []raftstore.Founder{{
		Member: 1, Incarnation: d.id.Incarnation, Name: d.id.Name, RaftAddr: d.id.RaftAddr, HTTPAddr: d.id.HTTPAddr,
	}}}
	second := raftstore.Founder{Member: 2, Incarnation: 99, Name: "n2", RaftAddr: "10.0.0.2:8110", HTTPAddr: "10.0.0.2:8010"}
	with := func(change func(f *raftstore.Founding)) string {
		f := good
		f.Founders = append([]raftstore.Founder{}, good.Founders...)
		change(&f)
		return encode(t, f)
	}
	many := func(f *raftstore.Founding) {
		for i := range maxServers {
			f.Founders = append(f.Founders, raftstore.Founder{
				Member: uint64(i + 10), Incarnation: uint64(i + 10), Name: fmt.Sprint(i), RaftAddr: fmt.Sprintf("h:%d", i+1), HTTPAddr: fmt.Sprintf("h:%d", i+1),
			})
		}
	}
	for name, tt := range map[string]struct {
		body   string
		status int
		say    string
	}{
		"nothing":               {"", 400, "JSON"},
		"not JSON":              {"\x00\xff{", 400, "JSON"},
		"a list":                {"[]", 400, "JSON"},
		"unknown field":         {`{"cluster":1,"size":"big"}`, 400, "size"},
		"wrong type":            {`{"cluster":"1"}`, 400, "cluster"},
		"negative":              {`{"cluster":-1}`, 400, "cluster"},
		"two values":            {`{"cluster":1}{"cluster":2}`, 400, "more than one"},
		"4 GB, nearly":          {`{"cluster":1,"founders":[` + strings.Repeat(" ", maxBody) + `]}`, 400, "bytes"},
		"deep":                  {strings.Repeat(`{"founders":[`, 5000), 400, "JSON"},
		"empty record":          {`{}`, 409, "names no cluster"},
		"no founders":           {`{"cluster":1,"founders":[]}`, 409, "0 founders"},
		"too many founders":     {with(many), 409, "founders"},
		"not this incarnation":  {with(func(f *raftstore.Founding) { f.Founders[0].Incarnation = 12345 }), 409, "lost its disk"},
		"not this name":         {with(func(f *raftstore.Founding) { f.Founders[0].Name = "other" }), 409, "other"},
		"not this address":      {with(func(f *raftstore.Founding) { f.Founders[0].HTTPAddr = "10.0.0.7:1" }), 409, "10.0.0.7:1"},
		"not this raft address": {with(func(f *raftstore.Founding) { f.Founders[0].RaftAddr = "10.0.0.7:1" }), 409, "10.0.0.7:1"},
		"member twice":          {with(func(f *raftstore.Founding) { s := second; s.Member = 1; f.Founders = append(f.Founders, s) }), 409, "same member ID"},
		"name twice":            {with(func(f *raftstore.Founding) { s := second; s.Name = "n1"; f.Founders = append(f.Founders, s) }), 409, "same name"},
		"address twice": {with(func(f *raftstore.Founding) {
			s := second
			s.HTTPAddr = "http://10.0.0.1:8010"
			f.Founders = append(f.Founders, s)
		}), 409, "same HTTP address"},
		"no member": {with(func(f *raftstore.Founding) { f.Founders[0].Member = 0 }), 409, "lacks"},
	} {
		status, got := request(t, n, "POST", pathFound, tt.body)
		if status != tt.status || !strings.Contains(fmt.Sprint(got["error"]), tt.say) {
			t.Errorf("%s: %d %v, want %d with %q", name, status, got["error"], tt.status, tt.say)
		}
		if _, told := got["cluster"]; !told {
			t.Errorf("%s: the answer names no cluster: %v", name, got)
		}
		if d.Identity().Cluster != 0 {
			t.Fatalf("%s: accepted", name)
		}
	}

	if status, got := request(t, n, "POST", pathFound, encode(t, good)); status != 200 || got["cluster"] != 7.0 {
		t.Errorf("a good record: %d %v", status, got)
	}
	if status, _ := request(t, n, "POST", pathFound, encode(t, good)); status != 200 {
		t.Errorf("the same record again: %d", status)
	}
	status, got := request(t, n, "POST", pathFound, with(func(f *raftstore.Founding) { f.Cluster = 8 }))
	if node, _ := got["node"].(map[string]any); status != 409 || node["cluster"] != 7.0 {
		t.Errorf("a second record: %d %v", status, got)
	}
}

func TestJoinRequests(t *testing.T) {
	w, d, n := idleNode(t)
	req := JoinRequest{Cluster: 7, Incarnation: 50, Name: "n9", RaftAddr: "10.0.0.9:8110", HTTPAddr: "10.0.0.9:8010"}
	if status, got := request(t, n, "POST", pathJoin, encode(t, req)); status != 409 || !strings.Contains(fmt.Sprint(got["error"]), "no cluster yet") {
		t.Errorf("an empty node is asked: %d %v", status, got)
	}
	if err := d.Found(raftstore.Founding{Cluster: 7, Founders: []raftstore.Founder{{
		Member: 1, Incarnation: d.id.Incarnation, Name: d.id.Name, RaftAddr: d.id.RaftAddr, HTTPAddr: d.id.HTTPAddr,
	}}}); err != nil {
		t.Fatal(err)
	}
	other := req
	other.Cluster = 8
	if status, got := request(t, n, "POST", pathJoin, encode(t, other)); status != 409 || !strings.Contains(fmt.Sprint(got["error"]), "belongs to cluster 7") {
		t.Errorf("for another cluster: %d %v", status, got)
	}
	nameless := req
	nameless.Name = ""
	if status, _ := request(t, n, "POST", pathJoin, encode(t, nameless)); status != 400 {
		t.Errorf("without a name: %d", status)
	}
	status, first := request(t, n, "POST", pathJoin, encode(t, req))
	if status != 200 {
		t.Fatalf("a good request: %d %v", status, first)
	}
	w.mu.Lock()
	w.hosts[req.HTTPAddr] = &host{w: w, node: n, disk: &disk{w: w, id: raftstore.Identity{Cluster: 7, Incarnation: 50}}}
	w.mu.Unlock()
	if _, again := request(t, n, "POST", pathJoin, encode(t, req)); again["member"] != first["member"] {
		t.Errorf("asked again: %v, then %v", first, again)
	}

	// Another member leads: the asker is sent there.
	w.mu.Lock()
	m := raftstore.Member{ID: 0x2, Incarnation: 60, Name: "n8", HTTPAddr: "10.0.0.8:8010"}
	w.clusters[7] = []raftstore.Member{m}
	leader := w.hosts["10.0.0.1:8010"]
	w.hosts["10.0.0.8:8010"] = &host{w: w, address: "10.0.0.8:8010", node: leader.node, disk: &disk{w: w, id: raftstore.Identity{Cluster: 7, Incarnation: 60}}}
	w.mu.Unlock()
	if status, got := request(t, n, "POST", pathJoin, encode(t, req)); status != http.StatusMisdirectedRequest || got["leader"] != "10.0.0.8:8010" {
		t.Errorf("a follower is asked: %d %v", status, got)
	}
	w.mu.Lock()
	w.hosts["10.0.0.8:8010"].node = nil
	w.mu.Unlock()
	if status, got := request(t, n, "POST", pathJoin, encode(t, req)); status != 503 || !strings.Contains(fmt.Sprint(got["error"]), "no leader") {
		t.Errorf("without a leader: %d %v", status, got)
	}
}

func TestOtherPaths(t *testing.T) {
	_, _, n := idleNode(t)
	for _, r := range [][2]string{{"GET", "/raft/v1/other"}, {"DELETE", pathNode}, {"GET", "/"}} {
		if status, got := request(t, n, r[0], r[1], ""); status < 400 || got["error"] == nil {
			t.Errorf("%v: %d %v", r, status, got)
		}
	}
	status, got := request(t, n, "GET", pathNode, "")
	if status != 200 || got["name"] != "n1" || got["cluster"] != 0.0 || fmt.Sprint(got["list"]) != "[10.0.0.1:8010]" {
		t.Errorf("node: %d %v", status, got)
	}
}

func FuzzBodies(f *testing.F) {
	f.Add(`{"cluster":1,"founders":[{"member":1,"incarnation":2,"name":"n1","raft_addr":"a:1","http_addr":"a:1"}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		var rec raftstore.Founding
		if err := decode(strings.NewReader(body), true, &rec); err == nil {
			_ = acceptable(rec, raftstore.Identity{Incarnation: 2, Name: "n1", RaftAddr: "a:1", HTTPAddr: "a:1"})
		}
		var req JoinRequest
		_ = decode(strings.NewReader(body), true, &req)
		var info Info
		if err := decode(strings.NewReader(body), false, &info); err == nil {
			decide(server(1), server(1).HTTPAddr, []answer{{address: "10.0.0.2:8010", info: &info}})
		}
	})
}
