package main

import (
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/examples/ipvs-manager/internal/releases"
)

// told is an agents' port that notes what it is told.
type told struct{ releases []string }

func (p *told) Release(name, held, reason string) error {
	p.releases = append(p.releases, name+" | "+held+" | "+reason)
	return nil
}

// A release that comes again when the log is applied at a restart must not let
// pass what an agent holds back today (INV-12).
func TestOldReleasesAreNotPassedOn(t *testing.T) {
	port, now := &told{}, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := releases.Release{At: now.Add(-time.Minute), By: "operator ann", Reason: "meant", Agent: "lb1", Held: "state without any service"}
	if err := releaseTo(port, r, now); err != nil || len(port.releases) != 1 || port.releases[0] != "lb1 | state without any service | operator ann: meant" {
		t.Errorf("%q, %v", port.releases, err)
	}
	r.At = now.Add(-releaseLasts - time.Second)
	if err := releaseTo(port, r, now); err == nil || !strings.Contains(err.Error(), "made at 2026-01-02T02:54:04Z") || len(port.releases) != 1 {
		t.Errorf("%q, %v", port.releases, err)
	}
}
