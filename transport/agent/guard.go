package agent

import (
	"fmt"
	"slices"
)

// Guard limits what a state may take away without saying so. Explicit
// removals in an unbroken chain of revisions always pass. The zero Guard is
// the default one.
type Guard struct {
	// MaxVanished and MinVanished hold a state back when more than this share
	// of the services, and more than that many of them, would vanish without
	// an explicit removal. Default 0.5 and 3; a negative MinVanished is none,
	// a MaxVanished of 1 lets all vanish but the last.
	MaxVanished float64
	MinVanished int

	AllowEmpty    bool   // lets a state without services pass
	AcceptCluster uint64 // lets the state of this cluster pass, though the journal is of another
}

func (g Guard) withDefaults() Guard {
	setDefault(&g.MaxVanished, 0.5)
	setDefault(&g.MinVanished, 3)
	return g
}

// judge says why next must be held back from an agent that has accepted have,
// or "" when it passes, and which services would vanish unexplained. removed
// holds the names that servers removed explicitly since have.
func (g Guard) judge(have, next *state, removed map[string]struct{}) (reason string, vanished []string) {
	if have.cluster == 0 {
		return "", nil
	}
	for name := range have.entries {
		if _, stays := next.entries[name]; stays {
			continue
		}
		if _, said := removed[name]; !said {
			vanished = append(vanished, name)
		}
	}
	slices.Sort(vanished)
	switch {
	case next.cluster != have.cluster && next.cluster != g.AcceptCluster:
		return fmt.Sprintf("state of cluster %x, but this agent holds the state of cluster %x: is the agent pointed at the right servers? If the cluster was replaced or restored, release it",
			next.cluster, have.cluster), vanished
	case next.cluster == have.cluster && next.revision < have.revision:
		return fmt.Sprintf("state of revision %d, but this agent has accepted revision %d: the server is behind, or the cluster lost acknowledged writes",
			next.revision, have.revision), vanished
	case len(vanished) == 0:
		return "", nil
	case len(next.entries) == 0 && !g.AllowEmpty:
		return fmt.Sprintf("state without any service, while %d would vanish that were never removed: if that is meant, release it", len(vanished)), vanished
	case len(vanished) > g.MinVanished && float64(len(vanished)) > g.MaxVanished*float64(len(have.entries)):
		return fmt.Sprintf("%d of %d services would vanish that were never removed: if that is meant, release it", len(vanished), len(have.entries)), vanished
	}
	return "", vanished
}
