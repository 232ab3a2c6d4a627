package agent

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"
)

// INV-40: labels that Recheck has told of are not undone by an answer from before,
// which a stream that has just begun waits for.
func TestRecheckWhileAStreamBegins(t *testing.T) {
	store := newStore(t)
	put(t, store, "in-a", 1, map[string]string{"zone": "a"})
	put(t, store, "in-b", 2, map[string]string{"zone": "b"})
	var calls atomic.Int32
	slow, answer, rechecked := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s, addr, _ := serve(t, store, 7, func(c *ServerConfig) {
		c.HeartbeatInterval, c.SilenceTimeout = time.Minute, 2*time.Minute
		c.LabelsFor = func(_ context.Context, h Hello) (map[string]string, error) {
			switch calls.Add(1) {
			case 1:
			case 2: // the look that a stream takes once it has begun
				close(slow)
				<-answer
			case 3:
				close(rechecked)
				fallthrough
			default:
				return map[string]string{"zone": "b"}, nil
			}
			return maps.Clone(h.Labels), nil
		}
	})
	var r recorder
	follow(t, t.TempDir(), &r, map[string]string{"zone": "a"}, addr)
	<-slow
	s.Recheck()
	select { // it may be asked at once, or only once the older answer has come
	case <-rechecked:
		until(t, "the new view", func() bool { return fmt.Sprint(names(r.last())) == "[in-b]" })
	case <-time.After(100 * time.Millisecond):
	}
	close(answer)
	<-rechecked
	until(t, "the new view", func() bool { return fmt.Sprint(names(r.last())) == "[in-b]" })
	last := put(t, store, "in-b", 3, map[string]string{"zone": "b"})
	until(t, "a change of the new view", func() bool { return r.last().Revision == last })
	if got := fmt.Sprint(names(r.last())); got != "[in-b]" {
		t.Errorf("%s is shown after a look at the labels that is older than Recheck's", got)
	}
	if got := s.Agents()[0].Labels["zone"]; got != "b" {
		t.Errorf("the labels are those of zone %s", got)
	}
}
