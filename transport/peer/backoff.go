package peer

import (
	"math/rand/v2"
	"time"
)

// backoff doubles from min to max; each pause is between half and all of it, so
// that members that lost each other together do not come back together.
type backoff struct {
	min, max, next time.Duration
}

func (b *backoff) pause() time.Duration {
	b.next = min(max(b.next*2, b.min), b.max)
	return b.next/2 + rand.N(b.next/2+1)
}

func (b *backoff) reset() { b.next = 0 }
