package agent

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// outgoing is a message with its size in bytes.
type outgoing struct {
	message *agentpb.ServerMessage
	size    int
}

const (
	// maxAnswers bounds the answers to requests that wait behind what is being
	// sent.
	maxAnswers = 8

	// spareBeats is how many heartbeats in turn an update may stand for.
	spareBeats = 3

	// atOnce bounds the bytes that are sent without a sender before the agent
	// acknowledges any: gRPC takes 64 KiB of a stream before it makes who sends
	// wait for the other end. An agent may acknowledge what it has not read, so
	// this can fail: see unstick.
	atOnce = 32 << 10

	// stuckAfter is how long what is sent without a sender may take: who sends it
	// keeps all other agents waiting.
	stuckAfter = time.Second

	// endPatience is how long a handler waits for its stream's end.
	endPatience = 2 * time.Second
)

// errUnread ends a stream that took the word of its agent for what was read.
var errUnread = errors.New("the agent does not read what it acknowledges")

// post sends messages after those that were posted before. It does not wait for
// the other end. The caller holds mu.
func (st *stream) post(msgs ...*agentpb.ServerMessage) {
	if st.over {
		return
	}
	for _, m := range msgs {
		size := proto.Size(m)
		if st.sender == nil && st.unread+size <= atOnce {
			st.unread += size
			st.sending.Store(time.Now().UnixNano())
			err := st.grpc.Send(m)
			st.sending.Store(0)
			if err != nil {
				st.cancel(err)
				return
			}
			continue
		}
		st.queue = append(st.queue, outgoing{m, size})
		if st.sender == nil {
			st.sender, st.progress = make(chan struct{}), time.Now()
			st.server.streams.Go(st.send)
		}
	}
}

// send is the sender: it ends when all is sent.
func (st *stream) send() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for len(st.queue) > 0 {
		next := st.queue[0]
		st.queue = st.queue[1:]
		st.unread += next.size
		st.mu.Unlock()
		err := st.grpc.Send(next.message)
		st.mu.Lock()
		st.progress = time.Now()
		if err != nil {
			st.cancel(err)
			break
		}
	}
	close(st.sender)
	st.sender, st.queue, st.answers = nil, nil, 0
}
