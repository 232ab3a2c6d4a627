package healthcheck

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A log has transitions and first failures, not results; of inconclusive
// results, which come in thousands, one line a minute.
func TestLogIsSparing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		said := func() []string {
			var out []string
			for _, l := range logs.TakeAll() {
				fields := l.ContextMap()
				line := strings.TrimSpace(fmt.Sprint(l.Level, " ", l.Message, " ", fields["check"]))
				if l.LoggerName != "healthcheck" {
					t.Errorf("%q is said by %q", line, l.LoggerName)
				}
				out = append(out, line)
			}
			return out
		}
		expect := func(what string, want ...string) {
			t.Helper()
			if got := said(); !slices.Equal(got, want) {
				t.Errorf("%s: said %q, want %q", what, got, want)
			}
		}
		p := newTarget(OK)
		start(t, Config{Jitter: -1, Logger: zap.New(core)}, Check{ID: "a", Probe: p, Interval: time.Second})
		time.Sleep(time.Minute)
		expect("a minute of successes", "info check is up a")
		p.set(Refused)
		time.Sleep(time.Minute)
		expect("a minute of failures", "info check failed for the first time a", "warn check is down a")
		p.set(OK)
		time.Sleep(time.Minute)
		expect("a minute of successes again", "info check is up a")
		for range 10 {
			p.set(Refused)
			time.Sleep(time.Second)
			p.set(OK)
			time.Sleep(time.Second)
		}
		if got := said(); len(got) < 9 || len(got) > 10 || got[0] != "info check failed for the first time a" {
			t.Errorf("10 single failures: said %q", got)
		}
		p.set(Local)
		time.Sleep(3*time.Minute - 2*time.Second)
		if got := said(); len(got) != 3 || !strings.HasPrefix(got[0], "warn inconclusive results") {
			t.Errorf("three minutes of inconclusive results: said %q", got)
		}
	})
}

func TestLogTellsOfHoldsAndOfTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		c := newCrowd(t, 40, Hold{}, Config{Logger: zap.New(core)})
		c.n.setRefuse(errors.New("not the leader"))
		c.set(Refused, c.targets)
		time.Sleep(30 * time.Second)
		c.n.setRefuse(nil)
		c.ReleaseHold()
		time.Sleep(30 * time.Second)
		count := map[string]int{}
		for _, l := range logs.All() {
			count[l.Message]++
		}
		for message, want := range map[string]int{
			"mass failure suspected: falls are held back": 1,
			"hold ended": 1,
			"transitions could not be reported; trying again": 1,
			"check is down": 40,
		} {
			if count[message] != want {
				t.Errorf("%q %d times, want %d; all: %v", message, count[message], want, count)
			}
		}
	})
}
