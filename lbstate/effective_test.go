package lbstate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// Each line: backends as "state weight health", the service's rule, and what
// becomes of them: "weight reason". INV-30.
func TestEffective(t *testing.T) {
	for _, c := range []struct{ rule, backends, want string }{
		{``, "active 100 -", "100 in service"},
		{``, "active 0 -", "0 weight 0"},
		{``, "drain 100 -, active 1 -", "0 draining, 1 in service"},
		{``, "disabled 100 up", "0 out of service"},
		{``, "active 100 up, active 100 down, active 100 unknown", "100 healthy, 0 unhealthy, 0 not yet up"},
		{``, "active 100 assumed, active 100 held", "100 assumed up, 100 held"},
		{``, "active 0 up, drain 5 down, disabled 5 held", "0 weight 0, 0 draining, 0 out of service"},
		{``, "active 100 down", "0 unhealthy"},

		{`fail_open: true`, "active 100 up, active 50 down", "100 healthy, 0 unhealthy"},
		{`fail_open: true`, "active 100 down, active 50 unknown, drain 5 down, active 0 down, disabled 9 down", "100 fail-open, 50 fail-open, 0 draining, 0 unhealthy, 0 out of service"},
		{`fail_open: true, min_healthy: 2`, "active 100 up, active 50 down", "100 healthy, 50 fail-open"},
		{`fail_open: true, min_healthy: 2`, "active 100 up, active 50 up, active 50 down", "100 healthy, 50 healthy, 0 unhealthy"},
		{`fail_open: true`, "drain 100 -", "0 draining"},

		{`sorry_server: {address: 10.9.9.9}`, "active 100 up, active 50 down", "100 healthy, 0 unhealthy, sorry 0 sorry server standing by"},
		{`sorry_server: {address: 10.9.9.9}`, "active 100 down, active 50 down", "0 unhealthy, 0 unhealthy, sorry 100 sorry server in charge"},
		{`sorry_server: {address: 10.9.9.9}, min_healthy: 2`, "active 100 up, active 50 down", "0 too few healthy, 0 unhealthy, sorry 100 sorry server in charge"},
		{`sorry_server: {address: 10.9.9.9}`, "drain 100 -", "0 draining, sorry 100 sorry server in charge"},
		{`sorry_server: {address: 10.9.9.9}`, "", "sorry 100 sorry server in charge"},
	} {
		s, err := DecodeService([]byte(`{name: web, vip: 192.0.2.10, port: 80, ` + c.rule + `}`))
		if err != nil {
			t.Fatal(err)
		}
		health := map[netip.AddrPort]BackendHealth{}
		for i, text := range strings.Split(c.backends, ", ") {
			b := Backend{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}
			var word string
			var weight int
			if n, _ := fmt.Sscan(text, &b.State, &weight, &word); n != 3 {
				continue
			}
			b.Weight = &weight
			at := netip.AddrPortFrom(b.Address, 80)
			switch word {
			case "-":
			case "assumed":
				b.HealthCheck = &HealthCheck{Type: "tcp", Initial: InitialUp}
			case "held":
				b.HealthCheck = &HealthCheck{Type: "tcp"}
				health[at] = BackendHealth{State: Up, Held: true}
			default:
				b.HealthCheck = &HealthCheck{Type: "tcp"}
				if word != "unknown" {
					health[at] = BackendHealth{State: HealthState(word)}
				}
			}
			s.Backends = append(s.Backends, b)
		}
		s = s.WithDefaults()
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		st := Effective(s, nil, health, 7)
		var got []string
		for _, b := range st.Backends {
			got = append(got, fmt.Sprintf("%d %s", b.EffectiveWeight, b.Reason))
		}
		d := Desired(st)
		if d.Version != 7 {
			t.Errorf("version %d", d.Version)
		}
		weights := map[netip.AddrPort]int{}
		for _, b := range st.Backends {
			if b.State != Disabled {
				weights[b.AddrPort()] = b.EffectiveWeight
			}
		}
		for _, b := range d.Backends {
			at := netip.AddrPortFrom(b.Address, b.Port)
			if b.Address == netip.MustParseAddr("10.9.9.9") {
				got = append(got, fmt.Sprintf("sorry %d %s", b.Weight, b.Reason))
				continue
			}
			if w, ok := weights[at]; !ok || w != b.Weight {
				t.Errorf("%s: %s has weight %d for directors, effective is %d", c.backends, at, b.Weight, w)
			}
			delete(weights, at)
		}
		if len(weights) > 0 {
			t.Errorf("%s: directors do not get %v", c.backends, weights)
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s with %q:\n got %s\nwant %s", c.backends, c.rule, text, c.want)
		}
	}
}

// What a director gets says everything, and survives the wire.
func TestDesired(t *testing.T) {
	s, err := DecodeService([]byte(`
name: web
vip: 2001:db8::10
port: 5060
protocol: udp
one_packet: true
scheduler: mh
scheduler_flags: [mh-port, mh-fallback]
persistence: {engine: sip, timeout: 90s, prefix: 64}
forwarding: tunnel
tunnel: {type: gue, port: 6080, checksum: remote}
sorry_server: {address: 10.1.0.9}
backends:
  - {address: 10.1.0.2, upper_threshold: 100, lower_threshold: 50}
  - {address: 2001:db8::1, tunnel: {type: gre, checksum: "on"}, state: drain, drain_timeout: 1m}
  - {address: 10.1.0.1, forwarding: tunnel, tunnel: {}}
  - {address: 10.1.0.3, state: disabled}
`))
	if err != nil {
		t.Fatal(err)
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.Backends[1].DrainSince = begun
	d := Desired(Effective(s, nil, nil, 9))
	if len(d.Backends) != 4 {
		t.Fatalf("%d backends", len(d.Backends))
	}
	if got := d.Backends[3].DrainUntil; !got.Equal(begun.Add(time.Minute)) {
		t.Errorf("drains until %v", got)
	}
	for i, want := range []string{"&{ipip 0 none}", "&{gue 6080 remote}", "&{gue 6080 remote}", "&{gre 0 on}"} {
		if got := fmt.Sprint(d.Backends[i].Tunnel); got != want {
			t.Errorf("tunnel %d is %s, not %s", i, got, want)
		}
	}
	back, err := DesiredFromProto(d.Proto())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", back.Proto()), fmt.Sprintf("%+v", d.Proto()); got != want {
		t.Errorf("over the wire:\n got %s\nwant %s", got, want)
	}
}

// A check's hash is written into the log by one program and compared by
// another, so it must never change.
func TestCheckHashIsFixed(t *testing.T) {
	c := HealthCheck{Type: "http", Path: "/healthz", Host: "example.net", Rise: 1}
	for backend, want := range map[string]uint64{
		"10.1.0.1:80":        0xd61fd371d28b4352,
		"[2001:db8::1]:8080": 0x810ab21c6018d7a0,
	} {
		if got := CheckHash(*c.withDefaults(), netip.MustParseAddrPort(backend)); got != want {
			t.Errorf("of %s: %#x, not %#x", backend, got, want)
		}
	}
}

func decodeDesired(data []byte) (*lbstatepb.DesiredService, error) {
	p := &lbstatepb.DesiredService{}
	return p, proto.Unmarshal(data, p)
}
