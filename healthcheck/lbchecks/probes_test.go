package lbchecks

import (
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/lbstate"
)

// Every rule of a check reaches the engine. Whether a backend without a verdict
// gets traffic is for lbstate's effective state to say, so a check's initial
// state is not the engine's: that is what the store has.
func TestRulesOfACheck(t *testing.T) {
	seconds := func(n int) lbstate.Duration { return lbstate.Duration(time.Duration(n) * time.Second) }
	for _, initial := range []lbstate.Initial{lbstate.InitialDown, lbstate.InitialUp} {
		for known, want := range map[lbstate.HealthState]healthcheck.State{
			"": healthcheck.Unknown, lbstate.Unknown: healthcheck.Unknown, lbstate.Up: healthcheck.Up, lbstate.Down: healthcheck.Down,
		} {
			c, err := (&prober{}).checkOf("id", lbstate.ResolvedCheck{
				Service: "web", Backend: netip.MustParseAddrPort("10.1.0.1:8080"),
				Check: lbstate.HealthCheck{Type: "tcp", Interval: seconds(3), DownInterval: seconds(30), Timeout: seconds(2), Rise: 4, Fall: 5, Initial: initial},
			}, known)
			if err != nil {
				t.Fatal(err)
			}
			c.Probe = nil
			if c != (healthcheck.Check{
				ID: "id", Target: netip.MustParseAddrPort("10.1.0.1:8080"), Interval: 3 * time.Second, DownInterval: 30 * time.Second,
				Timeout: 2 * time.Second, Rise: 4, Fall: 5, Initial: want,
			}) {
				t.Errorf("initial %s, known %q: %+v", initial, known, c)
			}
		}
	}
}

// validChecks can be run on any operating system.
var validChecks = []string{
	`{type: tcp, mode: full, send: 'PING\r\n', expect: '+PONG', expect_body: '^.PONG', expect_limit: 100, via: {source: 127.0.0.1}}`,
	`{type: tcp, mode: half-open}`,
	`{type: tls, tls: {server_name: a.example, min_days: -1}}`,
	`{type: tls, tls: {skip_verify: true}}`,
	`{type: http, path: "/a?b=c", address: 127.0.0.1, host: a.example, method: POST, headers: {X-Probe: "1"}, http_version: 2, follow_redirects: 10, expect: ok}`,
	`{type: http, url: "https://a.example/", http_version: auto}`,
	`{type: https, path: /, host: "a.example:8443"}`,
	`{type: udp, send: '\x01', expect: '\x02'}`,
	`{type: udp}`,
	`{type: dns, dns: {name: a.example, type: AAAA, tcp: true, no_recursion: true, expect_addresses: ["2001:db8::1"]}}`,
	`{type: dns, dns: {name: ., type: SOA, expect_codes: [NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, YXRRSET, NXRRSET, NOTAUTH, NOTZONE]}}`,
	`{type: smtp, hello: checker.example, tls: {implicit: true}}`,
	`{type: grpc, grpc_service: a.b.C, host: a.example, tls: {}}`,
	`{type: exec, exec: {program: check-ldap, args: ["{address}"]}}`,
	`{type: all, checks: [{type: tcp}, {type: any, checks: [{type: udp}, {type: exec, exec: {program: x}}]}]}`,
}

// What lbstate lets in, this package can run: their rules agree, though neither
// knows the other's.
func TestValidChecksCanBeRun(t *testing.T) {
	valid := slices.Clone(validChecks)
	if runtime.GOOS == "linux" {
		valid = append(valid, `{type: icmp}`, `{type: icmp, packet_size: 1400}`, `{type: tcp, via: {interface: lo, mark: 7}}`)
	}
	for _, text := range valid {
		shared, err := lbstate.DecodeCheck([]byte(`{name: probe, check: ` + text + `}`))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		s := lbstate.Service{Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80, HealthCheck: &shared.Check}.WithDefaults()
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if p, err := (&prober{execDir: "/usr/lib/checks"}).probeOf(*s.HealthCheck); err != nil || p == nil {
			t.Errorf("%s: %v, %v", text, p, err)
		}
	}
}

