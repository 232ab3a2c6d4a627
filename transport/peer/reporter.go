package peer

import (
	"context"
	"errors"
	"sync"
)

// reporter calls unreachable from a goroutine of its own, so that a callee may
// call Send and a caller of Send is never called back. Reports of one kind about
// one member that were not yet delivered are merged.
type reporter struct {
	ready chan struct{}

	mu      sync.Mutex // guards pending
	pending map[reportKey]error
}

type reportKey struct {
	member uint64
	lost   bool // a connection was lost; not to be hidden by a full queue
}

func newReporter() *reporter {
	return &reporter{ready: make(chan struct{}, 1), pending: map[reportKey]error{}}
}

func (r *reporter) report(member uint64, err error) {
	var lost *LostError
	r.mu.Lock()
	key := reportKey{member, errors.As(err, &lost)}
	var was *LostError
	if !key.lost || !errors.As(r.pending[key], &was) || !was.Reset() {
		r.pending[key] = err
	}
	r.mu.Unlock()
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context, unreachable func(uint64, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.ready:
		}
		r.mu.Lock()
		pending := r.pending
		r.pending = map[reportKey]error{}
		r.mu.Unlock()
		for key, err := range pending {
			if key.lost {
				unreachable(key.member, err)
			}
		}
		for key, err := range pending {
			if !key.lost {
				unreachable(key.member, err)
			}
		}
	}
}
