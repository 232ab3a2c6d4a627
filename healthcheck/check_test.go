package healthcheck

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDefaultsOfACheck(t *testing.T) {
	c := Check{ID: "a", Probe: newTarget(OK)}.withDefaults()
	if c.Interval != 2*time.Second || c.DoubtInterval != c.Interval || c.DownInterval != c.Interval ||
		c.Timeout != time.Second || c.Rise != 2 || c.Fall != 3 {
		t.Errorf("%+v", c)
	}
	if err := (Check{ID: "a", Probe: newTarget(OK)}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestEachFaultOfACheckIsNamed(t *testing.T) {
	p := newTarget(OK)
	for _, tt := range []struct {
		check Check
		want  []string
	}{
		{Check{Probe: p}, []string{"id is empty"}},
		{Check{ID: "a"}, []string{`check "a"`, "probe is nil"}},
		{Check{}, []string{"id is empty", "probe is nil"}},
		{Check{ID: "a", Probe: p, Interval: time.Millisecond}, []string{"interval is 1ms", "doubt interval is 1ms", "down interval is 1ms"}},
		{Check{ID: "a", Probe: p, DownInterval: MaxInterval + 1}, []string{"down interval"}},
		{Check{ID: "a", Probe: p, DoubtInterval: -1}, []string{"doubt interval"}},
		{Check{ID: "a", Probe: p, Timeout: -1}, []string{"timeout is -1ns"}},
		{Check{ID: "a", Probe: p, Timeout: MaxInterval + 1}, []string{"timeout"}},
		{Check{ID: "a", Probe: p, Rise: -1, Fall: 1 << 20}, []string{"rise is -1", "fall is 1048576"}},
		{Check{ID: "a", Probe: p, Initial: 7}, []string{"initial state is state(7)"}},
	} {
		err := tt.check.Validate()
		if err == nil {
			t.Errorf("%+v is valid", tt.check)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
}

func TestAFaultyUpdateChangesNothing(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	p := newTarget(OK)
	if err := e.Update([]Check{{ID: "old", Probe: p}}, nil); err != nil {
		t.Fatal(err)
	}
	err = e.Update([]Check{{ID: "new", Probe: p}, {ID: "bad", Probe: p, Rise: -1}, {ID: "worse"}}, []string{"old"})
	if err == nil || !strings.Contains(err.Error(), "rise") || !strings.Contains(err.Error(), "probe is nil") {
		t.Errorf("%v: want both faults", err)
	}
	if all := e.Statuses(); len(all) != 1 || all[0].ID != "old" {
		t.Errorf("a faulty update left %+v", all)
	}
	e.Close()
	if err := e.Update(nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestFaultsOfAConfig(t *testing.T) {
	for _, cfg := range []Config{
		{Coalesce: -1},
		{ReportTimeout: -1},
		{BackOff: -1},
		{Slack: -1},
		{MaxBatch: -1},
		{InFlight: -1},
		{StalledInFlight: -1},
		{Jitter: 0.3},
		{Hold: Hold{Share: -1}},
		{Hold: Hold{Min: -1}},
		{Hold: Hold{Window: -1}},
		{Hold: Hold{Limit: -1}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func TestOnce(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.1:80")
	res, err := Once(t.Context(), Check{ID: "a", Target: at, Probe: ProbeFunc(func(_ context.Context, got netip.AddrPort) Result {
		if got != at {
			t.Errorf("asked %v", got)
		}
		return Result{Class: Refused, Latency: 5}
	})})
	if err != nil || res.Class != Refused || res.Latency != 5 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := Once(t.Context(), Check{}); err == nil {
		t.Error("a faulty check was run")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Once(ctx, Check{ID: "a", Probe: newTarget(OK)}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
}

func TestNamesOfStatesAndClasses(t *testing.T) {
	for want, got := range map[string]string{
		"unknown": Unknown.String(), "up": Up.String(), "down": Down.String(), "state(9)": State(9).String(),
		"ok": OK.String(), "local": Local.String(), "status": BadStatus.String(), "class(99)": Class(99).String(),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if len(Classes()) != len(classNames) {
		t.Errorf("%d classes have %d names", len(Classes()), len(classNames))
	}
	for _, c := range Classes() {
		if text, err := c.MarshalText(); err != nil || string(text) != c.String() {
			t.Errorf("%v marshals as %q, %v", c, text, err)
		}
	}
	for _, tt := range []struct {
		res  Result
		want string
	}{
		{Result{}, "ok"},
		{Result{Warning: "ends soon"}, "ok; ends soon"},
		{Result{Class: Refused, Phase: "connect", Expected: "a connection", Found: "a refusal", Advice: "start it"}, "refused in connect: expected a connection, found a refusal; start it"},
		{Result{Class: Local, Found: "no files"}, "local: no files"},
	} {
		if got := tt.res.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
