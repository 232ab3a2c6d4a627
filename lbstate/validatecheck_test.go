package lbstate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// checkSeeds are checks of every type with all that they may have.
var checkSeeds = []string{
	`{type: tcp, address: 10.9.9.9, port: 81, mode: full, send: 'PING\r\n', expect: '+PONG', expect_body: '^.PONG', expect_limit: 100, via: {source: 10.0.0.1, interface: eth0, mark: 7}}`,
	`{type: tcp, mode: half-open}`,
	`{type: tls, send: 'a\x00', expect: b, tls: {server_name: a.example, min_days: 30}}`,
	`{type: tls, tls: {skip_verify: true, min_days: -1}}`,
	`{type: http, path: /healthz, address: 10.9.9.9, host: a.example, method: POST, headers: {X-Probe: "1", Accept: text/plain}, http_version: 2, follow_redirects: 2, expect_status: "200,204", expect: ok, expect_limit: 10, via: {mark: 1}}`,
	`{type: https, path: /, host: a.example, http_version: auto, tls: {server_name: b.example}, expect_body: ok}`,
	`{type: https, url: "https://a.example/", http_version: 1.1}`,
	`{type: udp, send: '\x01', expect: '\x02', port: 53}`,
	`{type: udp, quiet: 300ms}`,
	`{type: dns, dns: {name: a.example, type: AAAA, tcp: true, no_recursion: true, expect_addresses: ["2001:db8::1"]}}`,
	`{type: dns, dns: {name: ., type: SOA, expect_codes: [NOERROR, NXDOMAIN]}}`,
	`{type: icmp, address: 10.9.9.9, packet_size: 100}`,
	`{type: smtp, hello: checker.example, tls: {implicit: true, server_name: mx.example}}`,
	`{type: grpc, grpc_service: a.b.C, host: a.example, tls: {}}`,
	`{type: exec, exec: {program: check-ldap, args: ["{address}", "-p", "{port}"]}}`,
	`{type: all, checks: [{type: tcp}, {type: any, checks: [{type: icmp}, {type: dns, dns: {name: a.example}}]}]}`,
}

func decodeTestCheck(t testing.TB, text string) HealthCheck {
	t.Helper()
	c, err := DecodeCheck([]byte(`{name: probe, check: ` + text + `}`))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c.Check
}

