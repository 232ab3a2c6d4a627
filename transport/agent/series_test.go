package agent

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

func TestRoughNumbers(t *testing.T) {
	for n := range uint64(2048) {
		if got := roughly(n).value(); got != n {
			t.Fatalf("%d became %d", n, got)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 10_000 {
		n := rnd.Uint64N(1 << (11 + rnd.UintN(31)))
		if got := roughly(n).value(); got > n || n-got > n/1000 {
			t.Fatalf("%d became %d", n, got)
		}
	}
	if got := roughly(1 << 60).value(); got != 2047<<31 {
		t.Errorf("more than can be: %d", got)
	}
}

var oneBackend = netip.MustParseAddrPort("10.1.0.1:80")

// readings are taken each ten seconds; the n-th counts n connections more.
func readings(h *history, from, to int, names ...string) {
	for n := from; n < to; n++ {
		var read []lbstate.Traffic
		for _, name := range names {
			t := lbstate.Traffic{Service: name, Connections: uint64(n * (n + 1) / 2), BytesIn: uint64(1000 * n), Active: uint64(n)}
			read = append(read, t)
			t.Backend = oneBackend
			read = append(read, t)
		}
		h.take(time.Unix(int64(10*n), 0), read)
	}
}

func TestAnHourIsKept(t *testing.T) {
	var h history
	readings(&h, 0, 500, "one", "two") // 83 minutes
	all, cut := h.lookup("", time.Unix(0, 0), 1e6)
	if len(all) != 2 || cut || len(all[0].GetAddress()) > 0 {
		t.Fatalf("%d services, %v", len(all), cut)
	}
	one, _ := h.lookup("one", time.Unix(0, 0), 1e6)
	if len(one) != 2 || len(one[0].GetAddress()) > 0 || len(one[1].GetAddress()) == 0 {
		t.Fatalf("a service and its backend: %v", one)
	}
	s := one[0]
	end, sum, last := int64(0), uint64(0), len(s.GetAt())-1
	for i, at := range s.GetAt() {
		if i > 0 && at-int64(s.GetSeconds()[i]) != end {
			t.Errorf("a time that ends at %d and has %d s follows one that ended at %d", at, s.GetSeconds()[i], end)
		}
		end = at
		sum += s.GetBytesIn()[i]
	}
	began := s.GetAt()[0] - int64(s.GetSeconds()[0])
	if end != 4990 || end-began < 3600-60 || end-began > 3600+120 || len(s.GetAt()) > fineKept+coarseKept {
		t.Errorf("%d samples from %d to %d", len(s.GetAt()), began, end)
	}
	if got, want := sum, uint64(100*(end-began)); got > want || want-got > want/500 {
		t.Errorf("%d bytes, want about %d", got, want)
	}
	if s.GetSeconds()[0] != 60 || s.GetSeconds()[last] != 10 || s.GetConnections()[last] != 499 || s.GetActive()[last] != 499 {
		t.Errorf("%v, %v", s.GetSeconds(), s.GetConnections())
	}
	few, _ := h.lookup("one", time.Unix(4960, 0), 1e6)
	if fmt.Sprint(few[0].GetAt()) != "[4970 4980 4990]" {
		t.Errorf("since a time: %v", few[0].GetAt())
	}
	if few, cut := h.lookup("one", time.Unix(0, 0), 50); len(few) != 1 || !cut {
		t.Errorf("%d series, cut %v", len(few), cut)
	}
	if none, _ := h.lookup("three", time.Unix(0, 0), 1e6); len(none) != 0 {
		t.Errorf("%v", none)
	}
}

// What is gone is forgotten, what comes anew begins anew, and there is a bound.
func TestSeriesComeAndGo(t *testing.T) {
	var h history
	readings(&h, 0, 20, "one", "two")
	readings(&h, 20, 30, "one")
	if len(h.all) != 2 {
		t.Errorf("%d series", len(h.all))
	}
	readings(&h, 30, 40, "one", "two")
	two, _ := h.lookup("two", time.Unix(0, 0), 1e6)
	if got := two[0].GetAt(); len(got) != 9 || got[0] != 310 {
		t.Errorf("%v", got)
	}
	for _, n := range two[0].GetConnections() {
		if n < 31 || n > 39 {
			t.Errorf("%v", two[0].GetConnections())
		}
	}
	// Counters that went back were zeroed, or are those of a new service.
	h.take(time.Unix(400, 0), []lbstate.Traffic{{Service: "one", Connections: 3}})
	one, _ := h.lookup("one", time.Unix(390, 0), 1e6)
	if got := one[0].GetConnections(); len(got) != 1 || got[0] != 3 {
		t.Errorf("%v", got)
	}
	many := make([]lbstate.Traffic, maxSeries+10)
	for i := range many {
		many[i].Service = fmt.Sprint(i)
	}
	for i := range 3 {
		h.take(time.Unix(int64(410+10*i), 0), many)
	}
	if len(h.all) > maxSeries {
		t.Errorf("%d series", len(h.all))
	}
}

func TestAnswersThatAreWrong(t *testing.T) {
	for _, p := range []*agentpb.Series{
		{At: []int64{1}},
		{At: []int64{1}, Seconds: []uint32{1}, Connections: []uint64{1, 2}},
		{Address: []byte{1, 2, 3}},
		{Address: []byte{1, 2, 3, 4}, Port: 70000},
		{At: make([]int64, 200), Seconds: make([]uint32, 200), Connections: make([]uint64, 200), PacketsIn: make([]uint64, 200), PacketsOut: make([]uint64, 200), BytesIn: make([]uint64, 200), BytesOut: make([]uint64, 200), Active: make([]uint64, 200)},
	} {
		if s, err := seriesFrom(p); err == nil {
			t.Errorf("taken: %+v", s)
		}
	}
	st := &stream{question: &question{id: 7, done: make(chan struct{})}}
	if err := st.counted(&agentpb.StatisticsPart{Id: 8, Last: true}); err != nil || st.question == nil {
		t.Errorf("an answer that nobody asked for: %v", err)
	}
	large := &agentpb.StatisticsPart{Id: 7, Series: []*agentpb.Series{{Service: string(make([]byte, 1<<20))}}}
	var err error
	for range 10 {
		if err == nil {
			err = st.counted(large)
		}
	}
	if err == nil {
		t.Error("an answer without an end was taken")
	}
}

func BenchmarkReading(b *testing.B) {
	var read []lbstate.Traffic
	for i := range 1000 {
		for j := range 11 {
			t := lbstate.Traffic{Service: fmt.Sprint("service-", i), BytesIn: uint64(i)}
			if j > 0 {
				t.Backend = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(j)}), 80)
			}
			read = append(read, t)
		}
	}
	var h history
	b.ReportAllocs()
	for i := range b.N {
		h.take(time.Unix(int64(10*i), 0), read)
	}
}
