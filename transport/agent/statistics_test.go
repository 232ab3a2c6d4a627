package agent_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// Statistics come on request, from the kernel to whoever asks the agent's server.
func TestStatisticsOnRequest(t *testing.T) {
	s := newSecured(t)
	kernel := fakekernel.New()
	r, err := reconcile.New(reconcile.Config{Kernel: kernel, Journal: reconcile.FileJournal(filepath.Join(t.TempDir(), "scope"))})
	if err != nil {
		t.Fatal(err)
	}
	s.put("web", 80, nil)
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	s.follow(r, func(c *agent.ClientConfig) {
		c.Credentials = creds(who.ClientTLS())
		agent.CountEvery(c, 20*time.Millisecond)
	})
	key := reconcile.AddrKey(reconcile.TCP, netip.MustParseAddrPort("192.0.2.10:80"))
	backend := netip.MustParseAddrPort("10.1.0.1:80")
	counted := reconcile.Counters{Connections: 5, BytesIn: 700, PacketsOut: 9}
	wait(t, "the service", func() bool { return kernel.Count(key, backend, counted) == nil })
	if err := kernel.Connect(key, backend, 3, 0); err != nil {
		t.Fatal(err)
	}
	ask := func(service string) agent.Statistics {
		t.Helper()
		var got agent.Statistics
		wait(t, "an answer", func() bool {
			var err error
			got, err = s.server.Statistics(t.Context(), "a1", service, time.Now().Add(-time.Hour))
			if err != nil && !errors.Is(err, agent.ErrBusy) && !errors.Is(err, agent.ErrNotConnected) {
				t.Fatal(err)
			}
			return err == nil
		})
		return got
	}
	wait(t, "a first reading", func() bool { return len(ask("web").Series) == 2 })
	counted.Connections += 4
	if err := kernel.Count(key, backend, counted); err != nil {
		t.Fatal(err)
	}
	var got agent.Statistics
	sum := func(series agent.Series) (n uint64) {
		for _, s := range series.Samples {
			n += s.Connections
		}
		return n
	}
	wait(t, "the four connections", func() bool { got = ask("web"); return sum(got.Series[1]) >= 4 })
	if b := got.Series[1]; b.Service != "web" || b.Backend != backend || b.Samples[len(b.Samples)-1].Active != 3 {
		t.Errorf("%+v", b)
	}
	if all := ask(""); len(all.Series) != 2 || all.Series[0].Service != "everywhere" || all.Series[1].Backend.IsValid() || all.Cut {
		t.Errorf("all services, without their backends: %d series, cut %v", len(all.Series), all.Cut)
	}
	if none := ask("mail"); len(none.Series) != 0 {
		t.Errorf("a service that is not there: %+v", none)
	}
	if _, err := s.server.Statistics(t.Context(), "a1", "", time.Now()); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("a second question at once: %v", err)
	}
	if _, err := s.server.Statistics(t.Context(), "a2", "", time.Now()); !errors.Is(err, agent.ErrNotConnected) {
		t.Errorf("an agent that is not there: %v", err)
	}
}

// An agent whose Applier does not count has no statistics, and says so.
func TestAgentWithoutStatistics(t *testing.T) {
	s := newSecured(t)
	var a applier
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	s.follow(&a, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	wait(t, "the refusal", func() bool {
		_, err := s.server.Statistics(t.Context(), "a1", "", time.Now())
		return errors.Is(err, agent.ErrNoStatistics)
	})
}

// deaf counts, and its readings take for ever.
type deaf struct{ applier }

func (d *deaf) Traffic(ctx context.Context) ([]lbstate.Traffic, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A kernel that cannot be read makes nobody wait.
func TestStatisticsThatCannotBeRead(t *testing.T) {
	s := newSecured(t)
	var d deaf
	who := s.issue(identity.ID{Role: identity.RoleAgent, Name: "a1"})
	s.follow(&d, func(c *agent.ClientConfig) { c.Credentials = creds(who.ClientTLS()) })
	wait(t, "an empty answer", func() bool {
		got, err := s.server.Statistics(t.Context(), "a1", "", time.Now())
		return err == nil && len(got.Series) == 0
	})
}
