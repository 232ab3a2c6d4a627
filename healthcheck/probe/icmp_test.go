package probe

import (
	"bytes"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// Whether this process may ping is the host's choice; if it may not, no target
// is blamed.
func TestICMP(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, err := NewICMP(ICMPConfig{}); err == nil {
			t.Error("a probe that cannot run was made")
		}
		return
	}
	newICMP := func(cfg ICMPConfig) *ICMP {
		p, err := NewICMP(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	allowed := func(p *ICMP, target string) bool {
		t.Helper()
		res := p.Probe(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(target), 0))
		if !res.OK() && (res.Class != healthcheck.Local || !strings.Contains(res.Advice, "ping_group_range")) {
			t.Errorf("%s: %+v", target, res)
		}
		return res.OK()
	}
	can := allowed(newICMP(ICMPConfig{}), "127.0.0.1")
	t.Logf("this process may ping: %v", can)
	allowed(newICMP(ICMPConfig{Size: 1400}), "127.0.0.5")
	allowed(newICMP(ICMPConfig{Size: 8}), "::1")
	allowed(newICMP(ICMPConfig{Via: Via{Source: netip.MustParseAddr("127.0.0.2"), Interface: "lo"}}), "127.0.0.1")
	allowed(newICMP(ICMPConfig{Address: netip.MustParseAddr("127.0.0.1")}), "192.0.2.1")
	local := outcome{class: healthcheck.Local, phase: "connect", advice: "CAP_NET_RAW"}
	ask(t, newICMP(ICMPConfig{Via: Via{Source: netip.MustParseAddr("192.0.2.1")}}), netip.MustParseAddrPort("127.0.0.1:0"), local)
	ask(t, newICMP(ICMPConfig{}), netip.MustParseAddrPort("[fe80::1%nosuch0]:0"), local)
	ask(t, newICMP(ICMPConfig{}), netip.AddrPort{}, outcome{class: healthcheck.Local, phase: "connect", found: "no address"})
	for _, size := range []int{-1, 7, 1401} {
		if _, err := NewICMP(ICMPConfig{Size: size}); err == nil {
			t.Errorf("size %d was taken", size)
		}
	}
}

func TestEchoReply(t *testing.T) {
	data := []byte("12345678")
	reply4 := append([]byte{0, 0, 1, 2, 3, 4, 0, 1}, data...)
	reply6 := append([]byte{129, 0, 1, 2, 3, 4, 0, 1}, data...)
	header := append([]byte{0x45}, make([]byte, 19)...)
	options := append([]byte{0x46}, make([]byte, 23)...)
	for _, tt := range []struct {
		name   string
		v6     bool
		packet []byte
		want   bool
	}{
		{"IPv4", false, reply4, true},
		{"IPv4 with its header", false, append(header, reply4...), true},
		{"IPv4 with options", false, append(options, reply4...), true},
		{"IPv6", true, reply6, true},
		{"IPv6 as IPv4", false, reply6, false},
		{"IPv4 as IPv6", true, reply4, false},
		{"the request", false, echoRequest(false, data), false},
		{"the request of IPv6", true, echoRequest(true, data), false},
		{"other data", false, append(bytes.Clone(reply4[:8]), "87654321"...), false},
		{"longer data", false, append(bytes.Clone(reply4), 0), false},
		{"shorter data", false, reply4[:15], false},
		{"another code", false, append([]byte{0, 1}, reply4[2:]...), false},
		{"nothing", false, nil, false},
		{"a header alone", false, header, false},
		{"a header that is too long", false, append([]byte{0x4f}, make([]byte, 19)...), false},
		{"a header that is too short", false, append([]byte{0x41}, make([]byte, 40)...), false},
	} {
		if got := isEchoReply(tt.v6, tt.packet, data); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	// What is sent sums up to zero, odd lengths too.
	for _, d := range []string{"12345678", "123456789", strings.Repeat("\xff", 301)} {
		if sum := internetChecksum(echoRequest(false, []byte(d))); sum != 0 {
			t.Errorf("the checksum of %q is %x", d, sum)
		}
	}
}

func FuzzEchoReply(f *testing.F) {
	data := []byte("12345678")
	f.Add(append([]byte{0, 0, 1, 2, 3, 4, 0, 1}, data...), false)
	f.Add(append([]byte{0x45}, make([]byte, 30)...), false)
	f.Add(append([]byte{129, 0, 1, 2, 3, 4, 0, 1}, data...), true)
	f.Fuzz(func(t *testing.T, packet []byte, v6 bool) {
		if isEchoReply(v6, packet, data) && !bytes.HasSuffix(packet, data) {
			t.Errorf("%x is taken for a reply to %x", packet, data)
		}
	})
}