// What this host cannot run blames nobody, and says why.
func TestUnrunnableChecksAreInconclusive(t *testing.T) {
	exec := lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: "true"}}
	up := lbstate.HealthCheck{Type: "all", Checks: []lbstate.HealthCheck{exec}}
	for _, c := range []struct {
		check   lbstate.HealthCheck
		execDir string
		found   string
	}{
		{lbstate.HealthCheck{Type: "quic"}, "", "older than the check"},
		{exec, "", "only where this host's configuration allows them"},
		{up, "", "only where this host's configuration allows them"},
		{lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: "../true"}}, "/usr/bin", "without the name of a program"},
		{lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: "/bin/true"}}, "/usr/bin", "without the name of a program"},
		{lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: ".."}}, "/usr/bin", "without the name of a program"},
		{lbstate.HealthCheck{Type: "exec"}, "/usr/bin", "without the name of a program"},
		{lbstate.HealthCheck{Type: "exec", Exec: &lbstate.CheckExec{Program: "no-such-program"}}, t.TempDir(), "no such file"},
		{lbstate.HealthCheck{Type: "dns"}, "", "without a name to ask for"},
		{lbstate.HealthCheck{Type: "tcp", Send: `\`}, "", "ends in a single"},
		{lbstate.HealthCheck{Type: "tls", TLS: &lbstate.CheckTLS{CA: "x"}}, "", "has no certificate"},
	} {
		check, err := (&prober{execDir: c.execDir}).checkOf("id", lbstate.ResolvedCheck{Backend: netip.MustParseAddrPort("127.0.0.1:1"), Check: c.check}, lbstate.Unknown)
		if err != nil {
			t.Fatal(err)
		}
		res, err := healthcheck.Once(t.Context(), check)
		if err != nil || res.Class != healthcheck.Local || !strings.Contains(res.Found, c.found) {
			t.Errorf("%+v: %v, %v; want %q", c.check, res, err, c.found)
		}
		if c.check.Type == "exec" && c.execDir == "" && !strings.Contains(res.Advice, "--allow_exec_checks") {
			t.Errorf("%+v does not say what to do", res)
		}
	}
}

// FuzzValidChecks looks for a check that lbstate lets in and this package cannot
// run.
func FuzzValidChecks(f *testing.F) {
	for _, text := range validChecks {
		f.Add(text)
	}
	for _, text := range []string{
		`{type: http, url: "http://[::1%25lo]:1/a?b#c"}`, `{type: http, url: "https://me@a/"}`, `{type: http, url: "http://a:0/"}`,
		`{type: http, path: "/a b"}`, `{type: http, path: /é}`, `{type: http, path: "/%zz"}`, `{type: https, path: "/?#", host: é}`,
		`{type: dns, dns: {name: é.example}}`, `{type: dns, dns: {name: ` + strings.Repeat("abcdefg.", 31) + `abcde.}}`, `{type: dns, dns: {name: a.b.}}`,
		`{type: smtp, hello: é}`, `{type: grpc, host: "é"}`, `{type: http, path: /, method: "G{T"}`, `{type: http, path: /, headers: {"a{b": c}}`,
		`{type: udp, send: '` + strings.Repeat("x", 4096) + `'}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		shared, err := lbstate.DecodeCheck([]byte(`{name: probe, check: ` + text + `}`))
		if err != nil {
			return
		}
		s := lbstate.Service{Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80, HealthCheck: &shared.Check}.WithDefaults()
		if s.Validate() != nil || s.HealthCheck.Use != "" || runtime.GOOS != "linux" {
			return
		}
		if _, err := (&prober{execDir: "/usr/lib/checks"}).probeOf(*s.HealthCheck); err != nil {
			t.Errorf("%+v: %v", *s.HealthCheck, err)
		}
	})
}
