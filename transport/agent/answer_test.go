package agent

import (
	"testing"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// An answer of series without samples takes few bytes on its way and many in
// memory: what no agent keeps is refused.
func TestAnswerOfTooManySeries(t *testing.T) {
	q := &question{id: 1, done: make(chan struct{})}
	st := &stream{question: q}
	part := &agentpb.StatisticsPart{Id: 1}
	for range 1000 {
		part.Series = append(part.Series, &agentpb.Series{})
	}
	for range maxSeries / 1000 {
		if err := st.counted(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.counted(part); err == nil {
		t.Errorf("%d series are taken", len(q.answer.Series))
	}
}
