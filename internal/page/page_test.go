package page

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "page:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "page")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if shots := os.Getenv("PAGE_SHOTS"); shots != "" {
		if err := os.MkdirAll(shots, 0o700); err != nil {
			return 0, fmt.Errorf("PAGE_SHOTS: %w", err)
		}
	}
	binary = filepath.Join(dir, "ipvs-manager")
	build := exec.Command("go", "build", "-o", binary, "./examples/ipvs-manager")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build ipvs-manager: %w\n%s", err, out)
	}
	stop, err := startBrowser(filepath.Join(dir, "chromium"))
	if err != nil {
		return 0, err
	}
	code := m.Run()
	stop()
	if err := goleak.Find(); code == 0 && err != nil {
		return 0, err
	}
	return code, nil
}

// TestServices: what is put, dies, returns and is deleted shows by itself.
func TestServices(t *testing.T) {
	m := singleon(t)
	p := open(t, m)
	p.sees("#link", "live")
	p.sees("#banners", "The data plane is simulated.", "--dataplane fake", "no packet is forwarded")
	p.sees("#service-list", "There are no services yet", m.url+"/api/v1/services/web")
	p.row("Agents", 0, "director0 | 127.0.0.1…", "converged", "*", "simulated", "*")
	p.row("Servers", 0, "node0 · this one | http 127.0.0.1…", "leader", "*", "leads")
	p.shots("empty")

	a, b := newTarget(t), newTarget(t)
	m.put("web", object{
		"vip": "192.0.2.10", "port": 80, "scheduler": "wrr", "labels": object{"team": "<b>shop</b>"},
		"backends": []object{
			{"address": "10.1.0.1", "port": 8080, "health_check": a.tcp()},
			{"address": "10.1.0.2", "port": 8080, "weight": 50, "health_check": b.get("/up")},
			{"address": "10.1.0.3", "port": 8080, "weight": 30, "state": "drain"},
			{"address": "10.1.0.4", "port": 8080, "state": "disabled"},
		},
	})
	p.row("Backends of web", 0, "10.1.0.1:8080", "healthy", "100", "*")
	p.row("Backends of web", 1, "10.1.0.2:8080", "healthy", "50", "*")
	p.row("Backends of web", 2, "10.1.0.3:8080", "draining", "0 of 30", "no check")
	p.row("Backends of web", 3, "10.1.0.4:8080", "out of service", "0 of 100", "no check")
	p.sees(".card", "web", "tcp 192.0.2.10:80", "scheduler wrr", "forwarding masq", "label team=<b>shop</b>", "2 of 4 in service")
	p.sees("#totals", "2 / 4", "none down", "1 / 1")
	p.row("Agents", 0, "director0 | 127.0.0.1…", "converged", "*", "simulated", "*")

	a.down()
	p.row("Backends of web", 0, "10.1.0.1:8080", "unhealthy | …", "0 of 100", "*")
	p.sees("#totals", "1 / 4", "1 down")
	p.sees(".card", "1 of 4 in service", "refused")
	m.put("dns", object{
		"vip": "2001:db8::53", "port": 53, "protocol": "udp", "one_packet": true, "snat": "all", "agents": object{"zone": "a"},
		"backends": []object{{"address": "2001:db8:1::1"}, {"address": "2001:db8:1::2"}},
	})
	m.put("mail", object{
		"fwmark": 7, "family": "ipv4", "notes": "Moves to the new racks in May.", "persistence": object{"timeout": "300s"},
		"backends": []object{{"address": "10.1.1.1", "health_check": a.tcp()}},
	})
	p.row("Backends of dns", 1, "[2001:db8:1::2]:53", "in service", "100", "no check")
	p.row("Backends of mail", 0, "10.1.1.1", "unhealthy | …", "0 of 100", "*")
	m.put("shop", object{
		"vip": "192.0.2.11", "port": 80, "min_healthy": 2, "sorry_server": object{"address": "10.1.9.9", "port": 8080},
		"backends": []object{
			{"address": "10.1.2.1", "health_check": b.get("/up")},
			{"address": "10.1.2.2", "state": "drain", "drain_timeout": "1h"},
		},
	})
	p.row("Backends of shop", 0, "10.1.2.1:80", "too few healthy", "0 of 100", "*")
	p.row("Backends of shop", 1, "10.1.2.2:80", "draining | until …", "0 of 100", "no check")
	p.row("Backends of shop", 2, "10.1.9.9:8080", "sorry server in charge", "–", "no check")
	p.sees("#service-list", "sorry server in charge", "healthy at least 2", "Moves to the new racks in May.")
	p.shots("services")
	m.delete("shop")

	// A change touches what changed alone: a focus elsewhere stays.
	p.eval(`document.querySelector('[aria-label="Edit dns"]').focus()`)
	a.up()
	p.row("Backends of web", 0, "10.1.0.1:8080", "healthy", "100", "*")
	if focus := read[string](p, `document.activeElement.getAttribute("aria-label") ?? ""`); focus != "Edit dns" {
		t.Errorf("the focus went to %q", focus)
	}
	p.row("Backends of mail", 0, "10.1.1.1", "healthy", "100", "*")

	// What the editor shows can be saved: it is configuration alone.
	for _, card := range []string{"dns", "mail", "web"} {
		p.click(fmt.Sprintf(`.card:has([aria-label="Edit %s"])`, card), "Edit")
		p.editing(card)
		p.click("#editor", "Save")
		p.closed()
	}

	p.write("#filter", "zone")
	eventually(t, "only dns is shown", func() (string, bool) {
		names := read[[]string](p, `[...document.querySelectorAll(".card h3")].map((e) => e.innerText)`)
		return strings.Join(names, " "), len(names) == 1 && names[0] == "dns"
	})
	p.write("#filter", "nothing like it")
	p.sees("#service-list", "No service has")
	p.write("#filter", "")

	m.delete("web")
	m.delete("dns")
	eventually(t, "mail is left", func() (string, bool) {
		text := p.text("#service-list")
		return text, strings.Contains(text, "mail") && !strings.Contains(text, "web") && !strings.Contains(text, "dns")
	})
}

