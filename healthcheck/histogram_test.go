package healthcheck

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A quantile is never below the true one, and at most 41% above it.
func TestQuantiles(t *testing.T) {
	var empty histogram
	if q := empty.quantile(0.5); q != 0 {
		t.Errorf("an empty one says %v", q)
	}
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Int64Range(int64(histogramFloor), int64(2*time.Second)), 1, 200).Draw(t, "latencies")
		q := rapid.SampledFrom([]float64{0.01, 0.5, 0.9, 0.99, 1}).Draw(t, "q")
		var h histogram
		for _, d := range all {
			h.add(time.Duration(d))
		}
		slices.Sort(all)
		rank := max(0, min(len(all)-1, int(float64(len(all))*q+0.999999)-1))
		exact, got := time.Duration(all[rank]), h.quantile(q)
		if got < exact-1 || float64(got) > float64(exact)*1.4143+1 {
			t.Fatalf("quantile %v of %d latencies is %v, found %v", q, len(all), exact, got)
		}
	})
}

func TestOldLatenciesFade(t *testing.T) {
	var h histogram
	for range 10_000 {
		h.add(time.Second)
	}
	for range 600 {
		h.add(time.Millisecond)
	}
	if q := h.quantile(0.9); q > 2*time.Millisecond {
		t.Errorf("after 600 of 1ms the 90%% quantile is %v", q)
	}
	h.add(0)
	h.add(time.Hour)
}
