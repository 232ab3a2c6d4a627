package healthcheck

import (
	"math"
	"time"
)

// histogram counts latencies in buckets that grow by the square root of two,
// from 64 µs up to 3 s. All counts are halved when one is full, so old
// latencies fade.
type histogram [32]uint8

const histogramFloor = 64 * time.Microsecond

func (h *histogram) add(d time.Duration) {
	i := 0
	if d > histogramFloor {
		i = min(int(math.Ceil(2*math.Log2(float64(d)/float64(histogramFloor)))), len(h)-1)
	}
	if h[i] == math.MaxUint8 {
		for j := range h {
			h[j] /= 2
		}
	}
	h[i]++
}

// quantile is the upper bound of the bucket in which the q-th part of the
// latencies ends (0 < q <= 1), 0 without any.
func (h *histogram) quantile(q float64) time.Duration {
	total := 0
	for _, n := range h {
		total += int(n)
	}
	rank := int(math.Ceil(q * float64(total)))
	for i, n := range h {
		if rank -= int(n); n > 0 && rank <= 0 {
			return time.Duration(float64(histogramFloor) * math.Pow(2, float64(i)/2))
		}
	}
	return 0
}