// What is valid is the same after a way through each of its forms.
func TestChecksSurviveTheirForms(t *testing.T) {
	for _, text := range checkSeeds {
		shared := SharedCheck{Name: "probe", Check: *ptr(decodeTestCheck(t, text)).withDefaults()}
		if err := shared.Validate(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if again := *shared.Check.withDefaults(); !reflect.DeepEqual(again, shared.Check) {
			t.Errorf("%s: the defaults of\n%+v are\n%+v", text, shared.Check, again)
		}
		back, err := sharedCheckFrom(shared.proto())
		if err != nil || !reflect.DeepEqual(back, shared) {
			t.Errorf("%s: through protobuf\n%+v became\n%+v, %v", text, shared, back, err)
		}
		data, err := json.Marshal(shared)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeCheck(data); err != nil || !reflect.DeepEqual(back, shared) {
			t.Errorf("%s: through JSON\n%+v became\n%+v, %v", text, shared, back, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestValidateChecks(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct{ text, want string }{
		{`{type: ping}`, `check.type: "ping" is not known`},
		// A field that belongs to another type.
		{`{type: icmp, port: 1, path: /, url: "http://a/", host: a}`, "check.host: does not belong to type icmp, check.path: does not belong to type icmp, check.port: does not belong, check.url: does not belong"},
		{`{type: dns, dns: {name: a}, send: x, expect: x, mode: full, quiet: 1s}`, "check.expect: , check.mode: does not belong to type dns, check.quiet: , check.send: "},
		{`{type: exec, exec: {program: a}, address: 10.0.0.1, port: 1, via: {mark: 1}, tls: {}}`, "check.address: , check.port: , check.tls: , check.via: does not belong to type exec"},
		{`{type: tcp, tls: {}, dns: {name: a}, exec: {program: a}, checks: [{type: tcp}], grpc_service: a, hello: a, packet_size: 9}`, "check.checks: , check.dns: , check.exec: , check.grpc_service: , check.hello: , check.packet_size: , check.tls: does not belong to type tcp"},
		{`{type: udp, method: GET, headers: {a: b}, http_version: 2, follow_redirects: 1, expect_status: "200"}`, "check.expect_status: , check.follow_redirects: , check.headers: , check.http_version: , check.method: "},
		{`{use: web, tls: {}}`, "check.use: "},

		{`{type: tcp, mode: open}`, `check.mode: "open" is not known`},
		{`{type: tcp, mode: half-open, send: x}`, "check.mode: nothing can be sent"},
		{`{type: tcp, mode: half-open, expect_body: x}`, "check.mode: nothing can be sent"},
		{`{type: tcp, send: '\q'}`, `check.send: \q is not an escape`},
		{`{type: tcp, send: 'a\'}`, `check.send: ends in a single`},
		{`{type: tcp, expect: '\x1'}`, `check.expect: \x needs two`},
		{`{type: tcp, send: ` + long + `, expect: ` + long + `}`, "check.expect: is too long, check.send: is too long"},
		{`{type: tcp, expect: x, expect_limit: 1048577}`, "check.expect_limit: 1048577 is above"},
		{`{type: tcp, expect_limit: 5}`, "check.expect_limit: nothing is expected"},
		{`{type: tcp, expect_body: "("}`, "check.expect_body: "},

		{`{type: https}`, "check: an http check needs one of them"},
		{`{type: https, url: "http://a/"}`, "check.url: is not an absolute URL"},
		{`{type: http, path: //a}`, "check.path: is not a path"},
		{`{type: http, path: "/a b"}`, "check.path: is not a path"},
		{`{type: http, path: /é, host: é}`, "check.host: is not a host, check.path: is not a path"},
		{`{type: http, path: /a#b}`, "check.path: is not a path"},
		{`{type: http, url: "http://me@a/"}`, "check.url: is not an absolute URL"},
		{`{type: http, url: "http://:80/"}`, "check.url: is not an absolute URL"},
		{`{type: http, url: "http://a:0/"}`, "check.url: is not an absolute URL"},
		{`{type: http, url: "http://[::1]:8080/"}`, ""},
		{`{type: http, url: "http://a/", address: 10.0.0.1}`, "check.url: address, port and host go with path"[:len("check.url: address")]},
		{`{type: http, path: /, method: "GE T"}`, "check.method: is not a method"},
		{`{type: http, path: /, method: HEAD, expect: x}`, "check.method: has no body"},
		{`{type: http, path: /, http_version: 3}`, `check.http_version: "3" is not known`},
		{`{type: http, path: /, follow_redirects: 11}`, "check.follow_redirects: 11 is above 10"},
		{`{type: http, path: /, headers: {host: a, "a b": c, d: "e\nf"}}`, "check.headers.a b: is not a name, check.headers.d: cannot be sent, check.headers.host: is set by the probe"},
		{`{type: http, path: /, headers: {x-a: a, X-A: b}}`, "check.headers.*: stands twice"},
		{`{type: http, path: /, headers: {` + many("h%d: x", 33) + `}}`, "check.headers: there are too many"},

		{`{type: tls, tls: {server_name: "a b", min_days: 4000, ca: x, implicit: true}}`, "check.tls.ca: has no certificate, check.tls.implicit: does not belong to type tls, check.tls.min_days: 4000 is above, check.tls.server_name: is not one word"},
		{`{type: tls, tls: {skip_verify: true, ca: x}}`, "check.tls.ca: does not go with skip_verify"},

		{`{type: udp, quiet: 200ms, expect: x}`, "check.quiet: does not go with expect"},
		{`{type: udp, quiet: 1s}`, "check.quiet: silence as long as this"},
		{`{type: udp, timeout: 100ms}`, ""},
		{`{type: icmp, packet_size: 7}`, "check.packet_size: 7 is below 8"},
		{`{type: smtp, hello: "a\r\nQUIT"}`, "check.hello: is not one word"},
		{`{type: grpc, grpc_service: "a b", host: "a b"}`, "check.grpc_service: , check.host: is not one word"},

		{`{type: dns, dns: {name: ` + strings.Repeat("abcdefghi.", 26) + `}}`, "check.dns.name: is too long"},
		{`{type: dns}`, "check.dns: is missing"},
		{`{type: dns, dns: {}}`, "check.dns.name: is missing"},
		{`{type: dns, dns: {name: a..b, type: ANY, expect_codes: [OK]}}`, `check.dns.expect_codes[0]: "OK" is not known, check.dns.name: is not a domain name, check.dns.type: "ANY" is not known`},
		{`{type: dns, dns: {name: a, type: AAAA, expect_addresses: [10.0.0.1]}}`, "check.dns.expect_addresses[0]: cannot be in an answer of type AAAA"},
		{`{type: dns, dns: {name: a, expect_codes: [NXDOMAIN], expect_addresses: [10.0.0.1]}}`, "check.dns.expect_addresses: an answer with another code"},

		{`{type: exec}`, "check.exec: is missing"},
		{`{type: exec, exec: {program: ../bin/sh}}`, `check.exec.program: "../bin/sh" is not the name of a program`},
		{`{type: exec, exec: {program: /bin/sh, args: ["a\0"]}}`, `check.exec.args[0]: cannot be given, check.exec.program: "/bin/sh" is not the name`},
		{`{type: exec, exec: {program: ..}}`, "check.exec.program: "},
		{`{type: exec, exec: {program: a, args: [` + many("x%d", 33) + `]}}`, "check.exec.args: there are too many"},

		{`{type: tcp, via: {source: 0.0.0.0, interface: a/b}}`, "check.via.interface: is not the name, check.via.source: cannot be a source"},

		{`{type: all}`, "check.checks: there is nothing to combine"},
		{`{type: any, checks: [{type: tcp, interval: 1s, rise: 2}, {use: web}]}`, "check.checks[0].interval: belongs to the check that combines, check.checks[0].rise: , check.checks[1].use: a shared check cannot"},
		{`{type: all, checks: [` + many("{type: tcp, port: 8%d}", 17) + `]}`, "check.checks: there are too many"},
		{`{type: all, checks: [{type: any, checks: [` + many("{type: tcp, port: 8%d}", 10) + `]}, {type: any, checks: [` + many("{type: tcp, port: 8%d}", 10) + `]}]}`, "check.checks[1].checks: there are too many"},
		{`{type: all, checks: [{type: udp, path: /}]}`, "check.checks[0].path: does not belong to type udp"},
		{`{type: all, checks: [{type: udp, quiet: 1s}]}`, "check.checks[0].quiet: silence as long as this"},
	} {
		shared := SharedCheck{Name: "probe", Check: decodeTestCheck(t, c.text)}
		shared.Check = *shared.Check.withDefaults()
		err := shared.Validate()
		if prefix, reason, anyKey := strings.Cut(c.want, "*"); anyKey { // a key of a map, whichever comes last
			if err == nil || !strings.Contains(err.Error(), prefix) || !strings.Contains(err.Error(), strings.TrimPrefix(reason, ": ")) {
				t.Errorf("%s: %v", c.text, err)
			}
			continue
		}
		wantFaults(t, c.text, err, c.want)
	}
}

func TestChecksAreBoundedWhenRead(t *testing.T) {
	deep := `{type: tcp}`
	for range 500 {
		deep = `{type: all, checks: [` + deep + `]}`
	}
	_, err := DecodeCheck([]byte(`{name: probe, check: ` + deep + `}`))
	wantFaults(t, "a deep check", err, "check.checks[0].checks[0].checks: is too deep")
	_, err = DecodeCheck([]byte(`{name: probe, check: {type: dns, dns: {name: a, kind: b, expect_addresses: [x]}, exec: {path: /}, via: {}, tls: {sni: a}}}`))
	wantFaults(t, "unknown options", err, "check.dns.expect_addresses[0]: \"x\" is not an IP address, check.dns.kind: there is no such field, check.exec.path: there is no such field, check.tls.sni: there is no such field")
}

func TestCheckWarnings(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{type: tls}`, "check.tls.server_name: is not given"},
		{`{type: tls, tls: {skip_verify: true}}`, ""},
		{`{type: https, path: /, host: a.example}`, ""},
		{`{type: all, checks: [{type: tcp}, {type: smtp, tls: {}}]}`, "check.checks[1].tls.server_name: "},
		{`{type: smtp}`, ""},
	} {
		shared := SharedCheck{Name: "probe", Check: decodeTestCheck(t, c.text)}
		f := faults(Object{Check: &shared}.withDefaults().warnings())
		wantFaults(t, c.text, f.err(), c.want)
	}
}

func TestUnescape(t *testing.T) {
	got, err := Unescape(`a\r\n\t\0\\\x41\xfFé`)
	if want := "a\r\n\t\x00\\A\xffé"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{`\`, `a\q`, `\x`, `\x1`, `\xg0`, `\x+1`} {
		if _, err := Unescape(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// The hash of a check from before there were other types and options is the
// same for ever: it is stored in transitions, and compared between versions.
func TestCheckHashIsStable(t *testing.T) {
	backend := netip.MustParseAddrPort("10.1.0.1:8080")
	for text, want := range map[string]uint64{
		`{type: tcp}`: 0x8aa492c1775821d5,
		`{type: tcp, address: 10.9.9.9, port: 81, interval: 5s, down_interval: 7s, timeout: 3s, rise: 4, fall: 5, initial: up}`: 0xd0840dd4c064063a,
		`{type: http, path: /healthz, host: a.example, expect_status: "200,204", expect_body: ok}`:                              0x704f21b462bf8a93,
		`{type: http, url: "https://example.net/"}`:                                                                             0x84dabcca30cffc70,
	} {
		c := decodeTestCheck(t, text)
		if got := CheckHash(*c.withDefaults(), backend); got != want {
			t.Errorf("%s: %#x, want %#x", text, got, want)
		}
	}
	seen := map[uint64]string{}
	for _, text := range checkSeeds {
		c := decodeTestCheck(t, text)
		h := CheckHash(*c.withDefaults(), backend)
		if other, twice := seen[h]; twice {
			t.Errorf("%s and %s have the same hash", text, other)
		}
		seen[h] = text
	}
}

// A command has the version that its fields need and no higher: members that
// know no other go on with it.
func TestCommandsHaveTheLowestVersion(t *testing.T) {
	put := func(o Object) *lbstatepb.Command {
		op := &lbstatepb.Operation{}
		o.withDefaults().putInto(op)
		return transactionCommand(&lbstatepb.Transaction{Operations: []*lbstatepb.Operation{{}, op}})
	}
	for _, c := range corpus() {
		if v := commandVersion(c.command); v != 1 {
			t.Errorf("%s: version %d", c.name, v)
		}
	}
	newer := append([]string{`{type: http, path: /, address: 10.0.0.1}`, `{type: tcp, via: {}}`, `{type: http, path: /, method: GET}`}, checkSeeds...)
	for _, text := range newer {
		check := decodeTestCheck(t, text)
		backend := Backend{Address: netip.MustParseAddr("10.1.0.1"), Port: 80, HealthCheck: &check}
		commands := map[string]*lbstatepb.Command{
			"check":   put(Object{Check: &SharedCheck{Name: "a", Check: check}}),
			"service": put(Object{Service: &Service{Name: "a", HealthCheck: &check}}),
			"backend": put(Object{Service: &Service{Name: "a", Backends: []Backend{{}, backend}}}),
			"put backend": transactionCommand(&lbstatepb.Transaction{Operations: []*lbstatepb.Operation{
				{Operation: &lbstatepb.Operation_PutBackend{PutBackend: &lbstatepb.PutBackend{Service: "a", Backend: backend.proto()}}},
			}}),
		}
		for where, c := range commands {
			if v := commandVersion(c); v != 2 {
				t.Errorf("%s in %s: version %d", text, where, v)
			}
		}
	}
	old := decodeTestCheck(t, `{type: http, path: /, host: a, port: 1, expect_body: x, timeout: 1s, initial: up}`)
	if v := commandVersion(put(Object{Service: &Service{Name: "a", HealthCheck: &old}})); v != 1 {
		t.Errorf("a check of version 1 makes a command of version %d", v)
	}
}

// FuzzCheck reads any text as a check: what is valid has one form, and a text
// to send that is valid can be sent.
func FuzzCheck(f *testing.F) {
	for _, text := range checkSeeds {
		f.Add([]byte(fmt.Sprintf(`{name: probe, check: %s}`, text)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeCheck(data)
		if err != nil {
			return
		}
		o := Object{Check: &c}.withDefaults()
		o.warnings()
		if o.validate() != nil {
			return
		}
		body, err := record{Object: o}.encode()
		if err != nil {
			t.Fatal(err)
		}
		rec, err := decodeRecord(KindCheck, body)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := rec.withDefaults().Check.Check.canonical(); err != nil || !bytes.Equal(again, must(o.Check.Check.canonical())) {
			t.Fatalf("filled in again it differs, %v", err)
		}
		if _, err := Unescape(o.Check.Check.Send); err != nil {
			t.Fatal(err)
		}
	})
}

func (c HealthCheck) canonical() ([]byte, error) { return encode(c.proto()) }
