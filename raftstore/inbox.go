package raftstore

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// inbox is what has come for the loop. Whoever puts something in wakes it.
type inbox struct {
	ready chan struct{} // holds a token while there may be something

	mu sync.Mutex // guards the fields below
	arrivals
	msgBytes int           // of messages
	room     chan struct{} // not nil while someone waits for room; closed when there is
}

// arrivals is what the loop takes at once.
type arrivals struct {
	messages  []received
	responses []*raftpb.Message // of the stages
	proposals []*proposal
	calls     []func(*loop)
	applied   *progress // the last one counts
	changes   []changeDone
	appends   int // tasks that the append stage has done
	applies   int // tasks that the apply stage has done
	fatal     error
}

type received struct {
	from uint64
	at   time.Time
	msgs []*raftpb.Message
}

// maxInboxBytes bounds the messages that wait; a connection that brings more is
// held back. What raft lets be on its way is less.
const maxInboxBytes = 64 << 20

func (in *inbox) put(fn func()) {
	in.mu.Lock()
	fn()
	in.mu.Unlock()
	wake(in.ready)
}

func (in *inbox) call(fn func(*loop)) { in.put(func() { in.calls = append(in.calls, fn) }) }

// fail stops the loop; the first reason counts.
func (in *inbox) fail(err error) {
	in.put(func() {
		if in.fatal == nil {
			in.fatal = err
		}
	})
}

func messageBytes(msgs []*raftpb.Message) int {
	n := 0
	for _, m := range msgs {
		n += 128
		for _, e := range m.Entries {
			n += 128 + len(e.Data)
		}
	}
	return n
}

// receive takes messages from the transport. Where too many wait it blocks,
// but never for those without entries: an election does not wait for data.
func (in *inbox) receive(ctx context.Context, r received) {
	size := messageBytes(r.msgs)
	for {
		in.mu.Lock()
		if in.msgBytes+size <= maxInboxBytes || in.msgBytes == 0 || size <= 128*len(r.msgs) {
			break
		}
		if in.room == nil {
			in.room = make(chan struct{})
		}
		room := in.room
		in.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return
		}
	}
	in.msgBytes += size
	in.messages = append(in.messages, r)
	in.mu.Unlock()
	wake(in.ready)
}

func (in *inbox) take() arrivals {
	in.mu.Lock()
	defer in.mu.Unlock()
	a := in.arrivals
	in.arrivals = arrivals{fatal: a.fatal}
	in.msgBytes = 0
	if in.room != nil {
		close(in.room)
		in.room = nil
	}
	return a
}
