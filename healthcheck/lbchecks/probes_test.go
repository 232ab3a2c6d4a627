package lbchecks

import (
	"net/netip"
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
			c, err := checkOf("id", lbstate.ResolvedCheck{
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
	if _, err := checkOf("id", lbstate.ResolvedCheck{Check: lbstate.HealthCheck{Type: "quic"}}, lbstate.Unknown); err == nil {
		t.Error("a type that cannot be run was taken")
	}
}
