package peer

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// sparing logs what may happen over and over, each kind of it once in a while.
type sparing struct {
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

const (
	sparingPause = 10 * time.Second
	sparingKinds = 256
)

func newSparing() *sparing { return &sparing{last: map[string]time.Time{}} }

func (s *sparing) log(log *zap.Logger, kind string, level zapcore.Level, msg string, fields ...zap.Field) {
	now := time.Now()
	s.mu.Lock()
	last, known := s.last[kind]
	due := !known || now.Sub(last) >= sparingPause
	if due {
		if len(s.last) >= sparingKinds {
			for k, at := range s.last {
				if now.Sub(at) >= sparingPause {
					delete(s.last, k)
				}
			}
			// Strangers can make up any number of kinds: be silent about more.
			due = known || len(s.last) < sparingKinds
		}
		if due {
			s.last[kind] = now
		}
	}
	s.mu.Unlock()
	if due {
		log.Log(level, msg, fields...)
	}
}
