package peer

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkRoundTrip is the time from a Send to the answer to it, one at a time:
// what one caller alone pays for each hop.
func BenchmarkRoundTrip(b *testing.B) {
	x, y := newNode(b, 1, testConfig(b)), newNode(b, 2, testConfig(b))
	answered := make(chan struct{}, 1)
	y.onReceive = func(_ uint64, msgs []*raftpb.Message) {
		y.Send([]*raftpb.Message{message(raftpb.MsgAppResp, 2, 1, msgs[0].GetIndex())})
	}
	x.onReceive = func(uint64, []*raftpb.Message) { answered <- struct{}{} }
	x.discard, y.discard = true, true
	x.knows(y)
	y.knows(x)
	x.run()
	y.run()
	x.connected(2)
	y.connected(1)
	data := make([]byte, 256)
	for i := uint64(0); b.Loop(); i++ {
		x.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i, data)})
		select {
		case <-answered:
		case <-time.After(10 * time.Second):
			b.Fatal("no answer")
		}
	}
}

// BenchmarkThroughput sends messages of 64 entries of 256 bytes one way, a few
// of them in flight.
func BenchmarkThroughput(b *testing.B) {
	x, y := newNode(b, 1, testConfig(b)), newNode(b, 2, testConfig(b))
	const entries, inflight = 64, 16
	window := make(chan struct{}, inflight)
	y.onReceive = func(_ uint64, msgs []*raftpb.Message) {
		for range msgs {
			<-window
		}
	}
	y.discard = true
	x.knows(y)
	y.knows(x)
	x.run()
	y.run()
	x.connected(2)
	data := make([][]byte, entries)
	for i := range data {
		data[i] = make([]byte, 256)
	}
	b.SetBytes(entries * 256)
	for i := uint64(0); b.Loop(); i++ {
		window <- struct{}{}
		x.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i*entries, data...)})
	}
	b.ReportMetric(float64(b.N)*entries/b.Elapsed().Seconds(), "entries/s")
}
