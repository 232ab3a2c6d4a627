package peer

import (
	"context"
	"sync"
	"time"
)

// rateLimit spaces out bytes so that no more than rate pass in a second.
type rateLimit struct {
	rate int64 // bytes a second; 0: no limit

	mu   sync.Mutex // guards next
	next time.Time  // when the bytes taken so far have passed
}

func newRateLimit(rate int64) *rateLimit { return &rateLimit{rate: rate} }

// chunk is the size of the pieces to take, so that a piece waits for a short
// while only.
func (r *rateLimit) chunk(most int) int {
	if r.rate == 0 {
		return most
	}
	return int(min(int64(most), max(r.rate/10, 1)))
}

// take returns when n more bytes may pass, or with ctx's error.
func (r *rateLimit) take(ctx context.Context, n int) error {
	if r.rate == 0 {
		return ctx.Err()
	}
	r.mu.Lock()
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	wait := r.next.Sub(now)
	r.next = r.next.Add(time.Duration(float64(n) / float64(r.rate) * float64(time.Second)))
	r.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
