package reconcile

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// What the state can say of a service arrives here whole.
func TestFromViewIsWhole(t *testing.T) {
	s, err := lbstate.DecodeService([]byte(`
name: sip
vip: 2001:db8::10
port: 5060
protocol: udp
one_packet: true
scheduler: mh
scheduler_flags: [mh-port]
persistence: {engine: sip, timeout: 90s, prefix: 64}
snat: off
backends:
  - {address: 2001:db8:1::1, weight: 7, upper_threshold: 100, lower_threshold: 50}
  - {address: 2001:db8:1::2, forwarding: dr, state: drain, drain_timeout: 1m}
  - {address: 10.1.0.1, forwarding: tunnel, tunnel: {type: gue, port: 6080, checksum: remote}}
  - {address: 10.1.0.2, forwarding: tunnel, tunnel: {type: gre, checksum: "on"}}
  - {address: 10.1.0.3, state: disabled, forwarding: tunnel}
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
	d, failures := FromView(lbstate.View{Services: []lbstate.DesiredService{lbstate.Desired(lbstate.Effective(s, nil, nil, 1))}})
	if len(failures) > 0 {
		t.Fatal(failures)
	}
	addr := netip.MustParseAddr
	want := DesiredService{
		Name: "sip", SNAT: SNATOff,
		Service: Service{
			Key: AddrKey(UDP, netip.MustParseAddrPort("[2001:db8::10]:5060")), Scheduler: "mh", Flags: Persistent | OnePacket | Sched2,
			Timeout: 90 * time.Second, Prefix: 64, Engine: "sip",
		},
		Destinations: []Destination{
			{Addr: addr("10.1.0.1"), Port: 5060, Forwarding: Tunnel, Weight: 100, Encap: GUE, EncapPort: 6080, EncapFlags: TunnelRemoteChecksum},
			{Addr: addr("10.1.0.2"), Port: 5060, Forwarding: Tunnel, Weight: 100, Encap: GRE, EncapFlags: TunnelChecksum},
			{Addr: addr("2001:db8:1::1"), Port: 5060, Weight: 7, Upper: 100, Lower: 50},
			{Addr: addr("2001:db8:1::2"), Port: 5060, Forwarding: DR},
		},
		Until: map[netip.AddrPort]time.Time{netip.MustParseAddrPort("[2001:db8:1::2]:5060"): begun.Add(time.Minute)},
	}
	if got := d.Services[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}
