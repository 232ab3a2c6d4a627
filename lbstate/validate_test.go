package lbstate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const base = `{name: web, vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1}]`

// Each rule, with the paths of the faults that it gives and a part of what the
// fault says. Text that starts with a comma goes on from base. INV-41.
func TestValidateService(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct{ text, want string }{
		{`}`, ""},
		{`, name: Web}`, `name: "Web" is not a name`},
		{`, name: -web}`, "name: "},
		{`, name: ""}`, "name: "},
		{`, name: ` + long[:64] + `}`, "name: "},
		{`, name: ` + long[:63] + `}`, ""},
		{`, labels: {"": a}}`, "labels: has a label without a key"},
		{`, labels: {a: ` + long[:129] + `}}`, "labels.a: is too long"},
		{`, agents: {` + long[:129] + `: a}}`, "agents." + long[:100] + ": is too long"},
		{`, labels: {` + many("a%d: b", 33) + `}}`, "labels: there are too many"},
		{`, notes: ` + long + `}`, "notes: is too long"},
		{`, vip: null}`, "vip: is missing"},
		{`, vip: 0.0.0.0}`, "vip: is the unspecified address"},
		{`, vip: 224.0.0.1}`, "vip: is a multicast address"},
		{`, vip: 255.255.255.255}`, "vip: is the broadcast address"},
		{`, vip: 127.0.0.1}`, "vip: is a loopback address"},
		{`, vip: "fe80::1%eth0", backends: []}`, "vip: has a zone"},
		{`, vip: "fe80::1", backends: []}`, "vip: is a link-local address"},
		{`, vip: "::ffff:192.0.2.10"}`, ""},
		{`, vip: "2001:db8::1", backends: [{address: "2001:db8::2"}]}`, ""},
		{`, port: 65536}`, "backends[0].port: 65536 is above 65535, port: 65536 is above 65535"},
		{`, port: -1}`, "backends[0].port: , port: -1 is below 0"},
		{`, port: 0}`, "port: port 0 (every port) needs persistence"},
		{`, port: 0, persistence: {}}`, ""},
		{`, protocol: icmp}`, `protocol: "icmp" is not known`},
		{`, protocol: sctp}`, ""},
		{`, family: ipv4}`, "family: goes with fwmark alone"},
		{`, one_packet: true}`, "one_packet: is for udp alone"},
		{`, one_packet: true, protocol: udp}`, ""},
		{`, fwmark: 1}`, `backends[0].address: another family, family: "" is not known, port: does not go with fwmark, vip: does not go with fwmark`},
		{`, fwmark: 1, family: ipv4, vip: null, port: 0}`, ""},
		{`, fwmark: 1, family: ipv4, vip: null, port: 0, one_packet: true}`, "one_packet: "},
		{`, fwmark: 1, family: ipv6, vip: null, port: 0}`, "backends[0].address: another family"},
		{`, scheduler: none}`, `scheduler: "none" is not a scheduler of the kernel`},
		{`, scheduler: sh, scheduler_flags: [sh-port]}`, ""},
		{`, scheduler: sh, scheduler_flags: [mh-port]}`, `scheduler_flags[0]: "mh-port" is not a flag of scheduler sh`},
		{`, scheduler: sh, scheduler_flags: [sh-port, sh-port]}`, "scheduler_flags[1]: stands twice"},
		{`, persistence: {timeout: 1500ms}}`, "persistence.timeout: 1.5s is not allowed"},
		{`, persistence: {timeout: 745h}}`, "persistence.timeout: "},
		{`, persistence: {prefix: 33}}`, "persistence.prefix: 33 is above 32"},
		{`, persistence: {engine: sip}}`, "persistence.engine: is for udp alone"},
		{`, persistence: {engine: sip}, protocol: udp}`, ""},
		{`, persistence: {engine: rtp}, protocol: udp}`, `persistence.engine: "rtp" is not an engine`},
		{`, forwarding: nat}`, `backends[0].forwarding: "nat" is not known, forwarding: "nat" is not known`},
		{`, snat: maybe}`, `snat: "maybe" is not known`},
		{`, tunnel: {type: vxlan}}`, `tunnel.type: "vxlan" is not known`},
		{`, forwarding: tunnel, tunnel: {type: gue, port: 6080, checksum: remote}}`, ""},
		{`, forwarding: tunnel, tunnel: {type: gue}}`, "backends[0].tunnel.port: 0 is below 1, tunnel.port: 0 is below 1"},
		{`, forwarding: tunnel, tunnel: {type: gre, checksum: remote}}`, `backends[0].tunnel.checksum: "remote", tunnel.checksum: "remote"`},
		{`, forwarding: tunnel, tunnel: {type: ipip, checksum: "on", port: 1}}`, `backends[0].tunnel.checksum: , backends[0].tunnel.port: goes with type gue alone, tunnel.checksum: , tunnel.port: `},
		{`, forwarding: tunnel, tunnel: {type: vxlan}}`, `backends[0].tunnel.type: , tunnel.type: "vxlan"`},
		{`, min_healthy: -1}`, "min_healthy: -1 is below 0"},
		{`, fail_open: true, sorry_server: {address: 10.1.0.9}}`, "fail_open: excludes a sorry server"},
		{`, sorry_server: {address: 10.1.0.9, port: 8080}}`, ""},
		{`, sorry_server: {address: 10.1.0.1}}`, "sorry_server: is the same address and port as backends[0]"},
		{`, sorry_server: {address: 192.0.2.10}}`, "sorry_server.address: is the service's own VIP"},
		{`, sorry_server: {port: 8080}}`, "sorry_server.address: is missing"},
		{`, backends: [{port: 80}]}`, "backends[0].address: is missing"},
		{`, backends: [{address: 192.0.2.10}]}`, "backends[0].address: is the service's own VIP"},
		{`, backends: [{address: 224.0.0.1}]}`, "backends[0].address: is a multicast address"},
		{`, backends: [{address: "2001:db8::1"}]}`, "backends[0].address: another family than the service's needs forwarding: tunnel"},
		{`, backends: [{address: "2001:db8::1", forwarding: tunnel}]}`, ""},
		{`, backends: [{address: 10.1.0.1}, {address: 10.1.0.1, port: 80}]}`, "backends[1]: is the same address and port as backends[0]"},
		{`, backends: [{address: 10.1.0.1}, {address: 10.1.0.1, port: 81}]}`, ""},
		{`, backends: [{address: 10.1.0.1, port: 70000}]}`, "backends[0].port: 70000 is above 65535"},
		{`, backends: [{address: 10.1.0.1, port: 8080, forwarding: dr}]}`, "backends[0].port: forwarding dr cannot change the port"},
		{`, backends: [{address: 10.1.0.1}, {address: 10.1.0.2}, {address: 10.1.0.3, weight: 70000}]}`, "backends[2].weight: 70000 is above 65535"},
		{`, backends: [{address: 10.1.0.1, weight: -1}]}`, "backends[0].weight: -1 is below 0"},
		{`, backends: [{address: 10.1.0.1, state: gone}]}`, `backends[0].state: "gone" is not known`},
		{`, backends: [{address: 10.1.0.1, drain_timeout: -1s}]}`, "backends[0].drain_timeout: -1s is out of range"},
		{`, backends: [{address: 10.1.0.1, lower_threshold: 5}]}`, "backends[0].lower_threshold: is above the upper threshold"},
		{`, backends: [{address: 10.1.0.1, upper_threshold: 10, lower_threshold: 5}]}`, ""},
		{`, backends: [{address: 10.1.0.1, upper_threshold: 2147483648}]}`, "backends[0].upper_threshold: "},
		{`, backends: [{address: 10.1.0.1, tunnel: {}}]}`, "backends[0].tunnel: goes with forwarding: tunnel alone"},
		{`, backends: [{address: 10.1.0.1, notes: ` + long + `}]}`, "backends[0].notes: is too long"},
		{`, backends: [` + many("{address: 10.1.0.1, port: %d}", 1025) + `]}`, "backends: there are too many, backends[80]: is the same"},

		{`, health_check: {}}`, `health_check.type: "" is not known`},
		{`, health_check: {type: tcp}}`, ""},
		{`, health_check: {type: tcp, address: 10.9.9.9, port: 81}}`, ""},
		{`, health_check: {type: tcp, address: 0.0.0.0}}`, "health_check.address: cannot be dialed"},
		{`, health_check: {type: tcp, path: /}}`, "health_check.path: does not belong to type tcp"},
		{`, health_check: {type: http}}`, "health_check: an http check needs one of them"},
		{`, health_check: {type: http, path: /, url: "http://a/"}}`, "health_check.url: only one of them may be given"},
		{`, health_check: {type: http, url: "/x"}}`, "health_check.url: is not an absolute URL"},
		{`, health_check: {type: http, url: "http://a/", port: 80}}`, "health_check.url: port and host go with path"},
		{`, health_check: {type: http, path: x}}`, "health_check.path: is not a path"},
		{`, health_check: {type: http, path: /, host: "a b"}}`, "health_check.host: is not a host"},
		{`, health_check: {type: http, path: /, expect_status: "99"}}`, "health_check.expect_status: "},
		{`, health_check: {type: http, path: /, expect_status: "200-204, 301"}}`, ""},
		{`, health_check: {type: http, path: /, expect_body: "("}}`, "health_check.expect_body: "},
		{`, health_check: {type: http, path: /, expect_body: ` + long[:1025] + `}}`, "health_check.expect_body: is too long"},
		{`, health_check: {type: tcp, interval: 1ms}}`, "health_check.down_interval: 1ms, health_check.interval: 1ms is out of range"},
		{`, health_check: {type: tcp, timeout: 2h}}`, "health_check.timeout: 2h0m0s is out of range"},
		{`, health_check: {type: tcp, rise: 101, fall: -1}}`, "health_check.fall: -1 is below 1, health_check.rise: 101 is above 100"},
		{`, health_check: {type: tcp, initial: maybe}}`, `health_check.initial: "maybe" is not known`},
		{`, health_check: {use: web}}`, ""},
		{`, health_check: {use: web, type: tcp}}`, "health_check.use: a check that uses a shared one says nothing itself"},
		{`, health_check: {use: Web}}`, `health_check.use: "Web" is not a name`},
	} {
		text := override(t, base, c.text)
		s, err := DecodeService([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		wantFaults(t, c.text, s.WithDefaults().Validate(), c.want)
	}
}

func TestValidateProfile(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{name: edge}`, ""},
		{`{name: ""}`, "name: "},
		{`{name: edge, priority: 1000001}`, "priority: "},
		{`{name: edge, timeouts: {tcp: 900s, udp: 1500ms}}`, "timeouts.udp: 1.5s is not allowed"},
		{`{name: edge, timeouts: {tcp_fin: -1s}}`, "timeouts.tcp_fin: "},
		{`{name: edge, sync_daemons: [{role: master, interface: eth0}, {role: master, interface: eth0}]}`, "sync_daemons[1].role: stands twice"},
		{`{name: edge, sync_daemons: [{role: slave, interface: a/b, id: 256, max_length: 65536, group: 10.0.0.1, port: 65536, ttl: 256}]}`, "sync_daemons[0].group: , sync_daemons[0].id: , sync_daemons[0].interface: , sync_daemons[0].max_length: , sync_daemons[0].port: , sync_daemons[0].role: , sync_daemons[0].ttl: "},
		{`{name: edge, sysctls: {net.ipv4.vs.conntrack: "1"}}`, ""},
		{`{name: edge, sysctls: {kernel.panic: "1"}}`, "sysctls.kernel.panic: may not be set by a profile"},
		{`{name: edge, sysctls: {net.ipv4.vs.../../x: "1"}}`, "sysctls.net.ipv4.vs.../../x: may not"},
		{`{name: edge, sysctls: {net.ipv4.vs.conntrack: "yes"}}`, `sysctls.net.ipv4.vs.conntrack: "yes" is not a value`},
		{`{name: edge, allowed_prefixes: [192.0.2.0/24, "2001:db8::/32"]}`, ""},
		{`{name: edge, allowed_prefixes: [192.0.2.1/24]}`, "allowed_prefixes[0]: has bits beyond its length"},
		{`{name: edge, allowed_prefixes: [192.0.2.0/24, 192.0.2.0/24]}`, "allowed_prefixes[1]: stands twice"},
		{`{name: edge, snat: nat}`, "snat: "},
		{`{name: edge, drain_timeout: -1s}`, "drain_timeout: "},
		{`{name: edge, guard: {max_services: -1, max_percent: 101}}`, "guard.max_percent: , guard.max_services: "},
	} {
		p, err := DecodeProfile([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		wantFaults(t, c.text, p.withDefaults().Validate(), c.want)
	}
}

func TestValidateSettingsAndChecks(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{}`, ""},
		{`{change_revisions: -1}`, "change_revisions: "},
		{`{history_revisions: 1000001, history_bytes: 1, history_age: 1s, idempotency_keys: -5}`, "history_age: , history_bytes: , history_revisions: , idempotency_keys: "},
	} {
		s, err := DecodeSettings([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		wantFaults(t, c.text, s.WithDefaults().Validate(), c.want)
	}
	for _, c := range []struct{ text, want string }{
		{`{name: tcp, check: {type: tcp}}`, ""},
		{`{name: tcp}`, "check.type: "},
		{`{name: T, check: {type: tcp, fall: 999}}`, "check.fall: , name: "},
		{`{name: tcp, check: {use: other}}`, "check.use: a shared check cannot use another"},
	} {
		s, err := DecodeCheck([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		wantFaults(t, c.text, Object{Check: &s}.withDefaults().validate(), c.want)
	}
}

// What is wrong with the text itself, all of it at once.
func TestDecodeFaults(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`[`, ": not JSON or YAML"},
		{`[1]`, ": not JSON or YAML: an object is expected"},
		{`{name: a} {`, ": not JSON or YAML"},
		{"name: a\n---\nname: b\n", ": not JSON or YAML: there is more after the object"},
		{`{"name": "a", "notes": "\ud83d\ude00\/", "labels": {"a": "b"}}`, ""},
		{`{"backends": [{"port": 1, "port": 2}]}`, `: not JSON or YAML: the key "port" stands twice`},
		{`["a"]`, ": not JSON or YAML: an object is expected"},
		{`null`, ": not JSON or YAML: an object is expected"},
		{``, ": not JSON or YAML: an object is expected"},
		{`{backends: [{port: 1, port: 2}]}`, `: not JSON or YAML: yaml: unmarshal errors`},
		{`{snat: off, notes: yes, labels: {on: y}, tunnel: {checksum: on}, one_packet: yes}`, ""},
		{`{notes: true, one_packet: maybe}`, "notes: is not a text, one_packet: is not true or false"},
		{`{labels: {[a]: b}}`, ": not JSON or YAML"},
		{`{notes: &a [*a]}`, ": not JSON or YAML"},
		{`{name: a, name: b}`, ": not JSON or YAML"},
		{`{nme: web, backends: [{wait: 1}], health_check: {typ: tcp}}`, "backends[0].wait: there is no such field, health_check.typ: there is no such field, nme: there is no such field"},
		{`{name: 1, vip: web, port: "80", one_packet: 1, labels: [a], backends: {}}`, "backends: is not a list, labels: is not an object of texts, name: is not a text, one_packet: is not true or false, port: is not a number, vip: \"web\" is not an IP address"},
		{`{port: 1.5, fwmark: -1, revision: -1, health_check: {interval: 5}}`, "fwmark: is out of range, health_check.interval: is not a duration, port: is not a whole number, revision: is out of range"},
		{`{fwmark: 4294967296}`, "fwmark: is out of range"},
		{`{health_check: {interval: 5 s}, labels: {a: 1}, scheduler_flags: [1], backends: [1]}`, "backends[0]: is not an object, health_check.interval: \"5 s\" is not a duration, labels.a: is not a text, scheduler_flags[0]: is not a text"},
		{strings.Repeat(" ", MaxCommandBytes+1), ": not JSON or YAML: 1048577 bytes"},
	} {
		_, err := DecodeService([]byte(c.text))
		wantFaults(t, clip(c.text), err, c.want)
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`}`, ""},
		{`, backends: []}`, "backends: there is no backend"},
		{`, tunnel: {}}`, "tunnel: nothing here has forwarding: tunnel"},
		{`, tunnel: {}, backends: [{address: 10.1.0.1, forwarding: tunnel}]}`, ""},
		{`, backends: [{address: 10.1.0.1, weight: 0}]}`, "backends: no backend is active"},
		{`, backends: [{address: 10.1.0.1, state: drain}]}`, "backends: no backend is active"},
		{`, min_healthy: 2}`, "min_healthy: there are never so many"},
		{`, min_healthy: 2, backends: [{address: 10.1.0.1}, {address: 10.1.0.2}]}`, "min_healthy: does nothing"},
		{`, health_check: {type: tcp, timeout: 5s}}`, "health_check.timeout: is longer than the interval"},
	} {
		s, err := DecodeService([]byte(override(t, base, c.text)))
		if err != nil {
			t.Fatal(err)
		}
		f := faults(s.WithDefaults().Warnings())
		wantFaults(t, c.text, f.err(), c.want)
	}
}

// wantFaults compares an error with "path: part of the reason, path: …".
func wantFaults(t *testing.T, what string, err error, want string) {
	t.Helper()
	var found []Fault
	var invalid *ValidationError
	var syntax *SyntaxError
	switch {
	case errors.As(err, &invalid):
		found = invalid.Faults
	case errors.As(err, &syntax):
		found = syntax.Faults
	case err != nil:
		t.Errorf("%s: %v", what, err)
	}
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b Fault) int { return strings.Compare(a.Path, b.Path) })
	var wanted []string
	if want != "" {
		wanted = strings.Split(want, ", ")
	}
	ok := len(found) == len(wanted)
	for i := 0; ok && i < len(found); i++ {
		path, reason, _ := strings.Cut(wanted[i], ": ")
		ok = found[i].Path == path && strings.Contains(found[i].Reason, reason)
	}
	if !ok {
		t.Errorf("%.300s:\n got %.1000v\nwant %s", what, found, want)
	}
}

// override puts the fields of one YAML flow mapping over those of another.
func override(t *testing.T, under, over string) string {
	t.Helper()
	var fields, more map[string]any
	unyaml(t, under+"}", &fields)
	unyaml(t, "{"+strings.TrimPrefix(over, ","), &more)
	for k, v := range more {
		fields[k] = v
	}
	return toYAML(t, fields)
}

func many(format string, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(parts, ", ")
}
