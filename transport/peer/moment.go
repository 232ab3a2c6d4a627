package peer

import (
	"sync/atomic"
	"time"
)

// moment is a time that one goroutine sets and others read.
type moment struct{ nanos atomic.Int64 }

func (m *moment) set(t time.Time) { m.nanos.Store(t.UnixNano()) }

// time is the zero time until set is called.
func (m *moment) time() time.Time {
	if n := m.nanos.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}
