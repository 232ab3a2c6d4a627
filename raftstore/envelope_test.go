package raftstore

import (
	"bytes"
	"testing"
)

func FuzzEnvelope(f *testing.F) {
	f.Add((&envelope{1, 2, 3, []routed{{"lbstate", []byte("x")}, {"access", nil}}}).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		var e, again envelope
		if e.decode(data) != nil {
			return
		}
		err := again.decode(e.encode())
		if err != nil || len(again.commands) != len(e.commands) || again.first != e.first {
			t.Fatalf("%+v came back as %+v, %v", e, again, err)
		}
		for i := range e.commands {
			if !bytes.Equal(e.commands[i].command, again.commands[i].command) {
				t.Fatalf("command %d changed", i)
			}
		}
	})
}