// TestEditor: a service is made, edited and deleted by hand; a bad one is
// refused with each field's fault.
func TestEditor(t *testing.T) {
	m := singleon(t)
	p := open(t, m)
	p.expect("status of 422", "status of 412", "status of 409", "status of 400")

	p.click(".bar", "Add a service")
	p.sees("#editor", "New service")
	p.write("#editor-text", `name: shop
vip: 192.0.2.20
port: 70000
scheduler: fastest
backends:
- {address: 10.1.0.1, port: 8080, weight: -1}
- {address: 224.0.0.1, port: 8080}
- {address: 10.1.0.1, port: 8080, state: idle}
`)
	p.click("#editor", "Save")
	p.sees("#editor-faults", "port", "scheduler", "backends[0].weight", "backends[1].address", "multicast", "backends[2].state", "nothing was changed")
	p.shots("faults")
	if s := m.get("shop"); s != nil {
		t.Fatalf("a refused service was written: %v", s)
	}

	p.write("#editor-text", "name: shop\nvip: 192.0.2.20\nport: 80\ncolor: red\n")
	p.click("#editor", "Save")
	p.sees("#editor-faults", "color", "no such field")
	p.write("#editor-text", "name: [")
	p.click("#editor", "Save")
	p.sees("#editor-faults", "not JSON or YAML")
	p.write("#editor-text", "{\n  \"vip\": x}")
	p.click("#editor", "Save")
	p.sees("#editor-faults", "not JSON, at line 2")
	p.write("#editor-text", `{"labels": {"name": "other"}, "vip": "192.0.2.20"}`)
	p.click("#editor", "Save")
	p.sees("#editor-faults", "needs a name")
	p.write("#editor-text", "vip: 192.0.2.20\n")
	p.click("#editor", "Save")
	p.sees("#editor-faults", "needs a name")

	p.write("#editor-text", "name: shop\nvip: 192.0.2.20\nport: 80\nbackends:\n- {address: 10.1.0.1, port: 8080, weight: 7}\n")
	p.click("#editor", "Save")
	p.row("Backends of shop", 0, "10.1.0.1:8080", "in service", "7", "no check")
	p.closed()

	// A second service of that name does not replace the first.
	p.click(".bar", "Add a service")
	p.write("#editor-text", "name: shop\nvip: 192.0.2.21\nport: 80\n")
	p.click("#editor", "Save")
	p.sees("#editor-faults", "exists already")
	p.click("#editor", "Cancel")
	p.closed()

	p.click(".card", "Edit")
	text := p.editing("shop")
	if !strings.Contains(text, `"weight": 7`) || !strings.Contains(text, `"revision"`) || strings.Contains(text, "effective") {
		t.Errorf("the editor shows %s", text)
	}
	p.shots("editor")
	p.write("#editor-text", strings.Replace(text, `"weight": 7`, `"weight": 9`, 1))
	p.click("#editor", "Save")
	p.row("Backends of shop", 0, "10.1.0.1:8080", "in service", "9", "no check")
	p.closed()

	// Someone else changes it while the editor is open.
	p.click(".card", "Edit")
	stale := p.editing("shop")
	m.put("shop", object{"vip": "192.0.2.20", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080, "weight": 11}}})
	p.write("#editor-text", strings.Replace(stale, `"weight": 9`, `"weight": 10`, 1))
	p.click("#editor", "Save")
	p.sees("#editor-faults", "read it again")
	p.click("#editor", "Cancel")
	p.row("Backends of shop", 0, "10.1.0.1:8080", "in service", "11", "no check")

	p.click(".card", "Edit")
	p.editing("shop")
	m.put("shop", object{"vip": "192.0.2.20", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080, "weight": 12}}})
	p.click("#editor", "Delete")
	p.click("#editor", "Delete: press again")
	p.sees("#editor-faults", "read it again") // what is deleted is what is seen
	p.click("#editor", "Cancel")
	p.row("Backends of shop", 0, "10.1.0.1:8080", "in service", "12", "no check")

	p.click(".card", "Edit")
	p.editing("shop")
	p.click("#editor", "Delete")
	p.click("#editor", "Delete: press again")
	p.sees("#service-list", "There are no services yet")
	p.closed()
	if s := m.get("shop"); s != nil {
		t.Errorf("the deleted service is still there: %v", s)
	}
}

