package raftstore

import (
	"context"
	"errors"
)

// WaitReady waits until this node is in a cluster that has a leader, and has
// applied every write that was acknowledged anywhere before the call. It returns
// nil then, ctx's error, or ErrStopped.
func (s *Store) WaitReady(ctx context.Context) error {
	for {
		changed := s.Changed() // before asking, so that no change is missed
		err := s.Barrier(ctx)
		if !errors.Is(err, ErrNoLeader) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopped:
			return ErrStopped
		}
	}
}