// TestHistory: the page shows who changed what and why, a revision's diff, and
// goes back to one; if anything came between, it does not.
func TestHistory(t *testing.T) {
	m := singleon(t)
	p := open(t, m)
	p.expect("status of 412")
	p.sees("#history-list", "Nothing was changed yet")
	put := func(query string, weight int) {
		m.put("web"+query, object{"vip": "192.0.2.10", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080, "weight": weight}}})
	}
	put("?reason=the+shop+opens", 7)
	put("", 3)
	p.row("History", 0, "2", "*", "127.0.0.1", "service web changed")
	p.row("History", 1, "1", "*", "127.0.0.1", "service web created | the shop opens")

	p.click("#history-list", "1")
	p.sees("#past[open]", "Revision 1", "the shop opens", "create service web", "backends[10.1.0.1:8080].weight: 3 → 7")
	p.shots("history")

	// Someone else changes it while it is read.
	put("", 5)
	p.click("#past", "Go back to this revision")
	p.click("#past", "Go back: press again")
	p.sees("#past-faults", "configuration is at revision 3", "read it again")
	p.click("#past", "Close")
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "5", "no check")

	p.click("#history-list", "1")
	p.sees("#past[open]", "weight: 5 → 7")
	p.write("#past-reason", "it was better")
	p.click("#past", "Go back to this revision")
	p.click("#past", "Go back: press again")
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "7", "no check")
	p.row("History", 0, "4", "*", "127.0.0.1", "service web changed | it was better")
	eventually(t, "the dialog is closed", func() (string, bool) {
		return p.text("#past"), !read[bool](p, `document.querySelector("#past").open`)
	})

	// What is now needs no going back.
	p.click("#history-list", "4")
	p.sees("#past[open]", "weight: 5 → 7", "this is the configuration now")
	if !read[bool](p, `document.querySelector("#past-back").disabled`) {
		t.Error("one can go back to what is now")
	}
	p.click("#past", "Close")

	for weight := range 8 {
		put("", weight+20)
	}
	p.row("History", 9, "3", "*", "*", "service web changed")
	if rows := p.table("History"); len(rows) != 10 {
		t.Errorf("%d revisions are shown", len(rows))
	}
	p.click("#history-list", "Show older")
	p.row("History", 11, "1", "*", "127.0.0.1", "service web created | the shop opens")
}

// editing waits until the editor has the service, and returns the text.
func (p *tab) editing(name string) string {
	p.t.Helper()
	text := ""
	eventually(p.t, "the editor has "+name, func() (string, bool) {
		text = read[string](p, `document.querySelector("#editor[open] #editor-text:enabled")?.value ?? ""`)
		return text + p.text("#editor"), strings.Contains(text, fmt.Sprintf(`"name": %q`, name))
	})
	return text
}

func (p *tab) closed() {
	p.t.Helper()
	eventually(p.t, "the editor is closed", func() (string, bool) {
		return p.text("#editor"), !read[bool](p, `document.querySelector("#editor").open`)
	})
}

// TestServerLost: a page whose server is gone says so, and goes on by itself
// when it is back.
func TestServerLost(t *testing.T) {
	m := singleon(t)
	p := open(t, m)
	p.expect("net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_INCOMPLETE_CHUNKED_ENCODING", "net::ERR_EMPTY_RESPONSE", "status of 503")
	m.put("web", object{"vip": "192.0.2.10", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080}}})
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "100", "no check")

	m.kill()
	p.sees("#link", "connection lost")
	p.sees("#banners", "This server does not answer.")
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "100", "no check")
	p.shots("lost")
	p.click(".card", "Edit")
	p.sees("#editor-faults", "did not answer")
	p.click("#editor", "Cancel")

	m.start()
	p.sees("#link", "live")
	eventually(t, "the banner is gone", func() (string, bool) {
		text := p.text("#banners")
		return text, !strings.Contains(text, "does not answer")
	})
	m.ready()
	m.put("web", object{"vip": "192.0.2.10", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080, "weight": 5}}})
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "5", "no check")
	p.row("Agents", 0, "director0 | 127.0.0.1…", "converged", "*", "simulated", "*")
}

// TestCluster: a cluster that waits for a founder says for whom, and a server
// that dies is shown as silent.
func TestCluster(t *testing.T) {
	servers, agent := cluster(t, 3)
	servers[0].start()
	servers[1].start()
	eventually(t, "the first server answers", func() (string, bool) {
		resp, err := http.Get(servers[0].url + "/healthz")
		if err != nil {
			return err.Error(), false
		}
		defer resp.Body.Close()
		return resp.Status, resp.StatusCode == http.StatusOK
	})
	p := open(t, servers[0])
	p.expect("status of 503") // the watch, while there is nothing to watch
	missing := strings.TrimPrefix(servers[2].url, "http://")
	p.sees("#banners", "The cluster is being formed.", missing)
	p.sees("#server-list", "in no cluster yet")
	p.sees("#agent-list", "No agent is known", "--server_type agent")
	p.sees("#totals", "not formed yet")
	p.shots("forming")

	servers[2].start()
	agent.start()
	p.sees("#link", "live")
	p.sees("#totals", "3 / 3")
	p.row("Agents", 0, "director1 | 127.0.0.1…", "converged", "*", "simulated", "*")
	p.sees("#banners", "Some agents are simulated.")
	servers[0].ready()
	servers[0].put("web", object{"vip": "192.0.2.10", "port": 80, "backends": []object{{"address": "10.1.0.1", "port": 8080}}})
	p.row("Backends of web", 0, "10.1.0.1:8080", "in service", "100", "no check")

	dies := 1
	for i, row := range p.table("Servers") {
		if row[1] == "leader" && i > 0 {
			dies = i
		}
	}
	servers[dies].kill()
	p.sees("#totals", "2 / 3", "1 silent")
	p.row("Servers", dies, fmt.Sprintf("node%d…", dies), "follower, silent", "*", "*")
	p.sees("#link", "live")
	p.row("Agents", 0, "director1 | 127.0.0.1…", "converged", "*", "simulated", "*")
	p.shots("silent")

	servers[0].delete("web")
	p.sees("#service-list", "There are no services yet")
}
